"""One step of a masked finetuning."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.compression.distillation import hidden_states, square_head, teacher_states
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.schedule import Schedule
from paramscope.errors import RequestError
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
) -> tuple[float, float]:
    """Step on a batch; return its loss in nats a token, and its masked gradient's norm.

    The norm is taken after masking and is that before clipping. A batch that is taken in
    several forwards weighs each by its tokens, so the step is that of the whole batch (but for
    distillation, whose ratios are taken forward by forward).

    Raises:
        RequestError: the loss or the norm is not finite; nothing was changed.
    """
    loss = torch.zeros((), dtype=torch.float64, device=batch.ids.device)
    with checkpointed(model) if schedule.checkpoint_activations else nullcontext():
        for part in batch.batches(math.ceil(len(batch) / schedule.accumulation)):
            share = part.n_predicted / batch.n_predicted
            loss += share * _backward(model, part, share, teacher, schedule.distillation)
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


def _backward(
    model: PreTrainedModel,
    part: Sequences,
    share: float,
    teacher: PreTrainedModel | None,
    distillation: float,
) -> Tensor:
    """Add a share of the gradient of a part of the batch; return the part's own loss."""
    if teacher is None:
        loss = mean_loss(model, part)
        (share * loss).backward()
        return loss.detach()
    with hidden_states(model) as states:
        loss = mean_loss(model, part)
    apart = square_head(states, teacher_states(teacher, part), part)
    (share * (loss + distillation * apart)).backward()
    return loss.detach()
