"""The oracles are outer products token by token, every label in turn, and G of other modules."""

import numpy as np
import pytest
import torch

from paramscope.curvature.block import Row, ggn_blocks
from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.kfac import (
    Directions,
    Factors,
    corrected,
    eigen,
    factor_bytes,
    factored_layers,
    kfac_factors,
)
from paramscope.curvature.passes import Passes
from paramscope.errors import RequestError
from paramscope.models.load import logits
from paramscope.models.sequences import padded
from paramscope.persample.layers import is_conv1d
from tests.unit.conftest import make_tiny

EXACT = {"rtol": 1e-9, "atol": 1e-14}  # float64 sums in another order


def by_row(layers, name, value):
    """A weight's tensor as [p, d], as GPT-2 does not store it."""
    return value.T if is_conv1d(layers[name]) else value


def taken(model, sequences, draws, seed):
    """(a, g) of each predicted token, one by one, in a list a layer and draw."""
    passes = Passes(model, sequences, len(sequences))
    text, got = passes.sequences, {}

    def take(k, name, module, a, g):
        if name in layers:
            got[name, k] = [
                (a[s, t].clone(), g[s, t].clone())
                for s, length in enumerate(text.lengths.tolist())
                for t in range(length - 1)
            ]

    layers = factored_layers(model)
    for drawn in passes.batches(draws, seed, "test"):
        drawn.backward(take)
    return got


def exact_output_factors(model, sequences):
    """Σ over tokens and every label of p · (g gᵀ), less the mean's square, / W, by layer."""
    seen = {}

    def keep(name):
        def hook(module, args, output):
            seen[name] = output
            return output

        return hook

    layers = factored_layers(model)
    handles = [m.register_forward_hook(keep(n)) for n, m in layers.items()]
    total = dict.fromkeys(layers, 0.0)
    for i in range(len(sequences)):
        length = int(sequences.lengths[i])
        z = logits(model, sequences.ids[i : i + 1, :length])[0, :-1]
        for t in range(length - 1):
            p = z[t].detach().softmax(-1)
            rows = torch.autograd.grad(
                z[t], list(seen.values()), torch.eye(len(p), dtype=z.dtype),
                is_grads_batched=True, retain_graph=True,
            )  # fmt: skip
            for name, J in zip(seen, rows, strict=True):
                J = J.reshape(len(p), length, -1)  # of each label's logit, at every token
                mean = torch.einsum("v,vtp->tp", p, J)
                second = torch.einsum("v,vtp,vtq->pq", p, J, J)
                total[name] += (second - mean.T @ mean) / sequences.n_predicted
    for handle in handles:
        handle.remove()
    return total


def test_the_layers_are_the_linear_ones_in_the_blocks(tiny):
    layers = factored_layers(tiny)
    per_block = {"OPTForCausalLM": 6, "GPT2LMHeadModel": 4, "LlamaForCausalLM": 7}
    assert len(layers) == 2 * per_block[type(tiny).__name__]
    assert tiny.get_output_embeddings() not in layers.values()
    shapes = [m.weight.shape for m in layers.values()]
    assert factor_bytes(tiny) == 8 * sum(d * d + p * p for d, p in shapes)


def test_factors_are_mean_outer_products_of_the_same_inputs_and_gradients(tiny, sequences):
    factors = kfac_factors(tiny, sequences, range(2), seed=0, batch_size=4)
    pairs = taken(tiny, sequences, range(2), seed=0)
    assert factors.keys() == factored_layers(tiny).keys()
    for name, x in factors.items():
        A = np.mean([np.outer(a, a) for a, _ in pairs[name, 0]], 0)
        S = np.mean([np.outer(g, g) for k in (0, 1) for _, g in pairs[name, k]], 0)
        torch.testing.assert_close(x.A, torch.from_numpy(A), **EXACT)
        torch.testing.assert_close(x.S, torch.from_numpy(S), **EXACT)
        assert x.tokens == len(pairs[name, 0]) == sequences.n_predicted
        for factor in (x.A, x.S):
            assert torch.equal(factor, factor.T)
            values = torch.linalg.eigvalsh(factor)
            assert values[0] >= -1e-12 * values[-1]
            assert values[-1] > 0


def test_batches_and_draws_add_up(tiny, sequences):
    whole = kfac_factors(tiny, sequences, range(3), seed=0, batch_size=6)
    small = kfac_factors(tiny, sequences, range(3), seed=0, batch_size=1, graph="layerwise")
    first = kfac_factors(tiny, sequences, range(1), seed=0, batch_size=4)
    others = kfac_factors(tiny, sequences, range(1, 3), seed=0, batch_size=2)
    for name, x in whole.items():
        torch.testing.assert_close(small[name].A, x.A, **EXACT)
        torch.testing.assert_close(small[name].S, x.S, **EXACT)
        torch.testing.assert_close(first[name].A, x.A, **EXACT)
        torch.testing.assert_close((first[name].S + 2 * others[name].S) / 3, x.S, **EXACT)
        assert not torch.allclose(first[name].S, others[name].S, rtol=1e-2)


def test_the_outputs_factor_is_unbiased(tiny, sequences):
    """z-test against every label in turn, on the diagonal and off it, 150 draws."""
    exact = exact_output_factors(tiny, sequences)
    each = [
        kfac_factors(tiny, sequences, range(k, k + 1), seed=0, batch_size=6) for k in range(150)
    ]
    scores = []
    for name, truth in exact.items():
        S = torch.stack([x[name].S for x in each])
        mean, error = S.mean(0), S.std(0) / len(each) ** 0.5
        noisy = error > 1e-12 * truth.abs().max()
        torch.testing.assert_close(mean[~noisy], truth[~noisy], rtol=1e-9, atol=1e-12)
        scores.append(((mean - truth) / error)[noisy].flatten())
        # And no layer is off as a whole: its trace within 4.5 errors.
        traces = S.diagonal(dim1=1, dim2=2).sum(1)
        off = abs(float(traces.mean() - truth.trace()))
        assert off <= 4.5 * float(traces.std()) / len(each) ** 0.5, name
    z = torch.cat(scores)  # entries share noise: deviation and tails are judged, loosely
    assert 0.7 < float(z.std()) < 1.3
    assert abs(float(z.mean())) < 0.5
    assert float(z.abs().quantile(0.99)) < 4.5


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_of_one_predicted_token_the_product_is_the_block_itself(kind):
    """One input and no second token: nothing is left out, so S ⊗ A is G's block to rounding."""
    model = make_tiny(kind, tied=kind != "llama")
    layers = factored_layers(model)
    text = padded([[5, 9]], ["doc"])
    factors = kfac_factors(model, text, range(3), seed=2, batch_size=1, bias=True)
    diagonals = ggn_draws(model, text, range(3), seed=2, batch_size=1)
    for name, module in layers.items():
        x = factors[name]
        d, p = sorted_shape(module)
        assert x.A.shape == (d + (module.bias is not None),) * 2
        diagonal = torch.stack([v[f"{name}.weight"] for v in diagonals]).mean(0)
        product = torch.outer(x.S.diagonal(), x.A.diagonal()[:d])
        torch.testing.assert_close(product, by_row(layers, name, diagonal), **EXACT)
        row = Row(name, p - 1, len(x.A))
        blocks = ggn_blocks(model, text, [row], range(3), seed=2, batch_size=1)
        block = torch.stack([b[row.unit] for b in blocks]).mean(0)
        torch.testing.assert_close(x.S[p - 1, p - 1] * x.A, block, **EXACT)
    assert diagonal.max() > 0


def sorted_shape(module):
    """(d, p) of a linear layer."""
    return module.weight.shape if is_conv1d(module) else module.weight.shape[::-1]


def test_directions_are_those_of_the_kronecker_product():
    torch.manual_seed(0)
    a, g = torch.randn(9, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    factors = Factors(a.T @ a / 9, g.T @ g / 2, 9)  # S has an eigenvalue 0
    x = eigen(factors)
    assert x.curvature.shape == (3, 4)
    assert (x.curvature >= 0).all()
    full = torch.kron(factors.S, factors.A)
    for i in range(3):
        for j in range(4):
            direction = torch.outer(x.U_S[:, i], x.U_A[:, j]).flatten()
            assert float(direction.norm()) == pytest.approx(1)
            torch.testing.assert_close(full @ direction, x.curvature[i, j] * direction, **EXACT)
    for vectors in (x.U_A, x.U_S):
        assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()
    again = eigen(Factors(factors.A.clone(), factors.S.clone(), 9))
    assert torch.equal(again.U_A, x.U_A)


def test_corrected_curvature_is_the_mean_square_in_the_basis(tiny_opt, sequences):
    """By the definition, sequence by sequence (token by token where that is exact)."""
    factors = kfac_factors(tiny_opt, sequences, range(2), seed=0, batch_size=6)
    directions = {name: eigen(x) for name, x in factors.items()}
    draws = range(2, 4)
    got = corrected(tiny_opt, sequences, directions, draws, seed=0, batch_size=4)
    passes = Passes(tiny_opt, sequences, 6)
    expected = {name: torch.zeros_like(x.curvature) for name, x in directions.items()}

    def take(k, name, module, a, g):
        if name not in directions:
            return
        x = directions[name]
        if name in passes.local:
            gradients = (torch.outer(g[s, t], a[s, t]) for s in range(6) for t in range(len(a[s])))
        else:
            gradients = (g[s].T @ a[s] for s in range(6))
        for gradient in gradients:
            expected[name] += (x.U_S.T @ gradient @ x.U_A).square()

    for drawn in passes.batches(draws, 0, "test"):
        drawn.backward(take)
    for name, x in got.items():
        definition = expected[name] / (2 * sequences.n_predicted)
        torch.testing.assert_close(x.curvature, definition, **EXACT)
        assert torch.equal(x.U_A, directions[name].U_A)


def test_corrected_curvature_has_the_trace_of_g_in_any_basis(tiny, sequences):
    """And in the weights' own basis it is `ggn_draws`, entry by entry."""
    layers = factored_layers(tiny)
    (diagonal,) = ggn_draws(tiny, sequences, range(1), seed=0, batch_size=6)
    factors = kfac_factors(tiny, sequences, range(1), seed=0, batch_size=6)
    rotated = {name: eigen(x) for name, x in factors.items()}
    own = {
        name: Directions(
            torch.eye(len(x.U_A)).to(x.U_A), torch.eye(len(x.U_S)).to(x.U_S), x.curvature
        )
        for name, x in rotated.items()
    }
    options = {"seed": 0, "batch_size": 6}
    along = corrected(tiny, sequences, rotated, range(1), **options)
    entries = corrected(tiny, sequences, own, range(1), **options)
    for name in layers:
        weight = by_row(layers, name, diagonal[f"{name}.weight"])
        torch.testing.assert_close(entries[name].curvature, weight, **EXACT)
        total = along[name].curvature.sum()
        torch.testing.assert_close(total, weight.sum(), rtol=1e-9, atol=1e-13)
        assert not torch.allclose(along[name].curvature, weight, rtol=0.1)


def test_a_layer_called_twice_is_refused(sequences):
    model = make_tiny()
    decoder = model.model.decoder
    decoder.layers[1].fc1 = decoder.layers[0].fc1
    with pytest.raises(RequestError, match=r"layers\.0\.fc1 is called more than once"):
        kfac_factors(model, sequences, range(1), seed=0, batch_size=6)
