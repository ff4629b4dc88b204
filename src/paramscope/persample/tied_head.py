"""A head and what it shares with the token embedding.

Logits are z = h Eᵀ with h of shape [B, T, d]; with r = ∂L/∂z of shape [B, T, V], the head's
part of sample s's gradient is R_s = r_sᵀ h_s, [V, d]. A tied head adds it to the embedding's
own part, so the square of the sum has a cross term.
"""

from torch import Tensor

from paramscope.persample.precision import accumulator, wide


def softmax_ggn(p: Tensor, h: Tensor) -> Tensor:
    """Σ over samples and tokens of p(1 − p) h², [V, d]: the head's Gauss–Newton diagonal.

    Exact, since the softmax's Hessian diag(p) − p pᵀ has the diagonal p(1 − p). `p` [B, T, V]
    is 0 at tokens that count for nothing.
    """
    p, h = wide(p).flatten(0, 1), wide(h).flatten(0, 1)
    return (p - p.square()).T @ h.square()


def cross_term(ids: Tensor, g: Tensor, h: Tensor, r: Tensor) -> Tensor:
    """Σ_s 2 · (embedding's part) ∘ (head's part) of each sample's gradient, [V, d].

    Row v of the embedding's part is Σ of g_t over the tokens with i_t = v, so the product
    needs the head's part at the sample's own tokens alone: row i_t of R_s for each t.
    """
    B, T = ids.shape
    by_token = r.gather(2, ids[:, None, :].expand(B, r.shape[1], T))  # r at [s, i_t]
    head = by_token.transpose(1, 2) @ h.to(r.dtype)
    total = accumulator(g, r.shape[-1], g.shape[-1])
    return total.index_add_(0, ids.flatten(), (2 * wide(g) * wide(head)).flatten(0, 1))
