"""Layers that share a parameter: a head and the token embedding may, others are not handled."""

from collections.abc import Callable

from torch import nn

from paramscope.errors import UnsupportedModelError


def tied_embedding(
    model: nn.Module, head: nn.Module, counts: Callable[[nn.Parameter], bool] = lambda _: True
) -> str | None:
    """Name of the embedding whose weight is the head's, too; None where nothing is shared.

    Args:
        model: the model.
        head: its head.
        counts: which parameters are looked at.

    Raises:
        UnsupportedModelError: other layers share a parameter.
    """
    first: dict[int, tuple[str, nn.Module]] = {}
    tied: str | None = None
    for name, module in model.named_modules():
        for parameter in filter(counts, module.parameters(recurse=False)):
            other, owner = first.setdefault(id(parameter), (name, module))
            if owner is module:
                continue
            pair = (other, owner), (name, module)
            found = [own for own, layer in pair if isinstance(layer, nn.Embedding)]
            if len(found) != 1 or head not in (owner, module) or tied is not None:
                raise UnsupportedModelError(
                    f"{name} and {other} share a parameter, and only a tied head's is handled"
                )
            tied = found[0]
    return tied
