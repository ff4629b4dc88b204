"""Budgets against published and exact ones, and what a budget rules out against quadrature."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from paramscope.dpsgd.accounting import (
    ACCOUNTANTS,
    ORDERS,
    PRV_ERROR,
    TOLERANCE,
    auc_bound,
    epsilon_spent,
    noise_multiplier_for,
    one_run_auc_bound,
)
from paramscope.errors import RequestError

MNIST = 256 / 60_000  # sampled in 234 whole batches an epoch
# σ, sampling rate, steps, δ and the ε that was published, by the conversion of its time
PUBLISHED = {
    "Abadi et al. 2016, section 5.1": (4.0, 0.01, 10_000, 1e-5, 1.26),
    "TensorFlow Privacy's tutorial, 10 epochs": (1.2, MNIST, 10 * 234, 1e-5, 1.20),
    "TensorFlow Privacy's tutorial, 60 epochs": (1.12, MNIST, 60 * 234, 1e-5, 2.92),
    "TensorFlow Privacy's tutorial, 30 epochs": (0.6, MNIST, 30 * 234, 1e-5, 9.74),
    "Bu et al. 2020, figure 4": (0.7, MNIST, 70 * 234, 1e-5, 8.68),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_budgets_are_met_and_bettered(case):
    """With Mironov's conversion the divergences give the published ε; a better one gives less."""
    from opacus.accountants.analysis.rdp import compute_rdp

    sigma, rate, steps, delta, published = PUBLISHED[case]
    orders = np.array(ORDERS)
    divergences = compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=list(ORDERS))
    old = float(np.nanmin(divergences - math.log(delta) / (orders - 1)))
    assert old == pytest.approx(published, abs=0.015)  # two decimals, rounded or cut
    rdp, prv = (epsilon_spent(sigma, delta, rate, steps, a) for a in ACCOUNTANTS)
    assert 0.6 * published < prv < rdp < old  # sharper, and not by half


def exact_epsilon(sigma, steps, delta):
    """ε of so many Gaussian mechanisms on the whole text (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / sigma

    def excess(epsilon):
        spill = norm.logcdf(-epsilon / mu - mu / 2)
        return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon + spill) - delta

    return brentq(excess, 0, 500)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(1.0, 1), (3.0, 1), (5.0, 20), (20.0, 300), (2.0, 40)]
)
def test_without_sampling_prv_is_exact_and_rdp_above(sigma, steps, delta):
    exact = exact_epsilon(sigma, steps, delta)
    rdp, prv = (epsilon_spent(sigma, delta, 1.0, steps, accountant) for accountant in ACCOUNTANTS)
    assert exact <= prv <= exact + 2 * PRV_ERROR  # told with the error on top
    assert exact <= rdp <= 1.2 * exact


def test_it_is_what_opacus_engine_tells():
    from opacus import PrivacyEngine

    model = torch.nn.Linear(3, 1)
    data = torch.utils.data.TensorDataset(torch.randn(40, 3), torch.randn(40, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant="rdp")
        wrapped, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(data, batch_size=4),
            target_epsilon=2.0,
            target_delta=1e-3,
            epochs=3,
            max_grad_norm=1.0,
        )
        for inputs, targets in (batch for _ in range(3) for batch in loader):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(wrapped(inputs), targets).backward()
            optimizer.step()
        told = engine.get_epsilon(1e-3)
    sigma = optimizer.noise_multiplier
    assert epsilon_spent(sigma, 1e-3, 0.1, 30) == pytest.approx(told, rel=1e-12)
    own = noise_multiplier_for(2.0, 1e-3, 0.1, 30)
    assert own == pytest.approx(sigma, rel=0.01)  # both searches stop within 1% of the budget


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 3.0, 8.0])
def test_the_noise_found_spends_the_budget_and_no_more(epsilon, accountant):
    setting = (1e-3, 64 / 300, 38, accountant)
    sigma = noise_multiplier_for(epsilon, *setting)
    spent = epsilon_spent(sigma, *setting)
    assert epsilon * (1 - TOLERANCE) - TOLERANCE * (epsilon > 1) <= spent <= epsilon
    assert epsilon_spent(0.97 * sigma, *setting) > epsilon


def test_more_of_anything_but_noise_spends_more():
    told = epsilon_spent(2.0, 1e-3, 0.1, 30)
    assert told > epsilon_spent(2.2, 1e-3, 0.1, 30)
    assert told < epsilon_spent(2.0, 1e-3, 0.12, 30)
    assert told < epsilon_spent(2.0, 1e-3, 0.1, 31)
    assert told < epsilon_spent(2.0, 1e-4, 0.1, 30)
    assert epsilon_spent(0.0, 1e-3, 0.1, 30) == math.inf


def test_a_bound_that_is_not_tight_is_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon_spent(80.0, 1e-3, 0.2, 38)  # beyond Opacus' own orders, not beyond these
        epsilon_spent(0.2, 1e-5, 0.2, 1)
    with pytest.warns(UserWarning, match="holds but is not tight: its best Rényi order is beyond"):
        told = epsilon_spent(200.0, 1e-5, 0.001, 1)
    assert told < 0.01


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"epsilon": 0.0}, "epsilon is 0; give a budget above 0"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": math.inf}, "epsilon is inf"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"delta": 0.0}, "delta is 0; give one between 0 and 1"),
        ({"delta": 1.0}, "delta is 1"),
        ({"sample_rate": 0.0}, "sample_rate is 0; give expected batch / samples"),
        ({"sample_rate": 1.1}, "sample_rate is 1.1"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"accountant": "gdp"}, "accountant 'gdp' is not known; give rdp or prv"),
        ({"epsilon": 1e-4}, "finds no noise that spends epsilon 0.0001 .*too low.*; give more"),
        ({"epsilon": 0.005, "accountant": "prv"}, "prv finds no noise .*; give more epsilon"),
        (
            {"epsilon": 900.0, "steps": 10_000, "accountant": "prv"},
            "a grid of .*give accountant rdp",
        ),
    ],
)
def test_budgets_that_cannot_be_are_refused(wrong, told):
    right = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 10, "accountant": "rdp"}
    with pytest.raises(RequestError, match=told):
        noise_multiplier_for(**right | wrong)
    if "epsilon" in wrong:
        return
    with pytest.raises(RequestError, match=told):
        epsilon_spent(**{"noise_multiplier": 1.0} | {k: v for k, v in (right | wrong).items()
                                                     if k != "epsilon"})  # fmt: skip


@pytest.mark.parametrize("sigma", [-1.0, math.inf, math.nan])
def test_noise_that_cannot_be_is_refused(sigma):
    with pytest.raises(RequestError, match=f"noise_multiplier is {sigma:g}; give 0 or more"):
        epsilon_spent(sigma, 1e-5, 0.1, 10)


def test_a_grid_that_would_fill_the_memory_is_refused():
    with pytest.raises(RequestError, match="give accountant rdp"):
        epsilon_spent(0.2, 1e-5, 0.2, 3000, "prv")


def trade_off(alpha, epsilon, delta):
    return max(0, 1 - delta - math.exp(epsilon) * alpha, math.exp(-epsilon) * (1 - delta - alpha))


@given(st.floats(0, 12), st.floats(0, 1))
def test_the_bound_is_the_area_over_the_trade_off_function(epsilon, delta):
    kinks = sorted({(1 - delta) / (1 + math.exp(epsilon)), 1 - delta})
    area, _ = quad(lambda a: 1 - trade_off(a, epsilon, delta), 0, 1, points=kinks, epsabs=1e-12)
    assert auc_bound(epsilon, delta) == pytest.approx(area, abs=1e-9)  # of a piecewise line


def test_the_bounds_ends():
    for bound in (auc_bound, one_run_auc_bound):
        assert bound(0, 0) == 0.5
        assert bound(0, 1e-3) == pytest.approx(0.501, abs=1e-6)
        assert bound(math.inf, 0) == 1
        assert bound(2000, 1e-5) == 1  # where e^ε is no float
        assert bound(0, 1) == 1
    assert auc_bound(1, 0) == pytest.approx(math.e / (1 + math.e), rel=1e-12)
    for wrong in ((-1, 0), (math.nan, 0), (1, -0.1), (1, 1.1)):
        with pytest.raises(RequestError, match="give"):
            auc_bound(*wrong)


@given(st.floats(0, 30), st.floats(0, 1), st.floats(0, 5), st.floats(0, 1))
def test_the_bounds_rise_with_the_budget(epsilon, delta, more, share):
    for bound in (auc_bound, one_run_auc_bound):
        told = bound(epsilon, delta)
        assert 0.5 <= told <= 1
        assert bound(epsilon + more, delta) >= told
        assert bound(epsilon, delta + share * (1 - delta)) >= told - 1e-15
    assert one_run_auc_bound(epsilon, delta) >= auc_bound(epsilon, delta) - 1e-15


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (2.0, 0.01)])
def test_a_mechanism_attains_the_bound(epsilon, delta):
    """Kairouz et al.'s: tells by chance δ, and else answers at random by odds of e^ε."""
    right = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    member = np.array([delta, right, 1 - delta - right, 0])  # sure in, in, out, sure out
    nonmember = member[::-1]
    wins = sum(m * nonmember[i + 1 :].sum() + m * nonmember[i] / 2 for i, m in enumerate(member))
    assert wins == pytest.approx(auc_bound(epsilon, delta), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_a_mechanism_attains_the_bound_of_one_run(epsilon):
    """It names one of two samples: where one is in and the other out, that one by odds 2e^ε − 1."""
    odds = 2 * math.exp(epsilon) - 1
    named = {(1, 0): odds / (1 + odds), (0, 1): 1 / (1 + odds), (0, 0): 0.5, (1, 1): 0.5}
    for one, p in named.items():
        for other, q in named.items():
            if sum(a != b for a, b in zip(one, other, strict=True)) == 1:
                assert max(p / q, (1 - p) / (1 - q)) <= math.exp(epsilon) * (1 + 1e-12)
    assert named[1, 0] == pytest.approx(one_run_auc_bound(epsilon, 0), rel=1e-12)
    assert named[1, 0] > auc_bound(epsilon, 0)
