"""What a layer's input and its output's gradient say of each sample, for every kind of layer.

One public function an answer, beside `layers.squared_sums`. All take the module's name in the
model (for errors), the module, its input a and the gradient g of its output, as `capture`
hands them over: a [B, T, d] (ids [B, T] for an embedding; a normalisation may have axes
between tokens and entries) and g [B, T, p]. What comes back is in float32 at least, and no
more than `chunk_bytes` of per-sample gradients are held meanwhile, but for biases and
normalisations, whose gradients have the answer's own size, [B, p]. Sums over samples of two
microbatches add up to those of the whole; values by sample concatenate.

A parameter that several modules share has each module's part from these; a tied head's cross
terms are in `tied_head`.

Sources: Goodfellow 2015 (arXiv:1510.01799) and Li et al. 2022 (arXiv:2110.05679) for norms;
Bu et al. 2023 (arXiv:2210.00038) for weighted sums; Martens and Grosse 2015 (arXiv:1503.05671)
for Kronecker factors.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from paramscope.errors import RequestError
from paramscope.persample import embedding, linear, normalization
from paramscope.persample.layers import (
    UnknownLayerError,
    is_conv1d,
    is_linear,
    is_norm,
    normalized,
    unknown,
)
from paramscope.persample.linear import CHUNK_BYTES, TILE_BYTES, NormRoute, blocks
from paramscope.persample.precision import accumulator


@dataclass(frozen=True)
class Factors:
    """The Kronecker factors of a layer's curvature, summed over samples and tokens.

    Attributes:
        input: Σ a aᵀ, [d, d]; with a bias [d+1, d+1], the 1 last; for an embedding the
            diagonal of it, tokens a row, [rows].
        output: Σ g gᵀ, [p, p].
    """

    input: Tensor
    output: Tensor


def squared_norms(
    name: str,
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    *,
    route: NormRoute | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Tensor]:
    """‖gradient‖² of each sample, [B], by parameter of `module`; their sum is the module's.

    `route` forces one way to a linear layer's norms (see `linear.squared_norms`).

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    if is_linear(module):
        a, g = _by_token(a), _by_token(g)
        weight = linear.squared_norms(a, g, route, chunk_bytes)
        return _owned(module, {"weight": weight, "bias": linear.bias_squared_norms(g)})
    if isinstance(module, nn.Embedding):
        return {"weight": embedding.squared_norms(a, g, module.padding_idx, chunk_bytes)}
    gradients = normalization_gradients(name, module, a, g, chunk_bytes=chunk_bytes)
    return {suffix: x.square().sum(1) for suffix, x in gradients.items()}


def weighted_sums(
    name: str,
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    weights: Tensor,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, Tensor]:
    """Σ_s weight_s · gradient_s for weights [B], each of its parameter's shape.

    A weight of 0 doesn't undo a gradient that is not finite: leave such a sample out.

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    if is_linear(module):
        a, g = _by_token(a), _by_token(g)
        weight = linear.weighted_sum(a, g, weights, chunk_bytes)
        if is_conv1d(module):
            weight = weight.T
        return _owned(module, {"weight": weight, "bias": linear.bias_weighted_sum(g, weights)})
    if isinstance(module, nn.Embedding):
        rows, padding = module.num_embeddings, module.padding_idx
        return {"weight": embedding.weighted_sum(a, g, weights, rows, padding, chunk_bytes)}
    gradients = normalization_gradients(name, module, a, g, chunk_bytes=chunk_bytes)
    return {suffix: weights.to(x.dtype) @ x for suffix, x in gradients.items()}


def kronecker_factors(
    name: str,
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    *,
    bias: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> Factors:
    """Σ a aᵀ and Σ g gᵀ; where the layer has a bias, a has a 1 after it unless `bias` is false.

    Raises:
        RequestError: the module is a normalisation.
        UnknownLayerError: no kind here knows the module.
    """
    if is_linear(module):
        a, g = _by_token(a), _by_token(g)
        appended = bias and getattr(module, "bias", None) is not None
        return Factors(
            linear.input_factor(a, appended, chunk_bytes), linear.output_factor(g, chunk_bytes)
        )
    if isinstance(module, nn.Embedding):
        rows, padding = module.num_embeddings, module.padding_idx
        return Factors(*embedding.kronecker_factors(a, g, rows, padding))
    if is_norm(module):
        raise RequestError(
            f"{name}: a {type(module).__name__} has no Kronecker factors: each entry is scaled "
            "by itself, so a diagonal is what it has (layers.squared_sums)"
        )
    raise unknown(name, module)


def unit_gates(
    name: str, module: nn.Module, a: Tensor, g: Tensor, *, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """⟨unit, its gradient⟩ of each sample and unit, [B, p]: Σ_j w_uj ∂L_s/∂w_uj + b_u ∂L_s/∂b_u.

    A unit is an output row of a weight with its bias; of a normalisation, an entry of gain and
    shift; of an embedding, a row, and there the result is a sparse COO tensor [B, rows] of the
    rows that each sample uses.

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    if is_linear(module):
        weight, bias = module.get_parameter("weight").detach(), getattr(module, "bias", None)
        if is_conv1d(module):
            weight = weight.T
        shift = None if bias is None else bias.detach()
        return linear.unit_gates(_by_token(a), _by_token(g), weight, shift, chunk_bytes)
    if isinstance(module, nn.Embedding):
        return embedding.unit_gates(a, g, module.weight.detach(), module.padding_idx, chunk_bytes)
    gradients = normalization_gradients(name, module, a, g, chunk_bytes=chunk_bytes)
    products = [module.get_parameter(n).detach() * x for n, x in gradients.items()]
    return torch.stack(products).sum(0)


def unit_squared_norms(
    name: str,
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    *,
    route: NormRoute | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """‖unit's gradient‖² of each sample and unit, [B, p]; units and form as in `unit_gates`.

    Raises:
        UnknownLayerError: no kind here knows the module.
    """
    if is_linear(module):
        has_bias = getattr(module, "bias", None) is not None
        return linear.unit_squared_norms(_by_token(a), _by_token(g), has_bias, route, chunk_bytes)
    if isinstance(module, nn.Embedding):
        rows, padding = module.num_embeddings, module.padding_idx
        return embedding.unit_squared_norms(a, g, rows, padding, chunk_bytes)
    gradients = normalization_gradients(name, module, a, g, chunk_bytes=chunk_bytes)
    return torch.stack([x.square() for x in gradients.values()]).sum(0)


def _by_token(x: Tensor) -> Tensor:
    return x.flatten(1, -2)


def _owned(module: nn.Module, answers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: answers[name] for name, _ in module.named_parameters(recurse=False)}


def normalization_gradients(
    name: str, module: nn.Module, a: Tensor, g: Tensor, *, chunk_bytes: int = CHUNK_BYTES
) -> dict[str, Tensor]:
    """Per-sample gradients [B, d] of gain and shift; the normalised input is made in chunks.

    Raises:
        UnknownLayerError: the module is no normalisation over the last axis.
    """
    if not is_norm(module):
        raise unknown(name, module)
    if module.get_parameter("weight").shape != a.shape[-1:]:
        raise UnknownLayerError(
            f"{name}: a {type(module).__name__} over more than the last axis is not known"
        )
    if a.device.type == "cpu":  # what is normalised is then multiplied and summed in cache
        chunk_bytes = min(chunk_bytes, TILE_BYTES)
    gains = accumulator(g, len(g), g.shape[-1])
    for samples, tokens in blocks(len(a), a.shape[1], 4 * prod(a.shape[2:]), chunk_bytes):
        part = normalized(module, a[samples, tokens])
        gains[samples] += normalization.gain_gradients(part, g[samples, tokens])
    return _owned(module, {"weight": gains, "bias": normalization.shift_gradients(g)})
