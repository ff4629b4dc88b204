"""The study over training seeds: whether another deal, base and target say the same.

A noise seed tells how one trained model responds; only another training seed tells whether the
next model would. Here the replicate is the training seed, each with its own deal of documents,
base, target, partitions, noise and null, and its S the mean over its noise seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from paramscope.response.findings import KINDS, findings

CONFIDENCE = 0.95


@dataclass(frozen=True)
class ReplicatedRemoval:
    """What removal of low-curvature directions takes, over what uniform noise does, over seeds.

    Attributes:
        measure: gap or auc.
        values: ratio of η at +5% perplexity, of each training seed; NaN where undefined.
        mean: of those that are defined, with its 95% t interval over training seeds.
        low: see there.
        high: see there.
    """

    measure: str
    values: list[float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Replicated:
    """One rule and measure over training seeds.

    Attributes:
        rule: of the partition.
        measure: gap or auc.
        values: S of each training seed, NaN where undefined.
        null_low: of each seed's null band, to `null_high`.
        null_high: see there.
        verdicts: of each seed, as in `findings`.
        mean: of the S that are defined.
        low: t interval of that mean over training seeds, 95%; NaN for fewer than two.
        high: likewise.
    """

    rule: str
    measure: str
    values: list[float]
    null_low: list[float]
    null_high: list[float]
    verdicts: list[str]
    mean: float
    low: float
    high: float


def replicated(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Replicated]:
    """Each rule and measure over training seeds, from the statistics of each seed's rules."""
    found = {seed: {(f.rule, f.measure): f for f in findings(r)} for seed, r in by_seed.items()}
    keys = list(dict.fromkeys(key for one in found.values() for key in one))
    rows = []
    for rule, measure in keys:
        ones = [one[rule, measure] for one in found.values() if (rule, measure) in one]
        values = np.array([one.value for one in ones], float)
        mean, low, high = t_interval(values[np.isfinite(values)])
        rows.append(
            Replicated(
                rule,
                measure,
                values.tolist(),
                [one.null_low for one in ones],
                [one.null_high for one in ones],
                [one.verdict for one in ones],
                mean,
                low,
                high,
            )
        )
    return rows


def replicated_removal(records: Sequence[Mapping[str, Any]]) -> list[ReplicatedRemoval]:
    """Each measure over training seeds, from each seed's record of removal; none for no record."""
    rows = []
    for measure in KINDS if records else ():
        ratios = [record[measure]["ratio"]["low_curvature"] for record in records]
        values = np.array([math.nan if ratio is None else ratio for ratio in ratios], float)
        ends = t_interval(values[np.isfinite(values)])
        rows.append(ReplicatedRemoval(measure, values.tolist(), *ends))
    return rows


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95% t interval (Student 1908); NaN ends for fewer than two values."""
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1))
    half /= math.sqrt(len(values))
    return mean, mean - half, mean + half


def replication_record(
    rows: Sequence[Replicated], removals: Sequence[ReplicatedRemoval], seeds: Sequence[int]
) -> dict[str, Any]:
    """As nested plain values."""
    found = {"seeds": list(seeds), "rules": [asdict(row) for row in rows]}
    return found | ({"removal": [asdict(row) for row in removals]} if removals else {})


def markdown(rows: Sequence[Replicated], removals: Sequence[ReplicatedRemoval] = ()) -> str:
    """A row a rule and measure: mean S with its interval, S of each seed, how many separate.

    Then a row a measure of removal: the ratio of η to that of uniform noise.
    """
    lines = [
        "| rule | measure | mean S [95% over training seeds] | S by seed (null band) | separates |",
        "|---|---|---|---|--:|",
    ]
    for row in rows:
        by_seed = "; ".join(
            f"{_told(s)} ({_told(low)} to {_told(high)})"
            for s, low, high in zip(row.values, row.null_low, row.null_high, strict=True)
        )
        shown = sum(verdict == "separates" for verdict in row.verdicts)
        interval = f"{_told(row.mean)} [{_told(row.low)}, {_told(row.high)}]"
        lines.append(
            f"| `{row.rule}` | {KINDS[row.measure]} | {interval} | {by_seed} | "
            f"{shown} of {len(row.verdicts)} |"
        )
    if removals:
        lines += [
            "",
            "| removal of low-curvature directions | mean ratio of η to uniform noise's [95% over "
            "training seeds] | by seed |",
            "|---|---|---|",
        ]
    for one in removals:
        by_seed = "; ".join(map(_told, one.values))
        interval = f"{_told(one.mean)} [{_told(one.low)}, {_told(one.high)}]"
        lines.append(f"| {KINDS[one.measure]} | {interval} | {by_seed} |")
    return "\n".join(lines) + "\n"


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
