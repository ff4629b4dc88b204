"""Diagonal of the true Hessian, every entry: for tiny models, and as the others' reference.

H_ii = e_iᵀ ∇(∂L/∂θ_i): the gradient's graph is kept, and one backward through it from each
element of the gradient gives a row of H, of which the diagonal's entry is taken. Exact up to
rounding, at one double backward an entry (Pearlmutter 1994).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.curvature.products import loss_gradients
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import accumulator

LIMIT = 200_000  # entries: hours on one core
CHUNK = 32  # rows of H that one backward takes; more were no faster


def exact_diagonal(
    model: PreTrainedModel,
    sequences: Sequences,
    draws: range,
    *,
    seed: int = 0,
    batch_size: int,
) -> list[dict[str, Tensor]]:
    """diag H over `sequences`, by parameter name, each of its parameter's shape; a list of one.

    Nothing is random: `draws` and `seed` have no effect, and there is one diagonal whatever
    they are. A batch's graph is held, and the activations of `CHUNK` backwards through it.

    Raises:
        RequestError: the model has more than `LIMIT` parameters.
    """
    check_size(model, "exact", gradients=2)
    parameters = dict(model.named_parameters())
    diagonal = {name: accumulator(p, *p.shape) for name, p in parameters.items()}
    size = sum(p.numel() for p in parameters.values())
    batches = -(-len(sequences) // batch_size)
    with tqdm(total=batches * size, desc="exact H", unit="entry") as progress:
        for batch in sequences.batches(batch_size):
            share = batch.n_predicted / sequences.n_predicted
            gradients = loss_gradients(model, batch, parameters, share)
            for name, parameter in parameters.items():
                flat = diagonal[name].view(-1)
                for start, part in _diagonal(gradients[name], parameter):
                    flat[start : start + len(part)] += part
                    progress.update(len(part))
    return [diagonal]


def _diagonal(gradient: Tensor, parameter: Tensor) -> Iterator[tuple[int, Tensor]]:
    """∂gradient_i / ∂parameter_i, `CHUNK` at a time: the first i of each and their values."""
    n = parameter.numel()
    for start in range(0, n, CHUNK):
        index = torch.arange(start, min(start + CHUNK, n), device=parameter.device)
        each = torch.arange(len(index), device=parameter.device)
        if not gradient.requires_grad:  # the loss is linear in the parameter
            yield start, torch.zeros_like(index, dtype=parameter.dtype)
            continue
        units = torch.zeros(len(index), n, dtype=parameter.dtype, device=parameter.device)
        units[each, index] = 1
        (rows,) = torch.autograd.grad(
            gradient,
            parameter,
            units.view(-1, *parameter.shape),
            retain_graph=True,
            is_grads_batched=True,
            materialize_grads=True,
        )
        yield start, rows.reshape(len(index), n)[each, index]


def check_size(model: PreTrainedModel, method: str, gradients: int) -> None:
    """Whether a method that goes entry by entry can take a model of this size.

    `gradients` is what an entry costs, in gradients of the loss.

    Raises:
        RequestError: more than `LIMIT` parameters.
    """
    size = sum(p.numel() for p in model.parameters())
    if size > LIMIT:
        raise RequestError(
            f"{method}: {size:,} entries would cost about {gradients * size:,} gradients of the"
            f" loss (the limit is {LIMIT:,} entries); take the method ggn or hutchinson"
        )
