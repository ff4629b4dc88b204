"""The estimate beside exact entries of the Hessian and the Gauss–Newton matrix."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.curvature.products import Entry
from paramscope.models.sequences import Sequences

ROUNDING = 1e-6  # of the median: float32's, squared, with room; a key's bias has no more
SPOTCHECK = pa.schema(
    [
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("estimate", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("exact_ggn", pa.float64(), nullable=False),
        pa.field("exact_hessian", pa.float64(), nullable=False),
    ]
)
SPOTCHECK_DRAWS = pa.schema(
    [
        pa.field("draws", pa.int32(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("spearman_ggn", pa.float64(), nullable=False),
        pa.field("spearman_hessian", pa.float64(), nullable=False),
        pa.field("relative_error_ggn", pa.float64(), nullable=False),
        pa.field("median_relative_error_ggn", pa.float64(), nullable=False),
    ]
)


def stratified(estimate: Mapping[str, Tensor], count: int, seed: int) -> list[Entry]:
    """`count` entries spread evenly over the tensors, without repeats, by `seed`.

    Entries whose estimate is 0 (rows of tokens and positions that the text lacks) are passed
    over: their curvature is 0 and says nothing of the estimator. Tensors with fewer entries
    than their share give what they have.
    """
    order = sorted(estimate, key=lambda name: seed_of(seed, "spotcheck", name))
    chosen: dict[str, list[int]] = {}
    for name in order:
        candidates = np.flatnonzero(estimate[name].cpu().numpy())
        rng = np.random.default_rng(seed_of(seed, "spotcheck entries", name))
        chosen[name] = rng.permutation(candidates)[:count].tolist()
    entries: list[Entry] = []
    depth = 0
    while len(entries) < count and any(depth < len(rows) for rows in chosen.values()):
        entries += [(name, rows[depth]) for name, rows in chosen.items() if depth < len(rows)]
        depth += 1
    return sorted(entries[:count])


def exact_entries(
    exact: Callable[[PreTrainedModel, Sequences, Sequence[Entry]], Iterator[float]],
    model: PreTrainedModel,
    text: Sequences,
    entries: Sequence[Entry],
    bar: str,
    batch_size: int,
) -> list[float]:
    """Exact entries over `text`, `batch_size` sequences at a time: they are means over tokens.

    `exact` is `products.ggn_entries` or `hessian_entries`; `bar` names the bar that is shown.
    """
    parts = []
    for part in text.batches(batch_size):
        share = part.n_predicted / text.n_predicted
        values = tqdm(exact(model, part, entries), bar, len(entries))
        parts.append([share * value for value in values])
    return [reduce(operator.add, values) for values in zip(*parts, strict=True)]


def quality(checked: pd.DataFrame) -> dict[str, float | int]:
    """How near the estimate comes to G, and G to H, over a table of the schema `SPOTCHECK`.

    Spearman's ρ and the median relative error against each; `z_deviation`, the standard
    deviation of (estimate − G) in standard errors; and `r_gap`, ‖H − G‖ / ‖H‖ over the sampled
    entries: what separates G from the Hessian.

    `z_deviation` is 1 where errors are right, and more with few draws: a draw is a sum of
    squares, so a low mean comes with a low standard error. For 16 draws of a χ² of 1 degree it
    is 1.5, of 4 degrees 1.2. Entries that are exact, or nothing but rounding, are left out of it.
    """
    ggn, hessian = checked["exact_ggn"].to_numpy(), checked["exact_hessian"].to_numpy()
    estimate, error = checked["estimate"].to_numpy(), checked["standard_error"].to_numpy()
    drawn = (error > 1e-6 * np.abs(estimate)) & (ggn > ROUNDING * np.median(ggn))
    z = (estimate - ggn)[drawn] / error[drawn]
    return {
        "n": len(checked),
        "spearman_ggn": float(spearmanr(estimate, ggn).statistic),
        "spearman_hessian": float(spearmanr(estimate, hessian).statistic),
        "median_relative_error_ggn": _median_relative_error(estimate, ggn),
        "median_relative_error_hessian": _median_relative_error(estimate, hessian),
        "z_deviation": float(z.std()) if drawn.any() else float("nan"),
        "r_gap": float(np.linalg.norm(hessian - ggn) / np.linalg.norm(hessian)),
    }


def by_draws(sampled: np.ndarray, checked: pd.DataFrame) -> pd.DataFrame:
    """How good an estimate of 1, 2, 4, … draws is: a row a disjoint group of so many.

    Args:
        sampled: each draw at the entries of `checked`, [draws, entries].
        checked: a table of the schema `SPOTCHECK`.

    Returns:
        Of the schema `SPOTCHECK_DRAWS`: Spearman's ρ with each exact diagonal, ‖estimate − G‖ /
        ‖G‖ over the entries, and the median relative error.
    """
    ggn, hessian = checked["exact_ggn"].to_numpy(), checked["exact_hessian"].to_numpy()
    rows = []
    count = 1
    while count <= len(sampled):
        for group in range(len(sampled) // count):
            estimate = sampled[group * count : (group + 1) * count].mean(0)
            rows.append(
                {
                    "draws": count,
                    "group": group,
                    "spearman_ggn": float(spearmanr(estimate, ggn).statistic),
                    "spearman_hessian": float(spearmanr(estimate, hessian).statistic),
                    "relative_error_ggn": float(
                        np.linalg.norm(estimate - ggn) / np.linalg.norm(ggn)
                    ),
                    "median_relative_error_ggn": _median_relative_error(estimate, ggn),
                }
            )
        count *= 2
    return pd.DataFrame(rows)


def _median_relative_error(estimate: np.ndarray, exact: np.ndarray) -> float:
    some = exact != 0
    return float(np.median(np.abs(estimate[some] / exact[some] - 1)))
