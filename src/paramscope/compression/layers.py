"""Which layers are pruned, and the shares of their weights that masks keep."""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor, nn

from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.persample.layers import is_conv1d, is_linear

Masks = dict[str, Tensor]  # by the weight's name, of its own shape, True where it is kept


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the blocks, by name, in the order of the blocks.

    Embeddings, the head and projections outside the blocks are not among them.

    Raises:
        RequestError: the model has no blocks, or no linear layer in them; or such a layer, or
            its weight, stands in the model more than once, so that its mask would be another's.
    """
    layers = {
        f"{block}.{name}": module
        for block, inside in blocks(model)
        for name, module in inside.named_modules()
        if is_linear(module)
    }
    if not layers:
        raise RequestError(f"{type(model).__name__} has no linear layer inside its blocks to prune")
    owners = defaultdict(set)
    for name, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False):
            owners[_place(parameter)].add(f"{name}.{own}")
    for name, module in layers.items():
        others = owners[_place(module.get_parameter("weight"))] - {f"{name}.weight"}
        if others:
            raise RequestError(
                f"{name}.weight is also {', '.join(sorted(others))}: a shared weight can't be "
                "pruned; give each its own copy"
            )
    return layers


def _place(parameter: Tensor) -> tuple[int, int]:
    """Where a parameter begins in memory; asked of fake ones, too, which have no address."""
    return parameter.untyped_storage()._cdata, int(parameter.storage_offset())


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight as [out, in], a view without a gradient, however it is stored."""
    weight = module.get_parameter("weight").detach()
    return weight.T if is_conv1d(module) else weight


def density_of(masks: Mapping[str, Tensor]) -> float:
    """Share of the masked weights that is kept."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return kept / sum(mask.numel() for mask in masks.values())


def overall_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Share of all the model's parameters that the masks hold at 0; a tied one counts once."""
    zeros = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    return zeros / sum(parameter.numel() for parameter in model.parameters())
