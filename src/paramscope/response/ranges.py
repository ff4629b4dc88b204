"""Each class's own range of noise: from hardly felt to plainly felt, in log perplexity.

A class that carries little needs more noise than one that carries much before either can be
compared; so σ is sought for each at which log perplexity rises by `LOW`, by log 1.05 and by
`HIGH`, on a few noise seeds and on the evaluation text alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.response.classes import Classes, ClassSet
from paramscope.response.noise import Kind, NoiseSource, factors
from paramscope.response.separation import ISO_LOG_PPL

LOW, HIGH = 0.01, 0.3
WITHIN = 1.15  # ratio to the aim at which the search ends
STEPS = 12  # evaluations of a class and aim at most
FARTHEST = 64.0  # times the first guess, where a search gives up
FIRST = 0.5  # σ, times the class's own scale


@dataclass(frozen=True)
class Range:
    """One class's range.

    Attributes:
        sigma_low: σ at which log perplexity rises by `LOW`, on average over noise.
        sigma_iso: likewise by log 1.05, where classes are compared.
        sigma_high: likewise by `HIGH`.
        reached: whether all three were found; if not, they are as far as was looked.
        evaluations: of the model, to find them.
    """

    sigma_low: float
    sigma_iso: float
    sigma_high: float
    reached: bool
    evaluations: int

    def grid(self, points: int) -> list[float]:
        """`points` scales from low to high in equal ratios, to three digits."""
        return [
            float(f"{sigma:.3g}") for sigma in np.geomspace(self.sigma_low, self.sigma_high, points)
        ]


def find_ranges(
    model: PreTrainedModel,
    log_perplexity: Callable[[PreTrainedModel], float],
    classes: Classes,
    *,
    kind: Kind,
    seeds: range,
    seed: int,
) -> dict[str, Range]:
    """The range of each class that has something in it, from the partition's first draw.

    Args:
        model: the model under study; left as it was, to the last bit.
        log_perplexity: of a model on the evaluation text.
        classes: of that model.
        kind: of noise.
        seeds: noise seeds that the mean is taken over, each as +z and −z.
        seed: the run's seed.
    """
    sets = classes.of(0)
    sources = [NoiseSource(model, seed, number, kind) for number in seeds]
    scales = factors(sets, sources[0])
    baseline = log_perplexity(model)
    found = {}
    for label, units in tqdm(sets.items(), desc="ranges of noise", unit="class"):

        def rise(sigma: float, units: ClassSet = units, factor: float = scales[label]) -> float:
            changes = []
            for source in sources:
                for sign in (-1, 1):
                    with units.perturbed(source, sign * sigma * factor):
                        changes.append(log_perplexity(model) - baseline)
            return float(np.mean(changes))

        start = FIRST * _typical(units, sources[0])
        found[label] = search(rise, start, 2 * len(sources))
    return found


def search(rise: Callable[[float], float], start: float, cost: int = 1) -> Range:
    """The range of one class from its mean rise of log perplexity over σ.

    The rise grows like σ² where it is small, which every step goes by; what is known already
    is interpolated in logarithms.

    Args:
        rise: mean change of log perplexity at a σ.
        start: first σ to look at.
        cost: evaluations of the model that a look takes.
    """
    known: dict[float, float] = {}
    sigmas, reached = [], True
    for aim in (LOW, ISO_LOG_PPL, HIGH):
        sigma = min(_next(known, aim, start), FARTHEST * start)
        for _ in range(STEPS):
            if sigma not in known:
                known[sigma] = rise(sigma)
            if abs(math.log(max(known[sigma], 1e-12) / aim)) <= math.log(WITHIN):
                break
            sigma = min(_next(known, aim, start), FARTHEST * start)
            if sigma in known:
                break
        near = abs(math.log(max(known[sigma], 1e-12) / aim)) <= math.log(WITHIN)
        reached = reached and near
        sigmas.append(sigma)
    low, iso, high = sigmas
    return Range(low, iso, high, reached, cost * len(known))


def record(found: Mapping[str, Range], points: int) -> dict[str, object]:
    """As nested plain values, with each class's grid."""
    return {label: vars(found[label]) | {"sigmas": found[label].grid(points)} for label in found}


def scales(
    labels: Sequence[str],
    sigmas: Sequence[float] | None,
    ranges: Mapping[str, Any] | None,
    kind: str,
    iso: bool = False,
) -> dict[str, list[float]]:
    """The scales to put in each class: the same for all, or each its own from a record.

    Classes that the record does not know, having no units, are left out.

    Raises:
        RequestError: neither or both are given, or the record is of another kind of noise.
    """
    if (sigmas is None) == (ranges is None):
        raise RequestError("noise needs scales: give --sigma, or --ranges, and not both")
    if ranges is None:
        return {label: sorted(sigmas or []) for label in labels}
    if ranges["noise"] != kind:
        raise RequestError(f"the ranges are of {ranges['noise']} noise, not of {kind}")
    known = ranges["classes"]
    return {
        label: [known[label]["sigma_iso"]] if iso else known[label]["sigmas"]
        for label in labels
        if label in known
    }


def _next(known: Mapping[float, float], aim: float, start: float) -> float:
    """Where the aim should lie: between two neighbours, else by σ² from the nearest."""
    felt = sorted((sigma, change) for sigma, change in known.items() if change > 0)
    below = [(s, c) for s, c in felt if c <= aim]
    above = [(s, c) for s, c in felt if c >= aim]
    if below and above:
        (s0, c0), (s1, c1) = max(below), min(above)
        if s0 < s1 and c0 < c1:
            share = math.log(aim / c0) / math.log(c1 / c0)
            return float(s0 * (s1 / s0) ** share)
    if not felt:
        return 4 * max(known, default=start / 4)
    s, c = max(below) if below else min(above)
    return float(s * min(max(math.sqrt(aim / c), 0.25), 4))


def _typical(units: ClassSet, source: NoiseSource) -> float:
    """1 for noise in units of a tensor's RMS; for absolute noise, the RMS itself."""
    if source.kind != "absolute":
        return 1.0
    relative = NoiseSource(source.model, 0, 0)
    return math.sqrt(units.expected_energy(relative) / units.n_parameters)
