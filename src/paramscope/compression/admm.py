"""Layerwise ADMM: weights that rebuild a layer's outputs, drawn step by step to sparse ones.

Minimises ‖(W − W')X‖² over W' that obey a mask. With the inputs scaled to norm 1, so that the
magnitude of a weight says what it is worth, an iteration takes Z, the sparse part of W' + V;
adds W' − Z to V; and solves exactly for W' that rebuilds the outputs and is near Z − V. The mask
is chosen anew in the first three quarters of the iterations, at a density that comes down by a
cubic schedule, and stays from there on.

Source: Boža 2024 (arXiv:2401.02938); for pruning by ADMM at large, ELSA (arXiv:2510.01650).
"""

import torch
from torch import Tensor

from paramscope.compression.one_layer import Answer, Ask
from paramscope.compression.patterns import choose
from paramscope.compression.statistics import SecondMoments, Statistic
from paramscope.errors import RequestError

PENALTY = 1.0  # on ‖W' − Z + V‖², where inputs have norm 1


def admm(weight: Tensor, statistic: Statistic | None, ask: Ask) -> Answer:
    """Prune a layer [out, in] and solve for what is kept of it; exact count over the layer.

    Raises:
        RequestError: the second moments have no Cholesky factor in the format chosen.
    """
    if not isinstance(statistic, SecondMoments):
        raise TypeError("ADMM needs the second moments of the layer's inputs")
    H, norms = statistic.full(), statistic.squares.sqrt()
    dead = norms == 0
    norms = norms.masked_fill(dead, 1)
    H.div_(norms).div_(norms[:, None])
    damping = ask.options.damping
    H.diagonal().add_(damping)
    sparse = torch.empty(len(H), len(weight), dtype=H.dtype, device=H.device)
    dense = sparse.copy_(weight.T).mul_(norms[:, None]).clone()
    target = H @ dense
    H.diagonal().add_(PENALTY)
    factor, failed = torch.linalg.cholesky_ex(H)
    if int(failed):
        raise RequestError("second moments have no Cholesky factor; compute in float64")
    del H
    choosing = max(1, ask.options.iterations * 3 // 4)
    V = torch.zeros_like(dense)
    mask = torch.ones_like(dense.T, dtype=torch.bool)
    for i in range(ask.options.iterations):
        V += dense
        if i < choosing:
            left = (1 - (i + 1) / choosing) ** 3
            density = ask.density + (1 - ask.density) * left
            scores = V.T.abs()
            scores[:, dead] = 0
            mask = choose(scores, density, ask.pattern, by_row=False, allowed=ask.allowed)
        torch.mul(V, mask.T, out=sparse)
        V -= sparse
        dense = torch.cholesky_solve(torch.sub(sparse, V).mul_(PENALTY).add_(target), factor)
    sparse = (dense + V).masked_fill_(~mask.T, 0).div_(norms[:, None])
    return Answer(mask, sparse.T, damping)
