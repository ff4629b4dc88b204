"""SparseGPT's answer in float64 by explicit inverses, for each layer of a model as it was pruned.

Of a row, the weights from column j on have the inverse of H[j:, j:] for their own; no Cholesky
factor is made. Inputs come from hooks on the whole model's own forward, a sequence at a time,
with all layers before already pruned by the code under test.

Source: Frantar and Alistarh 2023 (arXiv:2301.00774), section 3.
"""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.compression.layers import prunable, weight_of
from paramscope.compression.methods import prune
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.persample.layers import is_conv1d

BLOCKSIZE = 128
DAMPING = 0.01


class _ReachedError(Exception):
    """Ends a forward at the layer."""


def compare(model: PreTrainedModel, text: Sequences, density: float, batch: int) -> list[dict]:
    """A row a layer: its loss ‖(W − W')X‖² / ‖WX‖² in float64, and the oracle's."""
    pruned = copy.deepcopy(model)
    masks = prune(pruned, text, method="sparsegpt", density=density, batch_size=batch).masks
    answers = prunable(pruned)
    walking = copy.deepcopy(model)  # dense from the layer under test on
    rows = []
    for name, layer in tqdm(prunable(walking).items(), f"float64 at density {density:g}"):
        H = second_moments(walking, layer, text)
        weight, answer = weight_of(layer), weight_of(answers[name])
        expected, keep = brain_surgeon(weight, H, density)
        mask = masks[f"{name}.weight"]
        agreement = (mask.T if is_conv1d(layer) else mask) == keep
        whole = _energy(weight, H)
        lost, least = (_energy(weight - new, H) / whole for new in (answer, expected))
        rows.append(
            {"tensor": f"{name}.weight", "density": density, "loss": lost, "loss_float64": least,
             "deviation": lost / least - 1, "agreement": float(agreement.double().mean())}
        )  # fmt: skip
        weight.copy_(answer)
    return rows


@torch.no_grad()
def second_moments(model: PreTrainedModel, layer: nn.Module, text: Sequences) -> Tensor:
    """H = 2/n Σ xxᵀ over the inputs that `layer` gets at the n tokens of the text, float64."""
    total: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten(0, -2).double()
        total[:] = [x.T @ x + sum(total)]
        raise _ReachedError

    handle = layer.register_forward_pre_hook(take)
    for ids, length in zip(text.ids.split(1), text.lengths.tolist(), strict=True):
        with suppress(_ReachedError):
            logits(model, ids[:, :length])
    handle.remove()
    return 2 / int(text.lengths.sum()) * total[0]


def brain_surgeon(
    weight: Tensor, H: Tensor, density: float, blocksize: int = BLOCKSIZE
) -> tuple[Tensor, Tensor]:
    """New weights and what is kept of them, [out, in], in float64.

    Each block of columns has one threshold, on the weights as they are when it is reached; the
    count that is kept is exact over the layer. A dead input's weights are the first to go.
    """
    W = weight.double().clone()
    p, d = W.shape
    live = H.diagonal() > 0
    mean = H.diagonal()[live].mean()
    H = H + torch.diag(DAMPING * mean + torch.where(live, 0, mean))
    keep = torch.zeros(d, p, dtype=torch.bool)
    kept = 0
    for start in range(0, d, blocksize):
        end = min(start + blocksize, d)
        firsts = _first_rows(H[start:, start:], end - start)
        alone = torch.stack([row[0] for row in firsts])[:, None]
        worth = (W[:, start:end].T ** 2 / alone).masked_fill(~live[start:end, None], 0)
        count = round(density * p * end) - kept
        best = worth.flatten().argsort(descending=True, stable=True)[:count]
        keep[start:end].view(-1)[best] = True
        kept += count
        for j, row in zip(range(start, end), firsts, strict=True):
            error = torch.where(keep[j], 0, W[:, j]) / row[0]
            W[:, j:] -= error[:, None] * row
    return W * keep.T, keep.T


def _first_rows(H: Tensor, count: int) -> list[Tensor]:
    """The first row of the inverse of H[j:, j:], for the first `count` j.

    Leaving the first row and column out of a matrix takes their outer product, over their
    corner, off the rest of its inverse: only `count` rows of that are ever needed.
    """
    rows = torch.linalg.inv(H)[:count].clone()
    found = []
    for _ in range(count):
        first = rows[0]
        found.append(first)
        rows = rows[1:, 1:] - rows[1:, :1] * (first[1:] / first[0])
    return found


def _energy(weight: Tensor, H: Tensor) -> float:
    """‖WX‖², but for H's constant."""
    W = weight.double()
    return float(((W @ H) * W).sum())
