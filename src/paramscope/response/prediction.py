"""What curvature foretold of the change in log perplexity, beside what was measured."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Prediction:
    """At a class's smallest σ: ½σ² Σ h c² against the mean measured over noise.

    Attributes:
        sigma: the smallest scale above 0.
        predicted: change of log perplexity, nats a token.
        predicted_se: from the errors of the curvature.
        measured: mean over noise seeds of the mean of ±z.
        measured_se: standard error of that mean over noise seeds.
        ratio: predicted / measured.
    """

    sigma: float
    predicted: float
    predicted_se: float
    measured: float
    measured_se: float
    ratio: float


def predictions(frame: pd.DataFrame) -> dict[str, Prediction]:
    """One a class whose responses carry a prediction.

    The curvature is of the calibration text and the measurement on the evaluation text, and a
    large σ is beyond the second order; both are in the ratio.
    """
    found = {}
    foretold = frame[(frame["sigma"] > 0) & frame["predicted_delta_log_ppl"].notna()]
    for label, rows in foretold.groupby("class"):
        at = rows[rows["sigma"] == rows["sigma"].min()]
        by_seed = at.groupby("seed")["delta_log_ppl"].mean()
        measured = float(by_seed.mean())
        predicted = float(at["predicted_delta_log_ppl"].mean())
        found[str(label)] = Prediction(
            float(at["sigma"].iloc[0]),
            predicted,
            float(at["predicted_delta_log_ppl_se"].mean()),
            measured,
            float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))) if len(by_seed) > 1 else np.nan,
            predicted / measured if measured else np.nan,
        )
    return found
