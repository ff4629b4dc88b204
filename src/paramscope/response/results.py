"""The study in one record and one table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from paramscope.geometry.partition import counts
from paramscope.response.responses import MEASURED

Record = Mapping[str, Any]
UNCHANGED = ("draw", "n_units", "n_parameters", "noise_energy", "predicted_delta_log_ppl")


def response_rows(responses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a rule, class, σ and noise seed: the mean over the two signs of each measure.

    `ppl` is the geometric mean, so that it belongs to the mean `delta_log_ppl`. Standard errors
    are left to the responses' own tables, since those of +z and −z are not independent.
    """
    columns = [name for name in MEASURED if not name.endswith("_se")]
    key = ["class", "sigma", "seed"]
    frames = []
    for rule, frame in responses.items():
        logs = frame.assign(ppl=np.log(frame["ppl"]))
        means = logs.groupby(key)[[*UNCHANGED, *columns]].mean().reset_index()
        means["ppl"] = np.exp(means["ppl"])
        means = means.astype(dict.fromkeys(UNCHANGED[:3], "int64"))
        frames.append(means.assign(rule=rule))
    if not frames:
        return pd.DataFrame(columns=["rule", *key, *UNCHANGED, *columns])
    return pd.concat(frames, ignore_index=True)[["rule", *key, *UNCHANGED, *columns]]


def partitions_record(partitions: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Units of each class for every rule, and the number of draws."""
    return {
        rule: {"counts": counts(frame), "draws": int(frame["draw"].nunique())}
        for rule, frame in partitions.items()
    }


def units_record(units: pd.DataFrame) -> dict[str, Any]:
    """How many units there are, what they cover, and where their features lie."""
    features = ("curvature_mean", "sparsity", "alignment", "weight_rms", "saliency")
    return {
        "n": len(units),
        "n_parameters": int(units["n_parameters"].sum()),
        "n_tensors": int(units["tensor"].nunique()),
        "features": {
            name: {
                "min": float(units[name].min()),
                "median": float(units[name].median()),
                "max": float(units[name].max()),
            }
            for name in features
        },
    }


def curvature_record(summary: pd.DataFrame, spotcheck: Record) -> dict[str, Any]:
    """Range, mean and share negative over all parameters, and the spot check's verdict."""
    n = summary["n"]
    return {
        "draws": int(summary["draws"].iloc[0]),
        "n_parameters": int(n.sum()),
        "min": float(summary["min"].min()),
        "max": float(summary["max"].max()),
        "mean": float((summary["mean"] * n).sum() / n.sum()),
        "mean_standard_error": float((summary["se_mean"].astype(float) * n).sum(skipna=False))
        / float(n.sum()),
        "fraction_negative": float((summary["fraction_negative"] * n).sum() / n.sum()),
        "spotcheck": _content(spotcheck),
    }


def membership_record(summary: Record) -> dict[str, Any]:
    """Attacks on the target, all but the points of their curves."""
    return {name: value for name, value in _content(summary).items() if name != "curves"}


def training_record(history: pd.DataFrame) -> dict[str, float]:
    """The last row of a model's training: losses in nats a token, AUC of the loss attack."""
    last = history.iloc[-1]
    names = ("step", "epoch", "member_loss", "nonmember_loss", "auc")
    return {name: float(last[name]) for name in names}


def responses_record(statistics: Mapping[str, Record]) -> dict[str, Any]:
    """Baseline, efficiencies, separation and comparisons of every rule."""
    names = (
        *("n_seeds", "noise", "sigmas", "baseline", "classes", "separation", "null", "prediction"),
        *("comparisons", "manova", "notes"),
    )
    return {rule: {name: record[name] for name in names} for rule, record in statistics.items()}


def stages_record(benchmarks: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Jobs, seconds in all and peak resident memory of each stage, from Snakemake's benchmarks.

    `benchmarks` gives each stage's rows, one a job, with the columns s (wall seconds) and
    max_rss (MiB, sampled).
    """
    return {
        stage: {
            "jobs": len(rows),
            "wall_s": float(rows["s"].sum()),
            "peak_rss_mib": float(rows["max_rss"].max()),
        }
        for stage, rows in sorted(benchmarks.items())
    }


def _content(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "provenance"}
