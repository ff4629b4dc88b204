"""Which kind of layer a module is, and the squares of its per-sample gradients."""

import torch
from torch import Tensor, nn

from paramscope.errors import RequestError
from paramscope.persample import embedding, linear, normalization


class UnknownLayerError(RequestError):
    """A module with parameters whose per-sample gradients no kind here knows."""


def squared_sums(
    name: str, module: nn.Module, a: Tensor, g: Tensor, local: bool
) -> dict[str, Tensor]:
    """Σ_s (per-sample gradient)² of each parameter that `module` owns, by its own name.

    Args:
        name: the module's name in the model, for errors.
        module: the layer.
        a: its input [B, T, d], or ids [B, T] for an embedding.
        g: the gradient of its output, [B, T, p].
        local: take squares token by token (exact in expectation for a layer whose output at
            one token touches no other token's logits, and tighter there).

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    if isinstance(module, nn.Linear) or is_conv1d(module):
        weight = linear.token_squared_sum(a, g) if local else linear.squared_sum(a, g)
        if is_conv1d(module):
            weight = weight.T
        bias = linear.bias_token_squared_sum(g) if local else linear.bias_squared_sum(g)
        return _owned(module, {"weight": weight, "bias": bias})
    if isinstance(module, nn.Embedding):
        square = embedding.token_squared_sum if local else embedding.squared_sum
        total = square(a, g, module.num_embeddings)
        if module.padding_idx is not None:
            total[module.padding_idx] = 0  # autograd gives this row no gradient
        return {"weight": total}
    if isinstance(module, nn.LayerNorm) or _is_rms_norm(module):
        if isinstance(module, nn.LayerNorm):
            normalized = normalization.layer_normalized(a, module.eps)
        else:
            normalized = normalization.rms_normalized(a, _rms_eps(module, a.dtype))
        gain = normalization.gain_token_squared_sum if local else normalization.gain_squared_sum
        bias = linear.bias_token_squared_sum(g) if local else linear.bias_squared_sum(g)
        return _owned(module, {"weight": gain(normalized, g), "bias": bias})
    raise UnknownLayerError(
        f"{name}: no per-sample gradient is known for a {type(module).__name__}; "
        "known are Linear, Conv1D, Embedding, LayerNorm and RMSNorm"
    )


def check_known(model: nn.Module) -> None:
    """Refuse, before any work, a model with a parameter that no kind of layer here owns.

    Raises:
        UnknownLayerError: names the first such module.
    """
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        known = isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)
        if not (known or is_conv1d(module) or _is_rms_norm(module)):
            squared_sums(name, module, torch.empty(0), torch.empty(0), False)


def _owned(module: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: sums[name] for name, p in module.named_parameters(recurse=False)}


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D of GPT-2: a linear layer that stores its weight as [d, p]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight")


def _rms_eps(module: nn.Module, dtype: torch.dtype) -> float:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return torch.finfo(dtype).eps if eps is None else float(eps)  # None: torch.nn.RMSNorm's own
