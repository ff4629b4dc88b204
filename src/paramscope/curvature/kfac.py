"""Kronecker-factored curvature of the linear layers inside a model's blocks, and its directions.

For the mean negative log-likelihood over W predicted tokens, a layer's block of G is
Σ_s E vec(Σ_t g_t a_tᵀ) vec(Σ_t g_t a_tᵀ)ᵀ / W, with a_t the layer's input at a token and g_t the
gradient of its output, of labels drawn as in `labels`. Without the products between tokens, and
with gradients taken as independent of inputs, what is left is S ⊗ A:

    A = Σ_st a_t a_tᵀ / W,    S = E Σ_st g_t g_tᵀ / W,

so that entry (i, j) of a weight [p, d] has the curvature S_ii A_jj, and the direction u_i v_jᵀ of
two eigenvectors s_i a_j, in the units of `ggn`. A token that predicts nothing, a pad or the last
of a sequence, has no gradient; its input is left out too, or A would be of other tokens than S.

Sources: Martens and Grosse 2015 (arXiv:1503.05671); for weights shared over tokens Eschenhagen
et al. 2023 (arXiv:2311.00636), where this is "expand"; for curvature corrected in the
eigenbasis George et al. 2018 (arXiv:1806.03884).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.curvature.passes import Passes
from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.sequences import Sequences
from paramscope.persample.graphs import Graph
from paramscope.persample.layers import is_linear
from paramscope.persample.linear import output_factor, squared_sum, token_squared_sum, with_one
from paramscope.persample.precision import wide


@dataclass(frozen=True)
class Factors:
    """A layer's Kronecker factors, in float64.

    Attributes:
        A: mean of a aᵀ over tokens, [d, d]; with the bias [d+1, d+1], its input 1 last.
        S: mean of g gᵀ over tokens and draws, [p, p].
        tokens: predicted tokens that they are of.
    """

    A: Tensor
    S: Tensor
    tokens: int


@dataclass(frozen=True)
class Directions:
    """A layer's eigen-directions: its weight is U_S C U_Aᵀ with coefficients C [p, d].

    Attributes:
        U_A: eigenvectors of A as columns, eigenvalues rising, [d, d].
        U_S: eigenvectors of S likewise, [p, p].
        curvature: of each coefficient, [p, d].
    """

    U_A: Tensor
    U_S: Tensor
    curvature: Tensor


def factored_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers inside the blocks, by name.

    Raises:
        RequestError: the model has no blocks.
    """
    return {
        f"{block}.{name}": module
        for block, inside in blocks(model)
        for name, module in inside.named_modules()
        if is_linear(module)
    }


def factor_bytes(model: PreTrainedModel) -> int:
    """Memory that the factors take, 8 bytes an entry."""
    shapes = [module.get_parameter("weight").shape for module in factored_layers(model).values()]
    return 8 * sum(d**2 + p**2 for d, p in shapes)


def kfac_factors(
    model: PreTrainedModel,
    sequences: Sequences,
    draws: range,
    *,
    seed: int,
    batch_size: int,
    graph: Graph = "whole",
    bias: bool = False,
) -> dict[str, Factors]:
    """The factors of each linear layer inside the blocks, by the layer's name.

    The draws are those of `ggn_draws`: they hang on (seed, sequence names, number) alone.

    Args:
        bias: count each layer's bias as the weight of an input that is 1.

    Raises:
        UnknownLayerError, RequestError: as `ggn_draws`; or a layer that is called more than
            once a forward.
    """
    layers = factored_layers(model)
    passes = Passes(model, sequences, batch_size, graph)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def take(batch: Sequences, k: int, name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        if name not in layers:
            return
        if a.shape[1] != batch.ids.shape[1]:
            raise RequestError(f"{name} is called more than once a forward: it has no factors")
        if k == 0:  # the inputs of all draws are the same
            x = with_one(a) if bias and module.bias is not None else a
            _add(inputs, name, x[:, :-1][batch.predicted])
        _add(outputs, name, g[:, :-1][batch.predicted])

    for drawn in passes.batches(draws, seed, "K-FAC"):
        drawn.backward(partial(take, drawn.batch))
    tokens = sequences.n_predicted
    return {
        name: Factors(inputs[name] / tokens, outputs[name] / (tokens * len(draws)), tokens)
        for name in layers
    }


def eigen(factors: Factors) -> Directions:
    """The directions of S ⊗ A and their curvature, s_i a_j ≥ 0, in float64.

    An eigenvector's largest entry is positive, so that its sign is no accident of the solver.
    """
    a, U_A = _eigenvectors(factors.A)
    s, U_S = _eigenvectors(factors.S)
    return Directions(U_A, U_S, torch.outer(s, a))


def corrected(
    model: PreTrainedModel,
    sequences: Sequences,
    directions: Mapping[str, Directions],
    draws: range,
    *,
    seed: int,
    batch_size: int,
    graph: Graph = "whole",
) -> dict[str, Directions]:
    """The same directions with G's own diagonal along them for their curvature.

    That is the mean square of each sequence's gradient in the basis, products between tokens
    included, and unbiased whether or not the factors' assumptions hold. Other draws than those
    of the factors keep the choice of the basis out of it.

    Source: George et al. 2018 (arXiv:1806.03884), EKFAC.

    Raises:
        UnknownLayerError, RequestError: as `ggn_draws`.
    """
    passes = Passes(model, sequences, batch_size, graph)
    like = wide(next(model.parameters()).detach())
    bases = {name: (x.U_A.to(like), x.U_S.to(like)) for name, x in directions.items()}
    totals = {name: torch.zeros_like(x.curvature).to(like) for name, x in directions.items()}

    def take(k: int, name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        if name not in bases:
            return
        U_A, U_S = bases[name]
        x = with_one(a) if len(U_A) > a.shape[-1] else a
        square = token_squared_sum if name in passes.local else squared_sum
        square(wide(x) @ U_A, wide(g) @ U_S, totals[name])

    for drawn in passes.batches(draws, seed, "EKFAC"):
        drawn.backward(take)
    n = sequences.n_predicted * len(draws)
    return {
        name: replace(x, curvature=(totals[name] / n).to(x.curvature))
        for name, x in directions.items()
    }


def _add(totals: dict[str, Tensor], name: str, rows: Tensor) -> None:
    """Add Σ x xᵀ of `rows` [N, n]: a batch's in its own format, their sum in float64."""
    factor = output_factor(rows[None]).double()
    factor = (factor + factor.T) / 2  # to the last bit symmetric
    totals[name] = totals[name].add_(factor) if name in totals else factor


def _eigenvectors(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0 by rounding, and eigenvectors as columns with a sign."""
    values, vectors = torch.linalg.eigh(factor.double())
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values.clamp(min=0), vectors * largest.sign()
