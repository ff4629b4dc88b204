"""Per-sample gradients of a linear layer, from its input and its output's gradient.

For y = x Wᵀ + b, with x of shape [B, T, d] and g = ∂L/∂y of shape [B, T, p], sample s has
the weight gradient G_s = g_sᵀ x_s of shape [p, d] and the bias gradient Σ_t g_st. Nothing
here holds more than `CHUNK_BYTES` of them at a time.

Sources: Goodfellow 2015 (arXiv:1510.01799) for norms without gradients, Li et al. 2022
(arXiv:2110.05679) for their Gram form on sequences; Bu et al. 2023 (arXiv:2210.00038) for the
cheaper form by layer and the weighted sum from kept inputs; Dangel et al. 2020
(arXiv:1912.10985) for diagonals from layer inputs and output gradients.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paramscope.persample.precision import accumulator, wide
from paramscope.rehearsal import rounds

CHUNK_BYTES = 64 * 2**20
TILE_BYTES = 2**20  # of one sample's gradient: with its part of the sum it stays in a core's cache
TILE_TOKENS = 256  # a side of a Gram tile

NormRoute = Literal["gram", "tiles", "product"]


def squared_sum(
    x: Tensor, g: Tensor, into: Tensor | None = None, chunk_bytes: int | None = None
) -> Tensor:
    """Σ_s G_s², elementwise, [p, d], in float32 at least; added to `into` where that is given.

    On a CPU one sample at a time, in tiles of rows, so that what is squared is still in cache
    and the sum of a tile is written once; elsewhere, many samples in one product.
    """
    total = accumulator(g, g.shape[-1], x.shape[-1]) if into is None else into
    if x.device.type != "cpu":
        for gradients in _gradients(x, g, chunk_bytes or CHUNK_BYTES):
            total += gradients.square_().sum(0)
        return total
    rows = max(1, (chunk_bytes or TILE_BYTES) // (x.shape[-1] * x.element_size()))
    for start in rounds(range(0, g.shape[-1], rows)):
        part = total[start : start + rows]
        gradient = torch.empty(part.shape, dtype=x.dtype)
        for s in rounds(range(len(x)), 1):
            torch.mm(g[s, :, start : start + rows].T, x[s], out=gradient)
            squared = wide(gradient)
            part.addcmul_(squared, squared)
    return total


def token_squared_sum(x: Tensor, g: Tensor, into: Tensor | None = None) -> Tensor:
    """Σ over samples and tokens of (g_t x_tᵀ)², [p, d]: Σ_s G_s² without its cross terms.

    Added to `into` where that is given. Equal to `squared_sum` in expectation where each
    token's gradient has mean zero and no two are correlated.
    """
    total = accumulator(g, g.shape[-1], x.shape[-1]) if into is None else into
    x, g = wide(x).flatten(0, 1), wide(g).flatten(0, 1)
    return total.addmm_(g.square().T, x.square())


def bias_squared_sum(g: Tensor) -> Tensor:
    """Σ_s (Σ_t g_st)², [p]."""
    return wide(g).sum(1).square().sum(0)


def bias_token_squared_sum(g: Tensor) -> Tensor:
    """Σ over samples and tokens of g_t², [p]."""
    return wide(g).square().sum((0, 1))


def norm_flops(route: NormRoute, T: int, d: int, p: int) -> int:
    """Floating-point operations that `route` takes for one sample's ‖G_s‖²."""
    if route == "product":
        return 2 * T * d * p
    tile = T if route == "gram" else TILE_TOKENS
    diagonal = T // tile * tile**2 + (T % tile) ** 2  # tiles i = j; of the others, half are made
    return (T * T + diagonal) * (d + p)


def cheapest_norm(T: int, d: int, p: int) -> NormRoute:
    """The route of fewest operations to ‖G_s‖², from the layer's sizes alone.

    Tiles make the pairs i ≥ j only, about half of the whole Gram matrices; up to `TILE_TOKENS`
    tokens they are one tile, which is the whole.
    """
    if norm_flops("product", T, d, p) <= norm_flops("tiles", T, d, p):
        return "product"
    return "gram" if T <= TILE_TOKENS else "tiles"


def squared_norms(
    x: Tensor, g: Tensor, route: NormRoute | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """‖G_s‖² of each sample's weight gradient, [B], in float32 at least.

    Args:
        x: the layer's input, [B, T, d].
        g: the gradient of its output, [B, T, p].
        route: `gram` takes Σ_tu ⟨x_t, x_u⟩⟨g_t, g_u⟩ from two [T, T] matrices a sample, `tiles`
            the same from parts of them `TILE_TOKENS` a side, `product` squares G_s itself, in
            blocks of its rows where one is too large; by default the cheapest.
        chunk_bytes: what is held at a time of gradients or of Gram matrices (of these, one
            sample's pair at least).
    """
    B, T, d = x.shape
    p = g.shape[-1]
    route = route or cheapest_norm(T, d, p)
    norms = accumulator(g, B)
    if route == "product":
        for samples, _, gradients in _gradient_blocks(x, g, chunk_bytes):
            norms[samples] += torch.linalg.vector_norm(gradients, dim=(1, 2)).square_()
        return norms
    tile = T if route == "gram" else min(T, TILE_TOKENS)
    for samples, _ in blocks(B, 1, 2 * tile * tile * norms.element_size(), chunk_bytes):
        for i, j, times in _tile_pairs(T, tile):
            inputs = _gram(x, samples, i, j)
            norms[samples] += times * inputs.mul_(_gram(g, samples, i, j)).sum((1, 2))
    return norms.clamp_(min=0)  # terms of either sign: rounding can pass zero, a root can't


def per_sample_gradients(x: Tensor, g: Tensor) -> Tensor:
    """G_s of every sample at once, [B, p, d], in the layer's own format: what fits is kept.

    Where T tokens are many, B·d·p numbers are fewer than x and g hold, and their norms and
    weighted sums cost next to nothing more (Bu et al. 2023, arXiv:2210.00038).
    """
    return torch.bmm(g.mT, x)


def prefers_gradients(B: int, T: int, d: int, p: int) -> bool:
    """Whether per-sample gradients take no more room than the input and output's gradient.

    A single sample's is the layer's gradient, which is needed anyway.
    """
    return B == 1 or d * p <= T * (d + p)


def bias_squared_norms(g: Tensor) -> Tensor:
    """‖Σ_t g_st‖² of each sample's bias gradient, [B]."""
    return _token_sums(g).square().sum(1)


def weighted_sum(x: Tensor, g: Tensor, weights: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Σ_s weight_s · G_s, [p, d], as one product over all tokens, by chunks of samples.

    A weight of 0 doesn't undo a gradient that is not finite: leave such a sample out.
    """
    B, T, d = x.shape
    p = g.shape[-1]
    total = accumulator(g, p, d)
    scale = weights.to(total.dtype)[:, None, None]
    for samples, _ in blocks(B, 1, T * (d + p) * total.element_size(), chunk_bytes):
        xs, gs = wide(x[samples]), wide(g[samples])
        if d < p:  # the smaller one is copied
            xs = xs * scale[samples]
        else:
            gs = gs * scale[samples]
        total.addmm_(gs.flatten(0, 1).T, xs.flatten(0, 1))
    return total


def bias_weighted_sum(g: Tensor, weights: Tensor) -> Tensor:
    """Σ_s weight_s · Σ_t g_st, [p]."""
    sums = _token_sums(g)
    return weights.to(sums.dtype) @ sums


def input_factor(x: Tensor, bias: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Σ x xᵀ over samples and tokens, [d, d]; with `bias` of x and a 1 after it, [d+1, d+1].

    Source: Martens and Grosse 2015 (arXiv:1503.05671).
    """
    d = x.shape[-1]
    total = output_factor(x, chunk_bytes)
    if not bias:
        return total
    full = accumulator(x, d + 1, d + 1)
    full[:d, :d] = total
    full[d, :d] = full[:d, d] = _token_sums(x).sum(0)
    full[d, d] = x.shape[0] * x.shape[1]
    return full


def output_factor(g: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Σ g gᵀ over samples and tokens, [p, p], in float32 at least."""
    p = g.shape[-1]
    total = accumulator(g, p, p)
    for part in rounds(g.flatten(0, 1).split(max(1, chunk_bytes // (p * total.element_size())))):
        total.addmm_(wide(part).T, wide(part))
    return total


def unit_gates(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """⟨(w_u, b_u), its gradient⟩ of each output row u by sample, [B, p].

    It is Σ_t g_stu y_stu: the row's output y is made again from `weight` [p, d] and `bias`,
    which costs a forward and no gradient.
    """
    B, T, _ = x.shape
    p = g.shape[-1]
    gates = accumulator(g, B, p)
    for samples, rows in blocks(B, p, T * gates.element_size(), chunk_bytes):
        shift = None if bias is None else wide(bias[rows])
        y = F.linear(wide(x[samples]), wide(weight[rows]), shift)
        gates[samples, rows] = y.mul_(wide(g[samples, :, rows])).sum(1)
    return gates


def unit_squared_norms(
    x: Tensor,
    g: Tensor,
    bias: bool,
    route: NormRoute | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Squared norm of each output row's gradient by sample, [B, p], its bias's share included.

    The Gram routes take g_uᵀ K g_u with K the [T, T] products of inputs, each one more with a
    bias, whose input is 1; their operations are those of `squared_norms`.
    """
    B, T, d = x.shape
    p = g.shape[-1]
    route = route or cheapest_norm(T, d, p)
    norms = accumulator(g, B, p)
    if route == "product":
        for samples, rows, gradients in _gradient_blocks(x, g, chunk_bytes):
            norms[samples, rows] = gradients.square_().sum(2)
        return norms.add_(_token_sums(g).square_()) if bias else norms
    tile = T if route == "gram" else min(T, TILE_TOKENS)
    for samples, _ in blocks(B, 1, tile * (tile + p) * norms.element_size(), chunk_bytes):
        for i, j, times in _tile_pairs(T, tile):
            inputs = _gram(x, samples, i, j).add_(float(bias))
            weighed = inputs @ wide(g[samples, j])
            norms[samples] += times * weighed.mul_(wide(g[samples, i])).sum(1)
    return norms.clamp_(min=0)


def with_one(x: Tensor) -> Tensor:
    """The input [..., d] with a 1 after it, [..., d+1]: what a bias is the weight of."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def _token_sums(g: Tensor) -> Tensor:
    return g.sum(1, dtype=torch.promote_types(g.dtype, torch.float32))


def _tile_pairs(T: int, tile: int) -> Iterator[tuple[slice, slice, int]]:
    """Pairs i ≥ j of token ranges, and how often each counts in a symmetric sum."""
    starts = range(0, T, max(1, tile))
    ranges = [slice(start, min(start + tile, T)) for start in starts]
    for n in rounds(range(len(ranges))):
        i = ranges[n]
        for j in rounds(ranges[: n + 1]):
            yield i, j, 1 if i is j else 2


def _gram(x: Tensor, samples: slice, i: slice, j: slice) -> Tensor:
    return wide(x[samples, i]) @ wide(x[samples, j]).mT


def blocks(B: int, p: int, row_bytes: int, chunk_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Slices of samples and of p rows that hold at most `chunk_bytes` (one row at least)."""
    samples = max(1, chunk_bytes // (p * row_bytes))
    rows = min(p, max(1, chunk_bytes // row_bytes))
    for s in rounds(range(0, B, samples)):
        for r in rounds(range(0, p, rows)):
            yield slice(s, s + samples), slice(r, r + rows)


def _gradient_blocks(
    x: Tensor, g: Tensor, chunk_bytes: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Per-sample weight gradients, [b, r, d]: as many samples as fit, or rows of one."""
    if x.device.type == "cpu":  # what is squared next is then still in cache
        chunk_bytes = min(chunk_bytes, TILE_BYTES)
    row_bytes = x.shape[-1] * accumulator(g, 0).element_size()
    for samples, rows in blocks(len(x), g.shape[-1], row_bytes, chunk_bytes):
        yield samples, rows, wide(g[samples, :, rows]).mT @ wide(x[samples])


def _gradients(x: Tensor, g: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
    """Per-sample weight gradients, [b, p, d], as many samples at a time as fit."""
    sample_bytes = g.shape[-1] * x.shape[-1] * 4
    samples = max(1, chunk_bytes // sample_bytes)
    for xs, gs in zip(x.split(samples), g.split(samples), strict=True):
        yield wide(gs.transpose(1, 2) @ xs)
