"""Which kind of layer a module is, and the squares of its per-sample gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paramscope.errors import UnsupportedModelError
from paramscope.persample import embedding, linear, normalization
from paramscope.persample.precision import accumulator, wide


class UnknownLayerError(UnsupportedModelError):
    """A module with parameters whose per-sample gradients no kind here knows."""


def squared_sums(
    name: str, module: nn.Module, a: Tensor, g: Tensor, local: bool
) -> dict[str, Tensor]:
    """Σ_s (per-sample gradient)² of each parameter that `module` owns, by its own name.

    In float32 at least, whatever the layer's own format; the rest as for `add_squares`.
    """
    sums = {n: accumulator(p, *p.shape) for n, p in module.named_parameters(recurse=False)}
    add_squares(name, module, a, g, local, sums)
    return sums


def add_squares(
    name: str, module: nn.Module, a: Tensor, g: Tensor, local: bool, into: Mapping[str, Tensor]
) -> None:
    """Add Σ_s (per-sample gradient)² of each parameter that `module` owns.

    Args:
        name: the module's name in the model, for errors.
        module: the layer.
        a: its input [B, T, d], or ids [B, T] for an embedding.
        g: the gradient of its output, [B, T, p].
        local: take squares token by token (exact in expectation for a layer whose output at
            one token touches no other token's logits, and tighter there).
        into: sums by the parameters' own names, each of its parameter's shape.

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    bias_squares = linear.bias_token_squared_sum if local else linear.bias_squared_sum
    if is_linear(module):
        square = linear.token_squared_sum if local else linear.squared_sum
        rows, columns = (g, a) if isinstance(module, nn.Linear) else (a, g)  # of the weight
        square(columns, rows, into["weight"])
        shift = g
    elif isinstance(module, nn.Embedding):
        g = embedding.without_padding(a, g, module.padding_idx)
        (embedding.token_squared_sum if local else embedding.squared_sum)(a, g, into["weight"])
        return
    elif is_norm(module):
        gain = normalization.gain_token_squared_sum if local else normalization.gain_squared_sum
        into["weight"] += gain(normalized(module, a), g)
        shift = normalization.by_token(wide(g))
    else:
        raise unknown(name, module)
    if "bias" in into:
        into["bias"] += bias_squares(shift)


def normalized(module: nn.Module, a: Tensor) -> Tensor:
    """A normalisation's input as it is before gain and shift, in float32 at least."""
    if isinstance(module, nn.LayerNorm):
        return normalization.layer_normalized(a, module.eps)
    return normalization.rms_normalized(a, _rms_eps(module, a.dtype))


def check_known(model: nn.Module) -> None:
    """Refuse, before any work, a model with a parameter that no kind of layer here owns.

    Raises:
        UnknownLayerError: names the first such module.
    """
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        if not is_known(module):
            raise unknown(name, module)


def is_known(module: nn.Module) -> bool:
    """Whether a kind of layer here is the module's."""
    return is_linear(module) or isinstance(module, nn.Embedding) or is_norm(module)


def unknown(name: str, module: nn.Module) -> UnknownLayerError:
    """What to raise of a module whose kind is not known."""
    return UnknownLayerError(
        f"{name}: no per-sample gradient is known for a {type(module).__name__}; known are "
        "Linear, Conv1D, Embedding, LayerNorm and RMSNorm"
    )


def is_linear(module: nn.Module) -> bool:
    """A linear layer, stored either way."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D of GPT-2: a linear layer that stores its weight as [d, p]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_rms_norm(module: nn.Module) -> bool:
    """torch's RMSNorm, or one of transformers' of that name."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight")


def is_norm(module: nn.Module) -> bool:
    """A LayerNorm or an RMSNorm."""
    return isinstance(module, nn.LayerNorm) or is_rms_norm(module)


def _rms_eps(module: nn.Module, dtype: torch.dtype) -> float:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None:  # torch.nn.RMSNorm's own, that of the format it computes in
        return torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return float(eps)
