"""What every contender of the curvature benchmark is given, and what it gives back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.curvature.products import Entry
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences

Estimate = tuple[list[int], list[float]]  # positions among the case's entries, values there
Estimator = Callable[[int, int], Estimate]  # of a budget and a seed


@dataclass(frozen=True)
class Case:
    """A model, the sequences that the loss is over, and the entries to answer for."""

    model: PreTrainedModel
    sequences: Sequences
    batch_size: int
    entries: Sequence[Entry]

    def shares(self) -> Iterator[tuple[Sequences, float]]:
        """Microbatches, each with its share of the predicted tokens."""
        for batch in self.sequences.batches(self.batch_size):
            yield batch, batch.n_predicted / self.sequences.n_predicted

    def pick(self, diagonal: dict[str, Tensor]) -> Estimate:
        """The entries' values of a whole diagonal."""
        values = [float(diagonal[name].flatten()[index]) for name, index in self.entries]
        return list(range(len(values))), values


def gradient(case: Case) -> list[Tensor]:
    """The loss's gradient by parameter: what costs are counted in."""
    parameters = list(case.model.parameters())
    total: list[Tensor] = []
    for batch, share in case.shares():
        loss = mean_loss(case.model, batch) * share
        part = torch.autograd.grad(loss, parameters)
        if total:
            for sum_, term in zip(total, part, strict=True):
                sum_.add_(term)
        else:
            total = list(part)
    return total


class Scores(nn.Module):
    """A model whose output is the logits at the predicted positions, [W, V]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Logits [W, V] for `x`: ids [B, T], and rows [W], the positions that predict."""
        positions = torch.arange(x["ids"].shape[1]).expand_as(x["ids"])
        z = self.model(input_ids=x["ids"], position_ids=positions, use_cache=False).logits
        return z.flatten(0, 1)[x["rows"]]


def labelled(batch: Sequences) -> tuple[dict[str, Tensor], Tensor]:
    """A microbatch as `Scores` takes it, and its W next tokens."""
    predicts = nn.functional.pad(batch.predicted, (0, 1))
    rows = predicts.flatten().nonzero()[:, 0]
    return {"ids": batch.ids, "rows": rows}, batch.ids[:, 1:][batch.predicted]
