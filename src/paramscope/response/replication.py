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


def replication_record(rows: Sequence[Replicated], seeds: Sequence[int]) -> dict[str, Any]:
    """As nested plain values."""
    return {"seeds": list(seeds), "rules": [asdict(row) for row in rows]}


def markdown(rows: Sequence[Replicated]) -> str:
    """A row a rule and measure: mean S with its interval, S of each seed, how many separate."""
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
    return "\n".join(lines) + "\n"


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
