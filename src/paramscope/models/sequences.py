"""Token sequences: documents or windows of text as one padded tensor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from paramscope.errors import ArtifactError, RequestError


@dataclass(frozen=True)
class Sequences:
    """S token sequences, right-padded with 0 to T tokens.

    Attributes:
        ids: token ids, [S, T], int64. A pad comes after all that is predicted, so a causal
            model needs no mask to keep it out.
        lengths: tokens a sequence, [S], int64.
        names: what each sequence is, for seeds and reports.
    """

    ids: Tensor
    lengths: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> "Sequences":
        return Sequences(self.ids[index], self.lengths[index], self.names[index])

    @property
    def predicted(self) -> Tensor:
        """Which of the T − 1 next tokens are text, [S, T−1], bool."""
        return torch.arange(1, self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    @property
    def n_predicted(self) -> int:
        """Predicted tokens in all."""
        return int((self.lengths - 1).sum())

    def by_length(self) -> "Sequences":
        """The same with the longest first; equal lengths keep their order."""
        order = self.lengths.argsort(descending=True, stable=True)
        names = tuple(self.names[i] for i in order.tolist())
        return Sequences(self.ids[order], self.lengths[order], names)

    def batches(self, size: int) -> Iterator["Sequences"]:
        """At most `size` sequences at a time, each batch cut to its longest."""
        for start in range(0, len(self), size):
            yield self.part(slice(start, start + size))

    def part(self, place: slice) -> "Sequences":
        """The sequences at a place, cut to the longest of them."""
        batch = self[place]
        longest = int(batch.lengths.max())
        return Sequences(batch.ids[:, :longest], batch.lengths, batch.names)

    def to(self, device: torch.device) -> "Sequences":
        """The same on `device`."""
        return Sequences(self.ids.to(device), self.lengths.to(device), self.names)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        ArtifactError: no tokenizer.json there.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: no such tokenizer; save one there (save_pretrained does)")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def documents(
    tokenizer: Tokenizer, texts: Sequence[str], names: Sequence[str], length: int
) -> Sequences:
    """One sequence a text, its special tokens included, cut to `length` tokens.

    Raises:
        RequestError: no texts, or one that holds fewer than two tokens, so none to predict.
    """
    encoded = [encoding.ids[:length] for encoding in tokenizer.encode_batch(list(texts))]
    for name, ids in zip(names, encoded, strict=True):
        if len(ids) < 2:
            raise RequestError(f"document {name} has {len(ids)} token(s); at least 2 are needed")
    return padded(encoded, names)


def windows(tokenizer: Tokenizer, texts: Sequence[str], length: int, stride: int) -> Sequences:
    """The texts joined by a blank line, tokenised once, in windows of `length` tokens.

    The tail is kept: perplexity weights it by its tokens. A last token that is alone has
    nothing to predict it and is left out.

    Raises:
        RequestError: the text has fewer than two tokens.
    """
    ids = tokenizer.encode("\n\n".join(texts)).ids
    cut = [ids[start : start + length] for start in range(0, len(ids), stride)]
    cut = [window for window in cut if len(window) >= 2]
    return padded(cut, [f"window-{i}" for i in range(len(cut))])


def padded(encoded: Sequence[Sequence[int]], names: Sequence[str]) -> Sequences:
    """Lists of token ids as one right-padded tensor.

    Raises:
        RequestError: there are none.
    """
    if not encoded:
        raise RequestError("no text to tokenise: the split is empty")
    ids = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.int64)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return Sequences(ids, torch.tensor([len(tokens) for tokens in encoded]), tuple(names))


def concatenate(*parts: Sequences) -> Sequences:
    """All sequences of the parts in order, padded to the longest."""
    rows = [
        ids[:n].tolist()
        for part in parts
        for ids, n in zip(part.ids, part.lengths.tolist(), strict=True)
    ]
    return padded(rows, [name for part in parts for name in part.names])
