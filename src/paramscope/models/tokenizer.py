"""A byte-level BPE tokenizer of a model's own, or a checkpoint's."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from paramscope.errors import RequestError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0-3, as in OPT
START = "</s>"  # what OPT puts before every text


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of `vocabulary` entries (Sennrich et al. 2016), laid out as OPT's.

    Raises:
        RequestError: a vocabulary too small for the bytes and the special tokens, or texts
            too few to fill it.
    """
    alphabet = ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(SPECIAL):
        raise RequestError(
            f"vocabulary {vocabulary}: give at least {len(alphabet) + len(SPECIAL)} "
            "(256 bytes and 4 special tokens)"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise RequestError(
            f"the text fills only {tokenizer.get_vocab_size()} of {vocabulary} vocabulary "
            "entries; give more text or a smaller vocabulary"
        )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, SPECIAL.index(START))]
    )
    return tokenizer


def checkpoint_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a checkpoint, a local folder or a hub id, as a fast tokenizer.

    Raises:
        RequestError: there is none, or none that can be written as tokenizer.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"checkpoint '{source}': no tokenizer to be had ({_first_line(error)}); give a local "
            "folder with tokenizer.json, or a hub id that this machine can reach"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise RequestError(f"checkpoint '{source}': its tokenizer has no tokenizer.json form")
    return backend


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, and what transformers' AutoTokenizer needs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}\n', encoding="utf-8"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
