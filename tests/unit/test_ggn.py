"""The oracle is the full Jacobian of the logits in float64, and theorems about G."""

import numpy as np
import pytest
import torch

from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.lanczos import lanczos
from paramscope.curvature.moments import merge, moments
from paramscope.curvature.passes import local_layers
from paramscope.curvature.products import HessianProduct, ggn_entries, hessian_entries
from paramscope.models.load import logits
from paramscope.models.losses import mean_loss
from paramscope.persample.layers import UnknownLayerError


def exact_ggn_diagonal(model, sequences):
    """diag Σ_t J_tᵀ (diag p − p pᵀ) J_t / W with J by one backward a logit."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(sequences)):
        length = int(sequences.lengths[i])
        z = logits(model, sequences.ids[i : i + 1, :length])[0, :-1]
        p = z.detach().softmax(-1)
        for t in range(length - 1):
            eye = torch.zeros(z.shape[1], *z.shape, dtype=z.dtype)
            eye[:, t] = torch.eye(z.shape[1], dtype=z.dtype)
            rows = torch.autograd.grad(
                z, parameters.values(), eye, is_grads_batched=True, retain_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            for name, J in zip(parameters, rows, strict=True):
                J = J.flatten(1)
                diagonal = p[t] @ J.square() - (p[t] @ J).square()
                total[name] += diagonal.reshape(total[name].shape) / sequences.n_predicted
    return total


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.fixture(scope="module")
def exact(tiny, sequences):
    return exact_ggn_diagonal(tiny, sequences)


def test_draws_are_unbiased(tiny, sequences, exact):
    """z-test over all parameters at once, 400 draws."""
    draws = ggn_draws(tiny, sequences, range(400), seed=0, batch_size=4)
    merged = moments(draws)
    truth, mean = flat(exact), flat(merged.mean)
    error = flat(merged.standard_error())
    noisy = error > 1e-12 * truth.max()
    # Where draws don't vary the value is exact (the head without its tie, for one).
    torch.testing.assert_close(mean[~noisy], truth[~noisy], rtol=1e-9, atol=1e-12)
    z = ((mean - truth) / error)[noisy]
    # Entries share noise and squares are skewed, so deviation and tails are judged, loosely:
    # a factor of two in any one layer's term gives z of tens there.
    assert 0.7 < float(z.std()) < 1.3
    assert abs(float(z.mean())) < 0.5
    assert float(z.abs().quantile(0.99)) < 4.5
    for name in exact:  # and no tensor is off as a whole: its sum within 5 percent + 4 errors
        difference = float(merged.mean[name].sum() - exact[name].sum())
        each = torch.stack([draw[name].sum() for draw in draws])
        assert abs(difference) <= 4.5 * float(each.std()) / len(draws) ** 0.5 + 1e-9, name


def test_a_draw_hangs_on_its_identity_alone(tiny, sequences):
    together = ggn_draws(tiny, sequences, range(3), seed=5, batch_size=6)
    for k in range(3):
        (alone,) = ggn_draws(tiny, sequences, range(k, k + 1), seed=5, batch_size=2)
        # Float64 sums in another order.
        torch.testing.assert_close(flat(alone), flat(together[k]), rtol=1e-9, atol=1e-14)
    (other,) = ggn_draws(tiny, sequences, range(1), seed=6, batch_size=6)
    assert not torch.allclose(flat(other), flat(together[0]), rtol=1e-3)


def test_shards_merge_to_the_single_run(tiny_opt, sequences):
    draws = ggn_draws(tiny_opt, sequences, range(7), seed=0, batch_size=6)
    whole, parts = (
        moments(draws),
        merge([moments(draws[:3]), moments(draws[3:4]), moments(draws[4:])]),
    )
    stacked = torch.stack([flat(d) for d in draws])
    for result in (whole, parts):
        assert result.count == 7
        torch.testing.assert_close(flat(result.mean), stacked.mean(0), rtol=1e-10, atol=1e-16)
        torch.testing.assert_close(
            flat(result.standard_error()), stacked.std(0) / 7**0.5, rtol=1e-6, atol=1e-14
        )


def test_key_biases_have_no_curvature(tiny_opt, sequences):
    (draw,) = ggn_draws(tiny_opt, sequences, range(1), seed=0, batch_size=6)
    keys = torch.cat([v.flatten() for n, v in draw.items() if n.endswith("k_proj.bias")])
    others = torch.cat([v.flatten() for n, v in draw.items() if n.endswith("q_proj.bias")])
    assert keys.max() < 1e-20 * others.max()  # a shift common to all keys cancels in the softmax


def test_local_layers_are_those_after_the_last_mixing_of_tokens(tiny_opt, sequences):
    """The last attention's queries are local too: each asks for its own token alone."""
    last = "model.decoder.layers.1."
    names = {last + f"self_attn.{n}" for n in ("q_proj", "out_proj")}
    names |= {last + n for n in ("final_layer_norm", "fc1", "fc2")}
    names.add("model.decoder.final_layer_norm")
    assert local_layers(tiny_opt, sequences.ids[0]) == names


def test_entries_are_the_full_matrices(tiny, sequences, exact):
    names = list(exact)
    rng = np.random.default_rng(0)
    entries = [(name, int(rng.integers(exact[name].numel()))) for name in names]
    got = torch.tensor(list(ggn_entries(tiny, sequences, entries)), dtype=torch.float64)
    expected = torch.stack([exact[name].flatten()[i] for name, i in entries])
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-13)
    # The Hessian's entries against central differences of gradients: error ~ h² ~ 1e-10.
    parameters = dict(tiny.named_parameters())
    values = list(hessian_entries(tiny, sequences, entries))
    for (name, i), value in zip(entries, values, strict=True):
        slopes = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                parameters[name].view(-1)[i] += h
            gradient = torch.autograd.grad(mean_loss(tiny, sequences), parameters[name])[0]
            slopes.append(float(gradient.flatten()[i]))
            with torch.no_grad():
                parameters[name].view(-1)[i] -= h
        assert value == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_the_last_norm_and_head_have_no_residual_curvature(tiny_opt, sequences, exact):
    """H = G where logits are linear in a parameter, as in the final LayerNorm's."""
    name = "model.decoder.final_layer_norm.weight"
    diagonal = exact_ggn_diagonal(tiny_opt, sequences)[name]
    entries = [(name, i) for i in range(diagonal.numel())]
    hessian = torch.tensor(list(hessian_entries(tiny_opt, sequences, entries)), dtype=torch.float64)
    torch.testing.assert_close(hessian, diagonal, rtol=1e-8, atol=1e-12)


def test_lanczos_finds_the_hessians_leading_pairs(tiny_opt, sequences):
    product = HessianProduct(tiny_opt, sequences, batch_size=4)
    v = torch.randn(product.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.randn(product.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(product(v) @ w) == pytest.approx(float(product(w) @ v), rel=1e-10)  # symmetry
    pairs = lanczos(product, v, k=4, steps=60)
    overlap = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(overlap, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)
    for value, vector, residual in zip(pairs.values, pairs.vectors.T, pairs.residuals, strict=True):
        true_residual = float((product(vector) - value * vector).norm())
        assert true_residual == pytest.approx(float(residual), rel=1e-3, abs=1e-9)
        assert true_residual < 1e-3 * abs(float(pairs.values[0]))


def test_lanczos_against_a_full_eigensolver():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    a = a + a.T
    pairs = lanczos(lambda v: a @ v, torch.ones(40, dtype=torch.float64), k=5, steps=40)
    values = torch.linalg.eigvalsh(a)
    expected = values[values.abs().argsort(descending=True)[:5]]
    torch.testing.assert_close(pairs.values, expected, rtol=1e-9, atol=1e-9)


def test_a_parameter_that_no_layer_knows_is_refused(sequences):
    from tests.unit.conftest import make_tiny

    model = make_tiny()
    model.model.decoder.layers[0].fc1 = torch.nn.Bilinear(8, 8, 16)
    with pytest.raises(UnknownLayerError, match=r"layers\.0\.fc1.*Bilinear"):
        ggn_draws(model, sequences, range(1), seed=0, batch_size=6)
