"""The head's share of a draw: labels sampled from the model, and what they say of the head.

With p the softmax at a token, the loss has the logits' Hessian diag(p) − p pᵀ there. A draw
takes r = n^(−½) Σ_j s_j (onehot(y_j) − p): n labels y_j, stratified over the distribution by
one uniform, each with a sign s_j of its own. Signs leave only the terms j = j', whose labels
are distributed by p on average over j, so that E r rᵀ is the Hessian exactly. Several signed
labels, not one: where the model is sure of a token, one label is nearly always the same.

The gradient at the head's input is r E = n^(−½) (Σ_j s_j E[y_j] − (Σ_j s_j) p E), so that a
draw costs n rows of E a token and no pass over the vocabulary. All draws share p, p E and the
exact term of the head itself, which are made a few tokens at a time: no logits of a whole
batch are ever held.

Source: labels from the model's own distribution, Martens 2020 (arXiv:1412.1193), section 5.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramscope.artifacts.digest import seed_of
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import accumulator, wide
from paramscope.persample.tied_head import softmax_ggn

LABELS = 8  # signed labels a token and draw
CHUNK_BYTES = 2**20  # of logits held at a time
FEWEST_TOKENS = 128  # but never so few that the product with the head is slow


@dataclass(frozen=True)
class HeadDraws:
    """What a batch's draws say of the head and hand on to the body.

    Attributes:
        weight: the head's own Gauss–Newton diagonal times the predicted tokens, [V, d], exact.
        bias: likewise for a bias, [V].
        cotangents: the gradient of each draw at the head's input, [B, T, d].
        own: r of each draw at its sequence's own tokens, [B, T, T]: entry s, t, u is r at
            token t of sequence s for the vocabulary entry that is its token u. Empty unless
            asked for.
    """

    weight: Tensor
    bias: Tensor
    cotangents: list[Tensor]
    own: list[Tensor]


@torch.no_grad()
def head_draws(
    head: nn.Linear, h: Tensor, batch: Sequences, draws: range, seed: int, own: bool
) -> HeadDraws:
    """Draws of the batch from its last hidden state `h` [B, T, d], each unscaled.

    A draw hangs on (seed, sequence name, draw number) alone.
    """
    B, T = h.shape[:2]
    rows = batch.predicted.nonzero()  # [W, 2], sequence by sequence
    tokens = h[rows[:, 0], rows[:, 1]]
    chances = [_chances(batch, draw, seed).to(tokens.device) for draw in draws]
    weight, bias = accumulator(h, *head.weight.shape), accumulator(h, head.weight.shape[0])
    cotangents = [torch.zeros_like(h) for _ in draws]
    owns = [torch.zeros(B, T, T, dtype=wide(h[:0]).dtype, device=h.device) for _ in draws if own]
    size = max(FEWEST_TOKENS, CHUNK_BYTES // (4 * head.weight.shape[0]))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        at, x = rows[part], tokens[part]
        p = wide(F.linear(x, head.weight, head.bias)).softmax(-1)
        mean = wide(p.to(x.dtype) @ head.weight)  # p E
        total = p.cumsum(-1)
        for k, chance in enumerate(chances):
            labels, signs = _labels(total, chance[part])
            picked = _signed_rows(head.weight, labels, signs)
            surplus = signs.sum(1, keepdim=True)
            r_head = (picked - surplus * mean) / LABELS**0.5
            cotangents[k][at[:, 0], at[:, 1]] = r_head.to(h.dtype)
            if own:
                ids = batch.ids[at[:, 0]]
                here = torch.zeros(ids.shape, dtype=p.dtype, device=p.device)
                for j in range(LABELS):
                    here += signs[:, j, None] * (labels[:, j, None] == ids)
                here -= surplus * p.gather(1, ids)
                owns[k][at[:, 0], at[:, 1]] = here / LABELS**0.5
        del total
        weight += softmax_ggn(p, x)
        if head.bias is not None:
            bias += (p - p.square()).sum(0)
    return HeadDraws(weight, bias, cotangents, owns)


def _chances(batch: Sequences, draw: int, seed: int) -> Tensor:
    """Uniforms a predicted token, [W, 1 + LABELS]: one places its labels, the rest sign them."""
    parts = []
    for name, length in zip(batch.names, batch.lengths.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed_of(seed, "ggn", name, draw))
        parts.append(torch.rand(length - 1, 1 + LABELS, generator=generator, dtype=torch.float64))
    return torch.cat(parts)


def _labels(total: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Labels [W, n] from running sums of p [W, V], and signs [W, n]."""
    strata = torch.arange(LABELS, device=chances.device)
    points = ((chances[:, :1] + strata) / LABELS).to(total.dtype) * total[:, -1:]
    labels = torch.searchsorted(total, points, right=True).clamp_(max=total.shape[1] - 1)
    signs = torch.where(chances[:, 1:] < 0.5, -1.0, 1.0).to(total.dtype)
    return labels, signs


def _signed_rows(weight: Tensor, labels: Tensor, signs: Tensor) -> Tensor:
    """Σ_j s_j E[y_j], [W, d], in float32 at least."""
    rows = torch.zeros(len(labels), weight.shape[1], dtype=signs.dtype, device=weight.device)
    for j in range(labels.shape[1]):
        rows.addcmul_(wide(weight[labels[:, j]]), signs[:, j, None])
    return rows
