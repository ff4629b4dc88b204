"""Units with known classes: invented, so that the picture and the rules can be tried on them.

No model stands behind them and nothing here is a claim about one. The three populations keep
clear of the thresholds of the rule `origin`, which therefore gives back the planted classes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.geometry.features import UNITS, percentile
from paramscope.names import LABELS

PLANTED_UNITS = UNITS.append(pa.field("planted_label", pa.string(), nullable=False))

LAYERS = 6
WIDTH = 768  # rows a tensor at most, and weights a row: alike everywhere, so a kind makes no class
NAMES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "fc1",
    "fc2",
)
TENSORS = LAYERS * len(NAMES)
CONTRAST = (-0.2, 0.4)  # of the first layer's tensors and the last's, give or take .05
LEAST = 4 * TENSORS  # four rows a tensor, so that a quarter of them is one


@dataclass(frozen=True)
class Population:
    """What the units of one class are drawn from.

    `alignment` and `sparsity` are ranges of a Beta(3, 3); `log10_curvature` is the mean of a
    normal distribution of deviation .15; `weight_rms` is the median of a lognormal one of
    deviation .06; `share` goes linearly from the first layer to the last; `gate` is the mean of
    a normal distribution of deviation .0005, in nats a token.
    """

    alignment: tuple[float, float]
    sparsity: tuple[float, float]
    log10_curvature: float
    weight_rms: float
    share: tuple[float, float]
    gate: float


POPULATIONS = {
    "W_func": Population((0.75, 0.95), (0.05, 0.45), -3.0, 0.025, (0.45, 0.15), -0.001),
    "W_sens": Population((0.05, 0.25), (0.92, 0.995), -5.0, 0.016, (0.15, 0.45), 0.002),
    "W_both": Population((0.35, 0.65), (0.52, 0.85), -4.0, 0.020, (0.40, 0.40), 0.0),
}


def plant(n_units: int = 900, seed: int = 0) -> pd.DataFrame:
    """Draw `n_units` units over 6 layers of 6 tensors; a table of the schema `PLANTED_UNITS`.

    The curvature's relative standard error is uniform, .05 to .12, in every class. The rest
    follows: curvature_sum = curvature_mean · n_parameters, saliency = ½ · curvature_sum ·
    weight_rms² times a lognormal factor of deviation .1 for the correlation of h and w²,
    alignment_percentile by rank, and loss_gap = |gate| / (‖w‖ · cos) with a cosine between weights
    and gradient in (.05, .5). A tensor's contrast rises with its layer's share of W_sens.

    Raises:
        RequestError: fewer than 4 rows a tensor, or more than a tensor has.
    """
    if not LEAST <= n_units <= TENSORS * WIDTH:
        raise RequestError(f"{n_units} planted units: take {LEAST} to {TENSORS * WIDTH}")
    names = [(layer, name) for layer in range(LAYERS) for name in NAMES]
    rows = [len(part) for part in np.array_split(np.arange(n_units), TENSORS)]
    tensors = [_tensor(*name, n, seed) for name, n in zip(names, rows, strict=True)]
    units = pd.concat(tensors, ignore_index=True)
    units["alignment_percentile"] = percentile(units["alignment"])
    return pd.DataFrame(units, columns=PLANTED_UNITS.names)


def _tensor(layer: int, name: str, n: int, seed: int) -> pd.DataFrame:
    tensor = f"model.decoder.layers.{layer}.{name}.weight"
    rng = np.random.default_rng(seed_of(seed, "planted", tensor))
    depth = layer / (LAYERS - 1)
    shares = [np.interp(depth, (0, 1), POPULATIONS[label].share) for label in LABELS]
    labels = rng.choice(LABELS, size=n, p=np.array(shares) / sum(shares))
    drawn = [POPULATIONS[label] for label in labels]
    curvature = 10 ** rng.normal([p.log10_curvature for p in drawn], 0.15)
    curvature_sum = curvature * (WIDTH + 1)
    weight_rms = rng.lognormal(np.log([p.weight_rms for p in drawn]), 0.06)
    apart = np.random.default_rng(seed_of(seed, "planted membership", tensor))
    gate = apart.normal([p.gate for p in drawn], 5e-4)
    norm = weight_rms * np.sqrt(WIDTH + 1)
    return pd.DataFrame(
        {
            "unit": [f"{tensor}:{row}" for row in range(n)],
            "tensor": tensor,
            "layer": np.full(n, layer, dtype=np.int16),
            "kind": name.rpartition(".")[2],
            "row": np.arange(n, dtype=np.int32),
            "n_parameters": np.full(n, WIDTH + 1, dtype=np.int32),
            "curvature_mean": curvature,
            "curvature_sum": curvature_sum,
            "curvature_se": curvature * rng.uniform(0.05, 0.12, n),
            "sparsity": _within([p.sparsity for p in drawn], rng),
            "alignment": _within([p.alignment for p in drawn], rng),
            "weight_rms": weight_rms,
            "saliency": 0.5 * curvature_sum * weight_rms**2 * rng.lognormal(0, 0.1, n),
            "gate": gate,
            "loss_gap": np.abs(gate) / (norm * apart.uniform(0.05, 0.5, n)),
            "contrast": np.interp(depth, (0, 1), CONTRAST) + apart.normal(0, 0.05),
            "planted_label": labels,
        }
    )


def _within(ranges: list[tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    low, high = np.array(ranges).T
    return np.asarray(low + (high - low) * rng.beta(3, 3, size=len(ranges)))
