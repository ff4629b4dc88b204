"""SparseGPT: prune column by column, and let the columns after take up what that did.

Of a layer with inputs X, H = 2/n XXᵀ, and U upper with UᵀU = H⁻¹, pruning weight w_j of a row
costs (w_j / U_jj)² and is best made up for by −w_j / U_jj · U_j,j: on the weights from j on.

Source: Frantar and Alistarh 2023 (arXiv:2301.00774); U without the inverse itself: see
`inverse_factor`. Two ways in which the published code differs: it keeps one weight a block less
than asked, and it sets the weights of dead inputs to 0, where here they are the first to go and
stay as they are if the density keeps them.
"""

import torch
from torch import Tensor

from paramscope.compression.one_layer import Answer, Ask
from paramscope.compression.patterns import kept_of, largest, largest_two_of_four
from paramscope.compression.statistics import SecondMoments, Statistic
from paramscope.rehearsal import rounds

INNER = 16  # columns that are updated one at a time; a multiple of 4, for 2:4


def sparsegpt(weight: Tensor, statistic: Statistic | None, ask: Ask) -> Answer:
    """Prune a layer [out, in] and update what is kept of it.

    A block of columns has one threshold, on its weights as they are when it is reached. Over
    the layer the count that is kept is exact.

    Raises:
        RequestError: the inputs' second moments have no Cholesky factor at any damping.
    """
    if not isinstance(statistic, SecondMoments):
        raise TypeError("SparseGPT needs the second moments of the layer's inputs")
    U, damping = statistic.factor(ask.options.damping)
    dead = statistic.squares == 0
    d, p = len(U), len(weight)
    allowed = None if ask.allowed is None else ask.allowed.T
    work = torch.empty(d, p, dtype=U.dtype, device=U.device).copy_(weight.T)
    mask = torch.zeros(d, p, dtype=torch.bool, device=U.device)
    scale = U.diagonal()[:, None]
    size = ask.options.blocksize
    errors = torch.empty(min(size, d), p, dtype=U.dtype, device=U.device)
    ends = 1 if ask.pattern == "2:4" else 0  # else all columns are updated in place
    short = 0  # weights that earlier blocks were to keep and could not
    for start in rounds(range(0, d, size), 1):
        end = min(start + size, d)
        if ask.pattern == "unstructured":
            scores = (work[start:end] / scale[start:end]).square_()
            scores[dead[start:end]] = 0
            count = kept_of(ask.density, end * p) - kept_of(ask.density, start * p) + short
            if allowed is not None:
                scores.masked_fill_(~allowed[start:end], -1)
                short = max(0, count - int(allowed[start:end].sum()))
                count -= short
            mask[start:end] = largest(scores.view(1, -1), count).view(scores.shape)
        for first in rounds(range(start, end, INNER), ends):
            last = min(first + INNER, end)
            for j in rounds(range(first, last), 1):
                if ask.pattern == "2:4" and j % 4 == 0:
                    mask[j : j + 4] = _two_of_four(work[j : j + 4] / scale[j : j + 4])
                error = errors[j - start]
                torch.div(work[j], scale[j], out=error).masked_fill_(mask[j], 0)
                work[j + 1 : last].addr_(U[j, j + 1 : last], error, alpha=-1)
            done = errors[first - start : last - start]
            work[last:end].addmm_(U[first:last, last:end].T, done, alpha=-1)
        work[end:].addmm_(U[start:end, end:].T, errors[: end - start], alpha=-1)
    work.masked_fill_(mask.logical_not_(), 0)
    return Answer(mask.logical_not_().T, work.T, damping)


def _two_of_four(scaled: Tensor) -> Tensor:
    """The two largest of four columns, [4, p], in each row."""
    return largest_two_of_four(scaled.T.square()).T
