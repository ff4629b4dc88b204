"""The noise of a step: its deviation, its independence, and that nothing else decides it."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch import nn

from paramscope.dpsgd.methods import NoisyStep
from paramscope.dpsgd.noise import LANES, PART, Noise
from paramscope.dpsgd.privacy import Privacy
from tests.unit.conftest import make_tiny

CPU = torch.device("cpu")
PRIVACY = Privacy(max_norm=0.7, noise_multiplier=1.3, expected_batch=5.0)
DEVIATION = 1.3 * 0.7
RARE = 1e-6  # of a test that holds: how often its interval would miss


def parameters(*sizes, dtype=torch.float32):
    return [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def drawn(noise, sizes, privacy=PRIVACY, dtype=torch.float32):
    """The noise of one step on gradients of 0, flat and undivided."""
    given = parameters(*sizes, dtype=dtype)
    noise.privatize(given, privacy)
    return torch.cat([p.grad.flatten().double() for p in given]) * privacy.expected_batch


def test_steps_on_fixed_gradients_have_the_deviation():
    """n = 1,552 entries × 100 steps = 155,200 draws: the interval is ±0.9% of σC."""
    model = make_tiny()
    generator = torch.Generator().manual_seed(0)
    fixed = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    step = NoisyStep(
        torch.optim.SGD(model.parameters(), lr=1.0), model, PRIVACY, Noise(3, model.device)
    )
    draws = []
    for _ in range(100):
        before = [p.detach().clone() for p in model.parameters()]
        for parameter, gradient in zip(model.parameters(), fixed, strict=True):
            parameter.grad = gradient.clone()
        step.step()
        step.zero_grad()
        moved = zip(before, model.parameters(), fixed, strict=True)
        # what SGD took off, times the expected batch, is the sum and its noise
        draws.append(torch.cat([(5.0 * (b - p.detach()) - g).flatten() for b, p, g in moved]))
    found = torch.stack(draws)
    n = found.numel()
    assert n == 100 * sum(p.numel() for p in model.parameters()) > 150_000
    squares = float(found.square().sum()) / DEVIATION**2
    assert chi2.ppf(RARE / 2, n) < squares < chi2.isf(RARE / 2, n)
    assert abs(float(found.mean())) < 5 * DEVIATION / n**0.5
    assert kstest(found.flatten().numpy()[:20_000] / DEVIATION, "norm").pvalue > 1e-4
    correlation = np.corrcoef(found.numpy())[np.triu_indices(100, 1)]
    assert np.abs(correlation).max() < 6 / found.shape[1] ** 0.5  # of 4,950 pairs


def test_lanes_and_parts_are_independent():
    """Every pair of parts, over all lanes and two steps, and each with itself one entry on."""
    noise = Noise(0, CPU)
    parts = torch.stack(
        [drawn(noise, [2 * LANES * PART]).view(2 * LANES, PART) for _ in range(2)]
    ).flatten(0, 1)
    n, squares = parts.shape[1], parts.square().sum(1).numpy() / DEVIATION**2
    assert (chi2.ppf(RARE, n) < squares).all()
    assert (squares < chi2.isf(RARE, n)).all()
    correlation = np.corrcoef(parts.numpy())[np.triu_indices(len(parts), 1)]
    assert np.abs(correlation).max() < 5 / n**0.5  # of 120 pairs
    one_on = [np.corrcoef(part[:-1], part[1:])[0, 1] for part in parts.numpy()]
    assert np.abs(one_on).max() < 5 / n**0.5


def test_the_number_of_threads_decides_nothing():
    sizes = [3 * PART + 17, 5, PART // 2, 2 * PART]
    expected = drawn(Noise(1, CPU), sizes)
    threads = torch.get_num_threads()
    try:
        for number in (2, 3, 8):
            torch.set_num_threads(number)
            assert torch.equal(drawn(Noise(1, CPU), sizes), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_restored_source_goes_on_with_the_same_bits():
    sizes = [2 * PART + 3, 7]
    noise = Noise(1, CPU)
    drawn(noise, sizes)
    state = [lane.clone() for lane in noise.state()]
    assert len(state) == LANES
    expected = [drawn(noise, sizes) for _ in range(3)]
    other = Noise(2, CPU)
    assert not torch.equal(drawn(other, sizes), drawn(Noise(1, CPU), sizes))
    for source in (noise, other):
        source.restore(state)
        for right in expected:
            assert torch.equal(drawn(source, sizes), right)
    assert not torch.equal(expected[0], expected[1])


def test_a_parameter_without_a_gradient_gets_noise_alone():
    with_none, with_zeros = parameters(4, 6), parameters(4, 6)
    for parameter in with_zeros:
        parameter.grad = torch.zeros_like(parameter)
    with_none[1].grad = torch.zeros(6)
    for given in (with_none, with_zeros):
        Noise(0, CPU).privatize(given, PRIVACY)
    for one, other in zip(with_none, with_zeros, strict=True):
        assert torch.equal(one.grad, other.grad)
        assert (one.grad != 0).all()


def test_without_noise_the_sum_is_divided_by_the_expected_batch():
    (parameter,) = parameters(6)
    parameter.grad = torch.arange(6.0)
    Noise(0, CPU).privatize([parameter], Privacy(0.7, 0.0, 5.0))
    assert torch.equal(parameter.grad, torch.arange(6.0) / 5)


def test_the_layout_of_a_gradient_changes_nothing():
    one, other = parameters((40, 30), (40, 30))
    values = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)).T
    one.grad, other.grad = values.contiguous(), values
    assert not other.grad.is_contiguous()
    for parameter in (one, other):
        Noise(0, CPU).privatize([parameter], PRIVACY)
    assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_formats_get_the_noise_of_theirs(dtype):
    """bfloat16 rounds the draws of float32; float64 has draws of its own."""
    found = drawn(Noise(0, CPU), [50_000], dtype=dtype)
    squares = float(found.square().sum()) / DEVIATION**2
    assert chi2.ppf(RARE / 2, 50_000) < squares < chi2.isf(RARE / 2, 50_000)
    if dtype == torch.bfloat16:  # rounded once as it is added, and once as it is divided
        torch.testing.assert_close(found, drawn(Noise(0, CPU), [50_000]), rtol=2 * 2**-8, atol=0)
