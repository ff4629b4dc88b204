"""ROC curves of membership scores, and how far a bootstrap over documents moves them.

Members are the positives. A resample draws members and non-members apart, each as many as there
are, and is the same for every score, so that scores can be compared within it. Intervals are
percentile ones at 95% (Efron and Tibshirani 1993). They are of the documents' chance alone:
another target, finetuned anew, is not in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.evaluation.membership import resample_counts

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFIDENCE = 0.95
LEAST_RESAMPLES = 40  # below, no resample lies beyond an end of a 95% interval
LEAST_FALSE_POSITIVES = 10  # non-members that a false positive rate must leave above: 1% of 1,000
CURVE_POINTS = 200
HELD = 2**22  # entries of resampled curves at a time
ROUNDING = 1e-12  # of a rate that is compared with a level


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap: standard error and the ends of the 95% interval."""

    value: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A ROC curve at chosen false positive rates, with a pointwise 95% band, [P] each."""

    fpr: Floats
    tpr: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Judgement:
    """How well one score tells members: `tpr_1` is None with too few non-members."""

    auc: Estimate
    tpr_5: Estimate
    tpr_1: Estimate | None
    curve: Curve


@dataclass(frozen=True)
class Resamples:
    """How often each document is drawn in each of R resamples: [R, M] and [R, N]."""

    members: Floats
    nonmembers: Floats


def resamples(members: int, nonmembers: int, number: int, seed: int) -> Resamples:
    """Draw `number` resamples of so many members and non-members.

    Raises:
        RequestError: too few for an interval.
    """
    if number < LEAST_RESAMPLES:
        raise RequestError(f"{number} resamples give no interval; ask for {LEAST_RESAMPLES}")
    return Resamples(
        resample_counts(members, number, seed_of(seed, "bootstrap", "members")).numpy(),
        resample_counts(nonmembers, number, seed_of(seed, "bootstrap", "nonmembers")).numpy(),
    )


def roc_curve(members: Floats, nonmembers: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate at each distinct score, from (0, 0) to (1, 1), [P] each."""
    once = Resamples(np.ones((1, len(members))), np.ones((1, len(nonmembers))))
    fpr, tpr = resampled_curves(members, nonmembers, once)
    return fpr[0], tpr[0]


def resampled_curves(
    members: Floats, nonmembers: Floats, drawn: Resamples
) -> tuple[Floats, Floats]:
    """`roc_curve` of each resample at the same P scores, [R, P] each."""
    scores = np.concatenate([members, nonmembers])
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # equal scores step together
    member = order < len(members)
    true = np.zeros((len(drawn.members), len(scores)))
    false = np.zeros_like(true)
    true[:, member] = drawn.members[:, order[member]]
    false[:, ~member] = drawn.nonmembers[:, order[~member] - len(members)]
    rates = []
    for counts in (false, true):
        total = counts.cumsum(1)[:, last]
        rates.append(np.pad(total / total[:, -1:], ((0, 0), (1, 0))))
    return rates[0], rates[1]


def area(fpr: Floats, tpr: Floats) -> Floats:
    """Area under each curve, [R], of [R, P]: ties count half."""
    return np.asarray((np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1])).sum(-1) / 2)


def tpr_at(fpr: Floats, tpr: Floats, levels: Floats) -> Floats:
    """The highest true positive rate whose false positive rate is no more, [R, L] at L levels."""
    places = [np.searchsorted(row, levels + ROUNDING, side="right") - 1 for row in fpr]
    return np.take_along_axis(tpr, np.stack(places), axis=1)


def judge(members: Floats, nonmembers: Floats, drawn: Resamples) -> Judgement:
    """AUC, true positive rates at 5% and 1%, and the curve of one score, each with intervals."""
    levels = np.append(curve_rates(len(nonmembers)), [0.05, 0.01])
    fpr, tpr = roc_curve(members, nonmembers)
    at_levels = tpr_at(fpr[None], tpr[None], levels)[0]
    areas, found = [], []
    for part in _parts(drawn, len(members) + len(nonmembers) + 1):
        curves = resampled_curves(members, nonmembers, part)
        areas.append(area(*curves))
        found.append(tpr_at(*curves, levels))
    low, high = _ends(rates := np.concatenate(found))
    return Judgement(
        auc=_estimate(float(area(fpr[None], tpr[None])[0]), np.concatenate(areas)),
        tpr_5=_estimate(float(at_levels[-2]), rates[:, -2]),
        tpr_1=_estimate(float(at_levels[-1]), rates[:, -1])
        if false_positives(len(nonmembers), 0.01) >= LEAST_FALSE_POSITIVES
        else None,
        curve=Curve(levels[:-2], at_levels[:-2], low[:-2], high[:-2]),
    )


def loss_gap(members: Floats, nonmembers: Floats, drawn: Resamples) -> Estimate:
    """Mean loss of non-members minus that of members, in nats a token."""
    resampled = drawn.nonmembers @ nonmembers / len(nonmembers)
    resampled -= drawn.members @ members / len(members)
    return _estimate(float(nonmembers.mean() - members.mean()), resampled)


def curve_rates(nonmembers: int) -> Floats:
    """False positive rates that N non-members can have, from 1/N to 1; thinned out if many."""
    places = np.unique(np.geomspace(1, nonmembers, CURVE_POINTS).round())
    return (np.arange(1.0, nonmembers + 1) if nonmembers <= CURVE_POINTS else places) / nonmembers


def false_positives(nonmembers: int, level: float) -> int:
    """How many of N non-members a false positive rate of `level` leaves above the threshold."""
    return int(nonmembers * (level + ROUNDING))


def _parts(drawn: Resamples, points: int) -> Iterator[Resamples]:
    """The resamples a few at a time, so that their curves fit in memory."""
    size = max(1, HELD // points)
    for start in range(0, len(drawn.members), size):
        rows = slice(start, start + size)
        yield Resamples(drawn.members[rows], drawn.nonmembers[rows])


def _estimate(value: float, resampled: Floats) -> Estimate:
    low, high = _ends(resampled)
    return Estimate(value, float(resampled.std(ddof=1)), float(low), float(high))


def _ends(resampled: Floats) -> Floats:
    """The ends of the percentile interval over the first axis, [2, …]."""
    tail = (1 - CONFIDENCE) / 2
    return np.asarray(np.quantile(resampled, [tail, 1 - tail], axis=0))
