"""Greedy continuations of held-out documents, scored against the documents' own by BLEU and ROUGE.

Sources: BLEU, Papineni et al. 2002 (doi:10.3115/1073083.1073135), as sacrebleu computes it
(Post 2018, arXiv:1804.08771); ROUGE, Lin 2004 (aclanthology.org/W04-1013), as rouge-score does.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.memory import Microbatch, pieces
from paramscope.models.sequences import Sequences

ROUGE = ("rouge1", "rouge2", "rougeL")


def generate_scores(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    documents: Sequences,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int | Microbatch,
) -> dict[str, float]:
    """Scores of the model's continuations against what the documents say.

    Of each document the first `prompt_tokens` are the prompt, the `new_tokens` after them the
    reference; those with fewer tokens are left out.

    Returns:
        bleu, of the corpus, from 0 to 100; rouge1, rouge2 and rougeL, means of the documents'
        F1, from 0 to 1; n, the documents scored.

    Raises:
        RequestError: the packages of the extra `generation` are missing, no document is long
            enough, or the model has too few positions.
    """
    bleu, rouge = _packages()
    texts = continuations(
        model,
        tokenizer,
        documents,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
    )
    said, meant = [own for own, _ in texts], [reference for _, reference in texts]
    scorer = rouge.RougeScorer(list(ROUGE), use_stemmer=False)
    found = [scorer.score(target, own) for own, target in texts]
    means = {name: sum(one[name].fmeasure for one in found) / len(found) for name in ROUGE}
    return {"bleu": float(bleu.corpus_bleu(said, [meant]).score), **means, "n": len(texts)}


def continuations(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    documents: Sequences,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int | Microbatch,
) -> list[tuple[str, str]]:
    """Of each document that is long enough: the model's own continuation, and the document's.

    A continuation ends before the first token with which the model ends a text.

    Raises:
        RequestError: lengths below 1, no document that is long enough, or too few positions.
    """
    if min(prompt_tokens, new_tokens) < 1:
        raise RequestError(
            f"a prompt of {prompt_tokens} and {new_tokens} new tokens; at least 1 of each is needed"
        )
    length = prompt_tokens + new_tokens
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < length:
        raise RequestError(
            f"a prompt of {prompt_tokens} and {new_tokens} new tokens, but the model has {limit} "
            "positions; give fewer"
        )
    ids = documents.ids[documents.lengths >= length][:, :length]
    if not len(ids):
        raise RequestError(
            f"no document has {length} tokens; give shorter prompts or fewer new tokens"
        )
    ends = _ends(model)
    texts = []
    with tqdm(total=len(ids), desc="generating", unit="document") as bar:
        prompts, references = ids[:, :prompt_tokens], ids[:, prompt_tokens:]
        parts = pieces(len(ids), batch_size, lambda at: greedy(model, prompts[at], new_tokens))
        for place, generated in parts:
            for own, reference in zip(generated.tolist(), references[place].tolist(), strict=True):
                told = tokenizer.decode(_until(own, ends))
                texts.append((told, tokenizer.decode(reference)))
            bar.update(len(generated))
    return texts


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: Tensor, new_tokens: int) -> Tensor:
    """The likeliest next token, `new_tokens` times over: [B, new_tokens] after prompts [B, P].

    What a checkpoint's generation_config says (sampling, penalties) is not heeded.
    """
    ids, cache = prompts, None
    chosen: list[Tensor] = []
    for _ in range(new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        chosen.append(ids)
    return torch.cat(chosen, 1)


def _ends(model: PreTrainedModel) -> frozenset[int]:
    """The tokens with which the model ends a text."""
    told: int | Iterable[int] | None = model.config.eos_token_id
    if told is None:
        return frozenset()
    return frozenset([told] if isinstance(told, int) else told)


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _packages() -> tuple[Any, Any]:
    """The modules sacrebleu and rouge_score.rouge_scorer."""
    try:
        return import_module("sacrebleu"), import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise RequestError(
            f"BLEU and ROUGE need a package that is not installed ({error}); "
            "pip install 'paramscope[generation]', or leave generation scores out"
        ) from error
