"""A head and what it shares with the token embedding.

Logits are z = h Eᵀ with h of shape [B, T, d]; with r = ∂L/∂z of shape [B, T, V], the head's
part of sample s's gradient is R_s = r_sᵀ h_s, [V, d]. A tied head adds it to the embedding's
own part, so the square of the sum has a cross term.
"""

import torch
from torch import Tensor

from paramscope.persample.linear import CHUNK_BYTES, blocks
from paramscope.persample.precision import accumulator, wide


def softmax_ggn(p: Tensor, h: Tensor) -> Tensor:
    """Σ over samples and tokens of p(1 − p) h², [V, d]: the head's Gauss–Newton diagonal.

    Exact, since the softmax's Hessian diag(p) − p pᵀ has the diagonal p(1 − p). `p` [..., V]
    is 0 at tokens that count for nothing; `h` is [..., d].
    """
    p, h = wide(p).flatten(0, -2), wide(h).flatten(0, -2)
    return torch.addcmul(p, p, p, value=-1).T @ h.square()


def own_tokens(r: Tensor, ids: Tensor) -> Tensor:
    """r at each sample's own tokens, [B, T, T]: entry s, t, u is r [s, t, ids[s, u]]."""
    B, T = ids.shape
    return r.gather(2, ids[:, None, :].expand(B, r.shape[1], T))


def cross_term(ids: Tensor, g: Tensor, h: Tensor, own: Tensor, into: Tensor) -> Tensor:
    """Add Σ_s 2 · (embedding's part) ∘ (head's part) of each sample's gradient to `into` [V, d].

    Row v of the embedding's part is Σ of g_t over the tokens with i_t = v, so the product
    needs the head's part at the sample's own tokens alone: row i_t of R_s for each t, from
    `own` as `own_tokens` gives it.
    """
    head = own.transpose(1, 2) @ h.to(own.dtype)
    return into.index_add_(0, ids.flatten(), (2 * wide(g) * wide(head)).flatten(0, 1))


def token_cross_norms(
    ids: Tensor, g: Tensor, h: Tensor, r: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """2⟨g_t, row i_t of the head's part R_s⟩ of each token, [B, T].

    Summed over the tokens with i_t = v, what row v's squared norm has beyond the embedding's
    and the head's own; over all tokens, what the whole matrix's has. `h` [B, U, d] and `r`
    [B, U, V] may count other tokens than `ids` and `g`, where either module is called twice.
    """
    B, T = ids.shape
    U = h.shape[1]
    cross = accumulator(g, B, T)
    for samples, tokens in blocks(B, T, U * cross.element_size(), chunk_bytes):
        own = ids[samples, tokens]
        by_token = r[samples].gather(2, own[:, None].expand(-1, U, -1))  # r at [s, i_t]
        head = wide(by_token).mT @ wide(h[samples])
        cross[samples, tokens] = 2 * (wide(g[samples, tokens]) * head).sum(-1)
    return cross


def cross_norms(
    ids: Tensor,
    g: Tensor,
    h: Tensor,
    r: Tensor,
    padding: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """2⟨embedding's part, head's part⟩ of each sample's gradient, [B], in float32 at least.

    The shared matrix's squared norm is the embedding's plus the head's plus this. The row
    `padding` has no embedding's part.

    Source: Li et al. 2022 (arXiv:2110.05679).
    """
    cross = token_cross_norms(ids, g, h, r, chunk_bytes)
    return (cross if padding is None else cross.masked_fill(ids == padding, 0)).sum(1)
