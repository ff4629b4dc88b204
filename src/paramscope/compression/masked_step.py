"""One step of a masked finetuning."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.compression.distillation import (
    hidden_states,
    square_head,
    squares,
    teacher_states,
)
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.schedule import Schedule
from paramscope.errors import RequestError
from paramscope.memory import Microbatch, fitting
from paramscope.models.blocks import checkpointed
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences


def take_step(
    model: PreTrainedModel,
    optimizer: MaskedAdamW,
    batch: Sequences,
    rate: float,
    schedule: Schedule,
    teacher: PreTrainedModel | None,
    microbatch: Microbatch | None = None,
) -> tuple[float, float]:
    """Step on a batch; return its loss in nats a token, and its masked gradient's norm.

    The norm is taken after masking and is that before clipping. A batch that is taken in
    several forwards weighs each by its tokens, so the step is that of the whole batch (but for
    distillation, whose ratios are taken forward by forward).

    Where memory runs out, given a `microbatch`, the step is begun anew with each of its forwards
    in several; that changes nothing, ratios included.

    Raises:
        DeviceError: memory runs out with one sequence a forward.
        RequestError: the loss or the norm is not finite; nothing was changed.
    """
    forward = math.ceil(len(batch) / schedule.accumulation)

    def gradients(size: int) -> Tensor:
        optimizer.zero_grad()  # of an attempt that ran out of memory
        loss = torch.zeros((), dtype=torch.float64, device=batch.ids.device)
        with checkpointed(model) if schedule.checkpoint_activations else nullcontext():
            for part in batch.batches(forward):
                over = _squares(teacher, part, size)
                for piece in part.batches(size):
                    share, of_part = (x.n_predicted / batch.n_predicted for x in (piece, part))
                    weight = schedule.distillation * (of_part / share)
                    loss += share * _backward(model, piece, share, teacher, weight, over)
        return loss

    loss = fitting(microbatch or forward, gradients, forward)
    optimizer.mask_gradients()
    limit = schedule.clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    if not (norm.isfinite() and loss.isfinite()):
        optimizer.zero_grad()
        raise RequestError(
            f"a training step's loss is {float(loss):g} and its gradient's norm {float(norm):g}; "
            "give a lower learning rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return float(loss), float(norm)


def _squares(teacher: PreTrainedModel | None, part: Sequences, size: int) -> Tensor | None:
    """What the distances to a teacher are over, where a forward's part is taken in pieces."""
    if teacher is None or size >= len(part):
        return None
    each = [squares(teacher_states(teacher, piece), piece) for piece in part.batches(size)]
    return torch.stack(each).sum(0)


def _backward(
    model: PreTrainedModel,
    part: Sequences,
    share: float,
    teacher: PreTrainedModel | None,
    distillation: float,
    over: Tensor | None,
) -> Tensor:
    """Add a share of the gradient of a part of the batch; return the part's own loss."""
    if teacher is None:
        loss = mean_loss(model, part)
        (share * loss).backward()
        return loss.detach()
    with hidden_states(model) as states:
        loss = mean_loss(model, part)
    apart = square_head(states, teacher_states(teacher, part), part, over)
    (share * (loss + distillation * apart)).backward()
    return loss.detach()
