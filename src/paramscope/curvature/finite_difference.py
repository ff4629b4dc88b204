"""Diagonal of the true Hessian by central differences of gradients: a check without autograd's.

H_ii ≈ (∂_i L(θ + h e_i) − ∂_i L(θ − h e_i)) / 2h, in float64. The error is of the order of h²
from the third derivatives and of 1e-16/h from rounding.

Second differences of the loss itself, (L(θ + h) − 2 L(θ) + L(θ − h)) / h², are kept out: they
were 60 to 300% wrong on a ReLU network. Rounding is divided by h², so h has to be large; and a
unit that switches within the step adds its jump in slope divided by h, which says how many
kinks the step crosses, not how the loss curves. (A kink within the step spoils a difference of
gradients as well, but there h can be so small that few are.)

Source: Dennis and Schnabel 1996, Numerical Methods for Unconstrained Optimization, section 5.6.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.curvature.exact import check_size
from paramscope.errors import RequestError
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences


def finite_difference_diagonal(
    model: PreTrainedModel,
    sequences: Sequences,
    draws: range,
    *,
    seed: int = 0,
    batch_size: int,
    step: float = 1e-5,
) -> list[dict[str, Tensor]]:
    """diag H over `sequences`, by parameter name, each of its parameter's shape; a list of one.

    A parameter moves by h = `step` · max(|θ_i|, root mean square of its tensor, or 1 where the
    tensor is all zeros). Two gradients over all sequences an entry. Nothing is random: `draws`
    and `seed` have no effect. The model's weights are moved and put back, bit for bit.

    Raises:
        RequestError: weights not in float64, or more than `exact.LIMIT` parameters.
    """
    check_size(model, "finite_difference", gradients=2)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float64:
            raise RequestError(
                f"finite_difference needs float64, but {name} is {parameter.dtype}; differences in"
                " it would be rounding: run with --dtype float64"
            )
    size = sum(p.numel() for p in model.parameters())
    diagonal: dict[str, Tensor] = {}
    with tqdm(total=size, desc="finite differences", unit="entry") as progress:
        for name, parameter in model.named_parameters():
            flat = parameter.detach().view(-1)
            scale = float(flat.square().mean().sqrt()) or 1.0
            diagonal[name] = torch.zeros_like(parameter)
            for i in range(len(flat)):
                h = step * max(abs(float(flat[i])), scale)
                difference = _difference(model, sequences, batch_size, parameter, i, h)
                diagonal[name].view(-1)[i] = difference
                progress.update()
    return [diagonal]


def _difference(
    model: PreTrainedModel,
    sequences: Sequences,
    batch_size: int,
    parameter: Tensor,
    index: int,
    h: float,
) -> float:
    """The central difference of the gradient's entry over the step that float64 really took."""
    value = parameter.detach().view(-1)[index]  # a view: writing to it moves the weight
    middle = float(value)
    slopes = []
    try:
        for moved in (middle + h, middle - h):
            value.fill_(moved)
            slopes.append(_slope(model, sequences, batch_size, parameter, index))
    finally:
        value.fill_(middle)
    return (slopes[0] - slopes[1]) / ((middle + h) - (middle - h))


def _slope(
    model: PreTrainedModel, sequences: Sequences, batch_size: int, parameter: Tensor, index: int
) -> float:
    """∂L/∂θ_i of the mean loss over all sequences."""
    total = 0.0
    for batch in sequences.batches(batch_size):
        with sdpa_kernel(SDPBackend.MATH):
            loss = mean_loss(model, batch) * (batch.n_predicted / sequences.n_predicted)
        (gradient,) = torch.autograd.grad(loss, parameter, materialize_grads=True)
        total += float(gradient.view(-1)[index])
    return total
