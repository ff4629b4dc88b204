"""A pruned weight that is its own mask: what was pruned is +0, and a kept zero is −0.

So whoever holds the weight needs no second tensor to know what was kept, and the two zeros are
equal in all arithmetic.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paramscope.errors import RequestError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pruned(weight: Tensor) -> Tensor:
    """Which values of a marked weight were pruned, bool, of its shape."""
    return _bits(weight) == 0


def kept_index(weight: Tensor) -> Tensor:
    """Where a marked weight's kept values stand in it, row by row, int64 [n_kept]."""
    return _bits(weight).view(-1).nonzero().view(-1)


def mask_like(values: Tensor, weight: Tensor) -> None:
    """Set `values`, of a marked weight's shape and format, to 0 where it was pruned, in place.

    Also where they are not finite: it is their bits that are multiplied by 0 or 1.
    """
    _bits(values).mul_(_bits(weight) != 0)


@torch.no_grad()
def write_kept(weight: Tensor, index: Tensor, values: Tensor) -> None:
    """Put `values` [n_kept] at `index` of a marked weight, which stays marked."""
    values = values.to(weight.dtype)
    weight.view(-1).index_copy_(0, index, values.masked_fill(values == 0, -0.0))


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune and mark the weights that `masks` names (True: kept), in place.

    Raises:
        RequestError: a mask of no parameter, of another shape than its parameter's, not of
            bool, or of a parameter that is not contiguous.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise RequestError(f"mask {name}: the model has no such parameter; prune this model")
        weight = parameters[name]
        if mask.shape != weight.shape or mask.dtype != torch.bool or not weight.is_contiguous():
            raise RequestError(
                f"mask {name}: {mask.dtype} {tuple(mask.shape)} is no mask of a contiguous weight "
                f"{tuple(weight.shape)}; prune this model"
            )
        mask = mask.to(weight.device)
        weight.masked_fill_(mask & (weight == 0), -0.0).masked_fill_(~mask, 0)


def masks_of(model: nn.Module, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that the marked weights of those names hold now (True: kept)."""
    return {name: ~pruned(model.get_parameter(name)) for name in names}


def kept_state(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of all parameters: of a masked one its kept values [n_kept], in its own format."""
    return {
        name: weight.detach().view(-1)[kept_index(weight)]
        if name in masks
        else weight.detach().clone()
        for name, weight in model.named_parameters()
    }


@torch.no_grad()
def restore_kept(
    model: nn.Module, masks: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Put back what `kept_state` copied, into a model that is marked by the same masks."""
    for name, weight in model.named_parameters():
        if name in masks:
            write_kept(weight, kept_index(weight), state[name].to(weight.device))
        else:
            weight.copy_(state[name])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.element_size()])
