"""What a sweep of noise says about the classes: slopes, tests, efficiency, separation.

The replicate is the noise seed: the mean of ±z at each σ, one slope or one η a seed. Rows of
different σ share their noise and are no replicates (METHODS 5).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from paramscope.artifacts.digest import seed_of
from paramscope.response.comparisons import Comparison, Manova, compare, manova, slopes
from paramscope.response.intervals import FloatArray, mean_interval
from paramscope.response.null import Null, null_band, null_p
from paramscope.response.prediction import Prediction, predictions
from paramscope.response.responses import (
    CLASSES,
    RESPONSE_NAMES,
    Trajectories,
    baseline,
    trajectories,
)
from paramscope.response.separation import (
    EFFICIENCY_RESPONSES,
    ISO_LOG_PPL,
    Efficiency,
    Separation,
    efficiency,
    eta,
    separation,
    within_first_step,
)

MANOVA_RESPONSES = ("delta_log_ppl", "delta_auc")
ENERGY_TOLERANCE = 1.1  # ratio of noise energies up to which equal σ is equal energy


@dataclass(frozen=True)
class Slope:
    """Mean slope over σ² a seed, its BCa 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassStatistics:
    """A class's size and its responses, by response and by kind of efficiency."""

    n_units: int
    n_parameters: int
    slopes: dict[str, Slope]
    efficiency: dict[str, Efficiency]


@dataclass(frozen=True)
class Statistics:
    """The record of one partition rule's sweep; NaN stands for what can't be had."""

    rule: str
    n_seeds: int
    noise: str
    sigmas: dict[str, list[float]]
    iso_log_ppl: float
    baseline: dict[str, float]
    classes: dict[str, ClassStatistics]
    comparisons: list[Comparison]
    separation: dict[str, Separation]
    null: dict[str, Null] | None
    prediction: dict[str, Prediction]
    manova: Manova | None
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """As nested plain values."""
        return asdict(self)


def statistics(
    frame: pd.DataFrame, rule: str, seed: int, null: Mapping[str, Any] | None = None
) -> Statistics:
    """All statistics of a sweep's merged responses.

    Args:
        frame: columns of `RESPONSES`, the full grid for each class that has units.
        rule: partition rule, by name. Of rule `random` each seed has its own draw.
        seed: of the run; that of each interval and test derives from it and what it is of.
        null: the record of the random rule's statistics, whose draws S is set against.

    Raises:
        ArtifactError: no σ above 0.
    """
    measured = trajectories(frame)
    by_class = {label: slopes(measured.sigmas[label], v) for label, v in measured.values.items()}
    etas = {
        (label, kind): eta(measured.of(label, "delta_log_ppl"), measured.of(label, response))
        for label in by_class
        for kind, response in EFFICIENCY_RESPONSES.items()
    }
    notes = _design_notes(frame, measured)
    classes = {}
    for label in by_class:
        identity = ("prm_statistics", seed, rule, label)
        slope, slope_notes = _slopes(by_class[label], *identity)
        efficient, efficiency_notes = _efficiencies(etas, label, *identity)
        n_units, n_parameters = _size(frame, label)
        classes[label] = ClassStatistics(n_units, n_parameters, slope, efficient)
        notes += slope_notes + efficiency_notes
    comparisons, comparison_notes = compare(
        by_class, RESPONSE_NAMES, "prm_statistics", seed, rule, "comparison"
    )
    separations, separation_notes = _separations(
        etas, len(measured.seeds), "prm_statistics", seed, rule, "separation"
    )
    own, null_notes = _null(etas, frame) if frame["draw"].nunique() > 1 else (None, [])
    if null is not None:
        separations = {kind: _against(s, null["null"][kind]) for kind, s in separations.items()}
    columns = [RESPONSE_NAMES.index(response) for response in MANOVA_RESPONSES]
    tested, manova_notes = manova({label: rows[:, columns] for label, rows in by_class.items()})
    return Statistics(
        rule=rule,
        n_seeds=len(measured.seeds),
        noise=str(frame["noise"].iloc[0]),
        sigmas={label: [float(s) for s in scales] for label, scales in measured.sigmas.items()},
        iso_log_ppl=ISO_LOG_PPL,
        baseline=baseline(frame),
        classes=classes,
        comparisons=comparisons,
        separation=separations,
        null=own,
        prediction=predictions(frame),
        manova=tested,
        notes=notes + comparison_notes + separation_notes + null_notes + manova_notes,
    )


def _slopes(by_seed: FloatArray, *identity: object) -> tuple[dict[str, Slope], list[str]]:
    """A class's slopes [seeds, responses], by response, over the seeds that have one."""
    found, notes = {}, []
    for index, response in enumerate(RESPONSE_NAMES):
        finite = by_seed[np.isfinite(by_seed[:, index]), index]
        bounds = mean_interval(finite, seed_of(*identity, response))
        where = f"{identity[-1]}, slope of {response}"
        if len(finite) < len(by_seed):
            lost = len(by_seed) - len(finite)
            notes.append(f"{where}: {lost} of {len(by_seed)} seeds left out, not finite")
        notes += [f"{where}: {bounds.note}"] if bounds.note else []
        mean = float(finite.mean()) if len(finite) else np.nan
        found[response] = Slope(mean, bounds.low, bounds.high)
    return found, notes


def _efficiencies(
    etas: dict[tuple[str, str], FloatArray], label: str, *identity: object
) -> tuple[dict[str, Efficiency], list[str]]:
    found, notes = {}, []
    for kind in EFFICIENCY_RESPONSES:
        found[kind], said = efficiency(etas[label, kind], seed_of(*identity, "efficiency", kind))
        notes += [f"{label}, efficiency of {kind}: {note}" for note in said]
    return found, notes


def _separations(
    etas: dict[tuple[str, str], FloatArray], n_seeds: int, *identity: object
) -> tuple[dict[str, Separation], list[str]]:
    """S by kind; a class without units has no η."""
    none = np.full(n_seeds, np.nan)
    found, notes = {}, []
    for kind in EFFICIENCY_RESPONSES:
        sens, func = etas.get(("W_sens", kind), none), etas.get(("W_func", kind), none)
        found[kind], said = separation(sens, func, seed_of(*identity, kind))
        notes += [f"separation of {kind}: {note}" for note in said]
    return found, notes


def _null(
    etas: dict[tuple[str, str], FloatArray], frame: pd.DataFrame
) -> tuple[dict[str, Null], list[str]]:
    """S of each draw of the partition, by kind: what S comes to where classes mean nothing."""
    draws = frame.groupby("seed")["draw"].first().sort_index().to_numpy()
    none = np.full(len(draws), np.nan)
    found, notes = {}, []
    for kind in EFFICIENCY_RESPONSES:
        sens, func = etas.get(("W_sens", kind), none), etas.get(("W_func", kind), none)
        found[kind], said = null_band(sens, func, draws)
        notes += [f"null of {kind}: {note}" for note in said]
    return found, notes


def _against(found: Separation, null: Mapping[str, Any]) -> Separation:
    """S with its place among the null's, whose record has null for NaN."""
    low, high = (math.nan if null[end] is None else null[end] for end in ("low", "high"))
    p = null_p(found.value, null["values"])
    return replace(found, null_low=low, null_high=high, p_null=p)


def _size(frame: pd.DataFrame, label: str) -> tuple[int, int]:
    """Units and parameters of a class, the mean over the partition's draws."""
    sizes = frame.loc[frame["class"] == label, ["n_units", "n_parameters"]].mean().round()
    return int(sizes["n_units"]), int(sizes["n_parameters"])


def _design_notes(frame: pd.DataFrame, measured: Trajectories) -> list[str]:
    """What a reader should know about the sweep before its numbers."""
    notes = []
    empty = [label for label in CLASSES if label not in measured.values]
    if empty:
        notes.append(f"{', '.join(empty)}: no units, hence no responses")
    if len(measured.values) < 2:
        notes.append("no comparisons with fewer than two classes")
    draws, seeds = frame["draw"].nunique(), len(measured.seeds)
    if 1 < draws < seeds:
        notes.append(
            f"{seeds} seeds share {draws} draws of the partition, so they are not quite independent"
        )
    varying = frame.groupby("class")["n_parameters"].nunique()
    if (varying > 1).any():
        notes.append("sizes of classes differ between draws; their means are given")
    positive = frame[frame["sigma"] > 0]
    unit = positive["noise_energy"] / positive["sigma"] ** 2
    energy = unit.groupby(positive["class"]).mean()
    if len(energy) > 1 and energy.max() > ENERGY_TOLERANCE * energy.min():
        notes.append(
            f"slopes are at equal σ, where {energy.idxmax()} gets"
            f" {energy.max() / energy.min():.3g} times the noise energy of"
            f" {energy.idxmin()}; efficiency and separation are at equal perplexity"
        )
    for label in measured.values:
        early = within_first_step(measured.of(label, "delta_log_ppl"))
        if early and len(measured.sigmas[label]) > 1:
            notes.append(
                f"{label}: {early} of {seeds} seeds pass the iso-PPL before the smallest"
                " σ, so their η is read from the line to the origin"
            )
    return notes
