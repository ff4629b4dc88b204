"""Distillation by hidden states: a pruned model's blocks are held to the dense model's.

Source: Kurtic et al. 2023 (arXiv:2310.06927), SquareHead: the mean squared error of each
block's output over the mean square of the teacher's, so that every block weighs alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import wide


@contextmanager
def hidden_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A list that a forward within the context fills: each block's output, [B, T, d]."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for _, block in blocks(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def teacher_states(teacher: PreTrainedModel, batch: Sequences) -> list[Tensor]:
    """Each block's output on a batch, [B, T, d], without the head's forward."""
    B, T = batch.ids.shape
    positions = torch.arange(T, device=batch.ids.device).expand(B, T)
    with hidden_states(teacher) as states:
        teacher.base_model(input_ids=batch.ids, position_ids=positions, use_cache=False)
    return states


def squares(states: Sequence[Tensor], batch: Sequences) -> Tensor:
    """‖state‖² of each block over real tokens alone, [blocks]."""
    real = _real(batch)
    return torch.stack([wide(state)[real].square().sum() for state in states])


def square_head(
    states: Sequence[Tensor],
    wanted: Sequence[Tensor],
    batch: Sequences,
    over: Tensor | None = None,
) -> Tensor:
    """Σ over blocks of ‖student − teacher‖² / ‖teacher‖², a scalar, over real tokens alone.

    `over`, [blocks], stands for ‖teacher‖² where the batch is a part of the one that is meant.

    Raises:
        RequestError: student and teacher differ in their blocks or widths.
    """
    if [s.shape for s in states] != [w.shape for w in wanted]:
        raise RequestError(
            f"distillation: the teacher has {len(wanted)} blocks and the model {len(states)}, or "
            "their widths differ; give the dense model that was pruned"
        )
    real = _real(batch)
    total = torch.zeros((), device=batch.ids.device)
    for i, (state, target) in enumerate(zip(states, wanted, strict=True)):
        target = wide(target)[real]
        whole = target.square().sum() if over is None else over[i]
        total = total + (wide(state)[real] - target).square().sum() / whole
    return total


def _real(batch: Sequences) -> Tensor:
    """Which tokens are no padding, [B, T], bool."""
    return torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.lengths[:, None]
