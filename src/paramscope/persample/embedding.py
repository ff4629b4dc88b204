"""Per-sample gradients of an embedding, from its ids and its output's gradient.

For y_t = E[i_t], with ids i of shape [B, T] and g = ∂L/∂y of shape [B, T, d], row v of
sample s's gradient is Σ over t with i_st = v of g_st: only rows that the sample uses are
non-zero, and only those are made. The row `padding` (torch's padding_idx) has no gradient.

Sources: Li et al. 2022 (arXiv:2110.05679) for norms from equal ids; Bu et al. 2023
(arXiv:2210.00038) for the weighted sum.
"""

import torch
from torch import Tensor

from paramscope.persample.linear import CHUNK_BYTES, output_factor
from paramscope.persample.precision import accumulator, wide


def squared_sum(ids: Tensor, g: Tensor, into: Tensor) -> Tensor:
    """Add Σ_s G_s² to `into` [rows, d]."""
    rows = len(into)
    samples = torch.arange(len(ids), device=ids.device)[:, None]
    used, place = torch.unique(samples * rows + ids, return_inverse=True)
    gradients = accumulator(g, len(used), g.shape[-1])
    gradients.index_add_(0, place.flatten(), wide(g).flatten(0, 1))
    return into.index_add_(0, used % rows, gradients.square_())


def token_squared_sum(ids: Tensor, g: Tensor, into: Tensor) -> Tensor:
    """Add Σ over samples and tokens of g_t², by row, to `into` [rows, d]."""
    return into.index_add_(0, ids.flatten(), wide(g).square().flatten(0, 1))


def squared_norms(
    ids: Tensor, g: Tensor, padding: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """‖G_s‖² of each sample's gradient, [B], in float32 at least.

    A sample's gradients are summed at the first place that its id has among the sorted ids:
    sizes hang on the ids' shape alone, so no device waits and fake tensors will do.
    """
    norms = accumulator(g, len(ids))
    for part in _samples(g, chunk_bytes):
        own = wide(without_padding(ids[part], g[part], padding))
        sums = torch.zeros_like(own).flatten(0, 1)
        sums.index_add_(0, first_places(ids[part]).flatten(), own.flatten(0, 1))
        norms[part] = sums.square_().unflatten(0, own.shape[:2]).sum((1, 2))
    return norms


def first_places(ids: Tensor) -> Tensor:
    """Where sums over equal ids of a sample go, [B, T]: a place in [0, B·T) for each id."""
    B, T = ids.shape
    place = torch.searchsorted(ids.sort(1).values, ids.contiguous())
    return place.add_(T * torch.arange(B, device=ids.device)[:, None])


def without_padding(ids: Tensor, g: Tensor, padding: int | None) -> Tensor:
    """`g` with 0 at the padding row's tokens, as autograd gives that row no gradient."""
    return g if padding is None else g.masked_fill((ids == padding)[..., None], 0)


def weighted_sum(
    ids: Tensor,
    g: Tensor,
    weights: Tensor,
    rows: int,
    padding: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Σ_s weight_s · G_s, [rows, d], for weights [B]."""
    total = accumulator(g, rows, g.shape[-1])
    for part in _samples(g, chunk_bytes):
        scaled = wide(g[part]) * weights[part, None, None].to(total.dtype)
        total.index_add_(0, ids[part].flatten(), scaled.flatten(0, 1))
    if padding is not None:
        total[padding] = 0
    return total


def kronecker_factors(
    ids: Tensor, g: Tensor, rows: int, padding: int | None = None
) -> tuple[Tensor, Tensor]:
    """Σ a aᵀ and Σ g gᵀ over samples and tokens, with a the one-hot vector of the id.

    The first is diagonal: it comes as the number of tokens of each row, [rows]. The second is
    [d, d]. Tokens of the padding row count in neither.
    """
    ids, g = ids.flatten(), g.flatten(0, 1)
    if padding is not None:
        ids, g = ids[ids != padding], g[ids != padding]
    counts = torch.bincount(ids, minlength=rows)
    return counts.to(accumulator(g, 0).dtype), output_factor(g[None])


def unit_gates(
    ids: Tensor,
    g: Tensor,
    weight: Tensor,
    padding: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """⟨row, its gradient⟩ by sample, [B, rows], sparse: an entry a row that the sample uses.

    `weight` is [rows, d]; the result is a coalesced COO tensor of at most B·T entries.
    """
    parts = [(wide(weight[ids[part]]) * wide(g[part])).sum(-1) for part in _samples(g, chunk_bytes)]
    return _by_row(ids, torch.cat(parts), len(weight), padding)


def unit_squared_norms(
    ids: Tensor, g: Tensor, rows: int, padding: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Squared norm of each row's gradient by sample, [B, rows], sparse as `unit_gates`."""
    indices, values = [], []
    for part in _samples(g, chunk_bytes):
        gradients = _by_row(ids[part], wide(g[part]), rows, padding)
        first = torch.tensor([[part.start], [0]], device=ids.device)
        indices.append(gradients.indices() + first)
        values.append(gradients.values().square().sum(1))
    return torch.sparse_coo_tensor(
        torch.cat(indices, 1),
        torch.cat(values),
        (len(ids), rows),
        check_invariants=False,
        is_coalesced=True,
    )


def _by_row(ids: Tensor, values: Tensor, rows: int, padding: int | None) -> Tensor:
    """Values of tokens, [B, T, …], summed over equal ids of a sample: sparse [B, rows, …]."""
    samples = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    used = slice(None) if padding is None else ids.flatten() != padding
    indices = torch.stack([samples.flatten(), ids.flatten()])[:, used]
    size = (len(ids), rows, *values.shape[2:])
    return torch.sparse_coo_tensor(
        indices, values.flatten(0, 1)[used], size, check_invariants=False
    ).coalesce()


def _samples(g: Tensor, chunk_bytes: int) -> list[slice]:
    """Slices of samples, as many at a time as fit."""
    samples = max(1, chunk_bytes // (g[:1].numel() * accumulator(g, 0).element_size() or 1))
    return [slice(s, s + samples) for s in range(0, max(1, len(g)), samples)]
