"""Directions taken out of the weights, those of lowest curvature first, beside noise in all.

Merullo et al. 2025 (arXiv:2510.24256) edit memorised text away by zeroing the directions of
low curvature. Whether that is better than shaking the same weights at random is told by η
(`separation`): what of the membership signal each takes for +5% perplexity. Random directions
taken out are the control of which directions they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.curvature.kfac import Directions
from paramscope.geometry.directions import CODES, Labelled, label_directions, random_labels
from paramscope.names import FUNC, SENS
from paramscope.response.directions import DirectionSet
from paramscope.response.noise import NoiseSource
from paramscope.response.ranges import HIGH
from paramscope.response.responses import MEASURED, SIGNS
from paramscope.response.separation import EFFICIENCY_RESPONSES, ISO_LOG_PPL, eta
from paramscope.response.sweep import Judge, Outcome, changes

Kind = Literal["low_curvature", "random", "uniform_noise"]
LEVELS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
AROUND = (0.5, 0.9, 1.3, 2.0)  # times the σ that is foretold +5% perplexity
REMOVAL = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("draw", pa.int16(), nullable=False),
        pa.field("level", pa.float64(), nullable=False),
        pa.field("sign", pa.int8(), nullable=False),
        pa.field("n_parameters", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in MEASURED),
    ]
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """One change of the weights and what it did.

    Attributes:
        kind: low_curvature or random, directions taken out; uniform_noise, in all of them.
        draw: of the random directions, or the noise seed.
        level: share of each weight's curvature (low_curvature) or of its directions (random)
            that is taken out; σ of the noise, in units of a tensor's RMS.
        sign: of the noise; 0 for what is taken out.
        n_parameters: coefficients that were changed.
        outcome: of the changed model.
    """

    kind: Kind
    draw: int
    level: float
    sign: int
    n_parameters: int
    outcome: Outcome


@dataclass(frozen=True)
class Compared:
    """η of each kind in one measure of membership, and their ratio to uniform noise's.

    Attributes:
        eta: by kind, the mean over draws or noise seeds that reach +5% perplexity; NaN for none.
        n: how many those are, by kind.
        ratio: of η to that of uniform noise, by kind but the last.
        low: of that ratio's 95% percentile interval over resamples of documents, windows and
            noise seeds.
        high: likewise.
    """

    eta: dict[str, float]
    n: dict[str, int]
    ratio: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def removal(
    model: PreTrainedModel,
    judge: Judge,
    directions: Mapping[str, Directions],
    *,
    draws: int,
    seeds: int,
    seed: int,
) -> tuple[Outcome, list[Step]]:
    """What the model scores unchanged, and after every step of the three kinds.

    Removal goes up `LEVELS` until log perplexity has risen by `HIGH`.

    Args:
        model: the model under study; left as it was, to the last bit.
        judge: scores it.
        directions: of its weights, with the curvature along each.
        draws: random choices of directions.
        seeds: noise seeds, each as +z and −z.
        seed: the run's seed.
    """
    baseline = judge(model)
    steps: list[Step] = []
    with tqdm(desc="removal", unit="eval") as bar:

        def take(kind: Kind, draw: int) -> None:
            for level in LEVELS:
                out = DirectionSet(model, _taken(directions, kind, level, draw, seed), SENS)
                with out.removed():
                    found = judge(model)
                steps.append(Step(kind, draw, level, 0, out.n_parameters, found))
                bar.update()
                if not found.log_ppl - baseline.log_ppl < HIGH:
                    return

        take("low_curvature", 0)
        for draw in range(draws):
            take("random", draw)
        everything = {
            name: Labelled(x, torch.full_like(x.curvature, CODES[SENS], dtype=torch.int8))
            for name, x in directions.items()
        }
        noisy = DirectionSet(model, everything, SENS)
        for number in range(seeds):
            source = NoiseSource(model, seed, number)
            middle = math.sqrt(ISO_LOG_PPL / noisy.predicted(source)[0])
            for sigma in [share * middle for share in AROUND]:
                for sign in SIGNS:
                    with noisy.perturbed(source, sign * sigma):
                        found = judge(model)
                    steps.append(
                        Step("uniform_noise", number, sigma, sign, noisy.n_parameters, found)
                    )
                    bar.update()
    return baseline, steps


def table(baseline: Outcome, steps: Sequence[Step]) -> pd.DataFrame:
    """A row a step, of the schema `REMOVAL`."""
    rows = []
    for step in steps:
        place = {name: value for name, value in vars(step).items() if name != "outcome"}
        rows.append(place | changes(baseline, step.outcome))
    return pd.DataFrame(rows)


def compare(baseline: Outcome, steps: Sequence[Step], seed: int) -> dict[str, Compared]:
    """Each kind's η beside uniform noise's, by measure of membership: gap and auc."""
    return {
        measure: _compared(baseline, steps, response, seed_of(seed, "removal", measure))
        for measure, response in EFFICIENCY_RESPONSES.items()
    }


def record(found: Mapping[str, Compared]) -> dict[str, Any]:
    """As nested plain values."""
    return {measure: asdict(one) for measure, one in found.items()}


def _taken(
    directions: Mapping[str, Directions], kind: Kind, level: float, draw: int, seed: int
) -> dict[str, Labelled]:
    """The directions to take out as W_sens; greater levels hold all that smaller ones do."""
    if kind == "low_curvature":
        return label_directions(directions, by="mass", share=1 - level, seed=seed)
    found = {}
    for name, x in directions.items():
        labels = torch.full((x.curvature.numel(),), CODES[FUNC], dtype=torch.int8)
        labels[: round(level * len(labels))] = CODES[SENS]
        shuffled = random_labels(name, labels.reshape(x.curvature.shape), draw, seed)
        found[name] = Labelled(x, shuffled)
    return found


def _compared(baseline: Outcome, steps: Sequence[Step], response: str, seed: int) -> Compared:
    kinds: list[str] = list(dict.fromkeys(step.kind for step in steps))
    etas = {kind: _etas(baseline, steps, kind, response) for kind in kinds}
    point = {kind: values[:, 0] for kind, values in etas.items()}
    means = {kind: float(np.mean(x[np.isfinite(x)])) if np.isfinite(x).any() else math.nan
             for kind, x in point.items()}  # fmt: skip
    rng = np.random.default_rng(seed)
    drawn = {kind: _resampled_means(values, rng) for kind, values in etas.items()}
    found = Compared(
        means, {kind: int(np.isfinite(x).sum()) for kind, x in point.items()}, {}, {}, {}
    )
    for kind in [kind for kind in kinds if kind != "uniform_noise"]:
        ratios = drawn[kind] / drawn["uniform_noise"]
        ends = np.quantile(ratios, [0.025, 0.975]) if np.isfinite(ratios).all() else [math.nan] * 2
        found.ratio[kind] = means[kind] / means["uniform_noise"]
        found.low[kind], found.high[kind] = map(float, ends)
    return found


def _resampled_means(values: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Means over resampled draws, [R], from η [draws, 1 + R] of documents as they are and again."""
    values = values[np.isfinite(values[:, 0])]
    if not len(values):
        return np.full(values.shape[1] - 1, np.nan)
    again = values[:, 1:]
    chosen = rng.integers(len(values), size=again.T.shape)
    means: FloatArray = np.take_along_axis(again.T, chosen, axis=1).mean(1)
    return means


def _etas(baseline: Outcome, steps: Sequence[Step], kind: str, response: str) -> FloatArray:
    """η of each draw, of the documents as they are and of each resample, [draws, 1 + R]."""
    by_draw: dict[int, dict[float, list[Step]]] = {}
    for step in steps:
        if step.kind == kind:
            by_draw.setdefault(step.draw, {}).setdefault(step.level, []).append(step)
    rows = []
    for levels in by_draw.values():
        x, y = (
            np.stack(
                [
                    np.mean([_change(baseline, s.outcome, name) for s in levels[level]], axis=0)
                    for level in sorted(levels)
                ],
                axis=1,
            )
            for name in ("delta_log_ppl", response)
        )
        rows.append(eta(x, y))
    return np.stack(rows)


def _change(baseline: Outcome, outcome: Outcome, response: str) -> FloatArray:
    """A change of the documents as they are and of each resample, [1 + R]."""
    name = response.removeprefix("delta_")
    values = [
        np.array([getattr(one, name), *getattr(one, f"{name}_resampled").tolist()], np.float64)
        for one in (outcome, baseline)
    ]
    change: FloatArray = values[0] - values[1]
    return change
