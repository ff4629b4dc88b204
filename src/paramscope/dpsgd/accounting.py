"""The budget that a private training spends, by Opacus' accountants, and what it rules out.

Two texts are neighbours when one sample is in one of them and not in the other. Each step draws
every sample by itself with one probability (Poisson sampling), and its sum of gradients clipped
to C gets noise of deviation σC. Accountants: `rdp`, Rényi divergences (Mironov et al. 2019,
arXiv:1908.10530; Balle et al. 2020, arXiv:1905.09982); `prv`, numerical composition of privacy
losses (Gopi et al. 2021, arXiv:2106.02848), which is tighter but for ε near `PRV_ERROR`.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from paramscope.errors import RequestError

Accountant = Literal["rdp", "prv"]
ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)

# Opacus' own are 1.1 to 63: at budgets that are small or large the best order is beyond them
ORDERS: tuple[float, ...] = (
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(round(64 * 1.15**i) for i in range(20)),
)
TOLERANCE = 0.01  # of a budget: how far below the one asked for the noise found may spend
PRV_ERROR = 0.01  # of epsilon, which is told with it on top: Opacus' default
PRV_POINTS = 2**24  # that prv's grid may have: 128 MB a tensor, some ten at a time


def noise_multiplier_for(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "rdp"
) -> float:
    """The least σ, to 1% of the budget, with which so many steps spend at most ε at δ.

    Raises:
        RequestError: an argument out of its range, or a budget that no noise keeps to.
    """
    _check(delta, sample_rate, steps, accountant)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise RequestError(f"epsilon is {epsilon:g}; give a budget above 0, such as 3")
    if accountant == "prv":
        _check_grid(4 * epsilon, delta, steps)  # the search also tries half of the σ it finds
    with _quiet():
        from opacus.accountants.utils import get_noise_multiplier

        try:
            found = float(
                get_noise_multiplier(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=sample_rate,
                    steps=steps,
                    accountant=accountant,
                    epsilon_tolerance=TOLERANCE * min(1.0, epsilon),
                    alphas=ORDERS,
                )
            )
            spent = _epsilon(found, delta, sample_rate, steps, accountant)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            raise RequestError(
                f"accountant {accountant} finds no noise that spends epsilon {epsilon:g} at delta "
                f"{delta:g} over {steps} steps ({error}); give more epsilon or delta"
            ) from error
    if not spent <= epsilon:
        raise RequestError(
            f"accountant {accountant} can't account for epsilon {epsilon:g} over {steps} steps; "
            "give another accountant, or less epsilon"
        )
    return found


def epsilon_spent(
    noise_multiplier: float, delta: float, sample_rate: float, steps: int, accountant: str = "rdp"
) -> float:
    """An upper bound of the ε that so many steps spend at δ; infinite without noise.

    Warns where the best Rényi order is at an end of `ORDERS`: the bound holds, but is not tight.

    Raises:
        RequestError: an argument out of its range, or one that `prv` can't account for.
    """
    _check(delta, sample_rate, steps, accountant)
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise RequestError(f"noise_multiplier is {noise_multiplier:g}; give 0 or more")
    if noise_multiplier == 0:
        return math.inf
    if accountant == "rdp":
        epsilon, order = _rdp(noise_multiplier, delta, sample_rate, steps)
        if order in (ORDERS[0], ORDERS[-1]):
            warnings.warn(
                f"epsilon {epsilon:.3g} holds but is not tight: its best Rényi order is beyond "
                f"{order:g}",
                stacklevel=2,
            )
        return epsilon
    _check_grid(_rdp(noise_multiplier, delta, sample_rate, steps)[0], delta, steps)
    try:
        return _epsilon(noise_multiplier, delta, sample_rate, steps, accountant)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise RequestError(
            f"accountant prv can't account for a noise multiplier of {noise_multiplier:g} over "
            f"{steps} steps ({error}); give accountant rdp"
        ) from error


def auc_bound(epsilon: float, delta: float) -> float:
    """The greatest AUC of any test whether one sample was in the text of an (ε, δ) mechanism.

    1 − (1 − δ)² / (1 + e^ε): the area over the trade-off function
    f(α) = max(0, 1 − δ − e^ε α, e^−ε (1 − δ − α)), the least rate of misses at a rate α of false
    alarms (Kairouz et al. 2015, arXiv:1311.0776; Dong et al. 2019, arXiv:1905.02383).

    It holds for scores of runs set against each other: the sample's where it was in the text,
    and where it was not, by the runs' own randomness. So it holds for scores of many samples,
    each averaged over its runs, but not to the letter for those of one run: `one_run_auc_bound`.

    Raises:
        RequestError: ε below 0, or δ outside [0, 1].
    """
    _check_budget(epsilon, delta)
    shrunk = math.exp(-epsilon)
    return 1 - (1 - delta) ** 2 * shrunk / (1 + shrunk)


def one_run_auc_bound(epsilon: float, delta: float) -> float:
    """The greatest expected AUC of any attack on the members and non-members of one run.

    1 − e^−ε (1/2 − δ). AUC is how often a member outscores a non-member. Were that member not in
    the text, the two would be alike, if they were dealt at random, and this would be as likely
    as not; so it is at most 1 − f(1/2) with f of `auc_bound`. Less would not do: a mechanism may
    tell of one by what it tells of the other, and with the exponential one over two samples the
    bound is met.

    Raises:
        RequestError: ε below 0, or δ outside [0, 1].
    """
    _check_budget(epsilon, delta)
    return 1 - max(0.0, math.exp(-epsilon) * (0.5 - delta))


def _epsilon(
    noise_multiplier: float, delta: float, sample_rate: float, steps: int, accountant: str
) -> float:
    if accountant == "rdp":
        return _rdp(noise_multiplier, delta, sample_rate, steps)[0]
    with _quiet():
        from opacus.accountants import PRVAccountant

        counted = PRVAccountant()
        counted.history = [(noise_multiplier, sample_rate, steps)]
        epsilon = float(counted.get_epsilon(delta, eps_error=PRV_ERROR))
    if not math.isfinite(epsilon):
        raise ArithmeticError(f"epsilon came out as {epsilon}")
    return max(0.0, epsilon)


def _rdp(
    noise_multiplier: float, delta: float, sample_rate: float, steps: int
) -> tuple[float, float]:
    """ε, and the order that gave it."""
    with _quiet():
        from opacus.accountants import RDPAccountant

        counted = RDPAccountant()
        counted.history = [(noise_multiplier, sample_rate, steps)]
        epsilon, order = counted.get_privacy_spent(delta=delta, alphas=list(ORDERS))
    return max(0.0, float(epsilon)), float(order)


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus' and numpy's warnings are of orders and of overflow; both are seen to here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(delta: float, sample_rate: float, steps: int, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        known = " or ".join(ACCOUNTANTS)
        raise RequestError(f"accountant '{accountant}' is not known; give {known}")
    if not 0 < delta < 1:
        raise RequestError(f"delta is {delta:g}; give one between 0 and 1, below 1 / samples")
    if not 0 < sample_rate <= 1:
        raise RequestError(
            f"sample_rate is {sample_rate:g}; give expected batch / samples, above 0 and at most 1"
        )
    if steps < 1:
        raise RequestError(f"steps is {steps}; give 1 or more")


def _check_grid(epsilon: float, delta: float, steps: int) -> None:
    """Refuse what would fill the memory: prv's grid grows with ε and with √steps."""
    points = 2 * (epsilon + 3) / PRV_ERROR * math.sqrt(steps * math.log(12_000 / delta) / 2)
    if not points <= PRV_POINTS:
        raise RequestError(
            f"accountant prv needs a grid of {points:.1g} points for an epsilon near {epsilon:.3g} "
            f"over {steps} steps; give accountant rdp"
        )


def _check_budget(epsilon: float, delta: float) -> None:
    if not epsilon >= 0:
        raise RequestError(f"epsilon is {epsilon:g}; give 0 or more")
    if not 0 <= delta <= 1:
        raise RequestError(f"delta is {delta:g}; give one from 0 to 1")
