"""What the curvature benchmark's measurements say: errors by budget, and costs to a quality.

A mean of k independent draws has an error of variance V/k. From the measured errors, which
the exact reference tells, follow V of each entry and so the Spearman correlation at budgets
beyond those measured. `curvlinops_xdiag` is no such mean: its rate is fitted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

TABLE = pa.schema(
    [
        pa.field("contender", pa.string(), nullable=False),
        pa.field("of", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("budget", pa.int32(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("cpu_s", pa.float64(), nullable=False),
        pa.field("wall_s", pa.float64(), nullable=False),
        pa.field("gradient_cpu_s", pa.float64(), nullable=False),
        pa.field("gradients", pa.float64(), nullable=False),
        pa.field("peak_tracked_bytes", pa.int64(), nullable=False),
        pa.field("gradient_peak_tracked_bytes", pa.int64(), nullable=False),
        pa.field("peak_rss_bytes", pa.int64(), nullable=False),
        pa.field("gradient_peak_rss_bytes", pa.int64(), nullable=False),
        pa.field("rmse", pa.float64(), nullable=False),
        pa.field("rmse_hessian", pa.float64(), nullable=False),
        pa.field("spearman_ggn", pa.float64()),
        pa.field("spearman_hessian", pa.float64()),
        pa.field("n_entries", pa.int32(), nullable=False),
    ]
)
SUMMARY = pa.schema(
    [
        pa.field("contender", pa.string(), nullable=False),
        pa.field("of", pa.string(), nullable=False),
        pa.field("gradients_per_unit", pa.float64(), nullable=False),
        pa.field("peak_ratio_tracked", pa.float64(), nullable=False),
        pa.field("peak_ratio_rss", pa.float64(), nullable=False),
        pa.field("budget_98", pa.int64()),
        pa.field("gradients_98", pa.float64()),
        pa.field("extrapolated_98", pa.bool_()),
        pa.field("gradients_to_ggn4", pa.float64()),
        pa.field("extrapolated_ggn4", pa.bool_()),
        pa.field("gradients_to_ggn4_spearman", pa.float64()),
        pa.field("extrapolated_ggn4_spearman", pa.bool_()),
    ]
)
GOAL = 0.98  # of Spearman's ρ with the true Hessian
DRAWS = 4  # of our ggn, whose error the others are asked for
NOISES = 16  # simulated estimates a budget
FAR = 10**9  # no budget is sought beyond
FITTED = ("curvlinops_xdiag",)  # contenders whose error does not fall as 1/√k


@dataclass(frozen=True)
class Reference:
    """Exact entries of both diagonals, float64."""

    ggn: np.ndarray
    hessian: np.ndarray

    def of(self, which: str) -> np.ndarray:
        """The entries of "ggn" or "hessian"."""
        return self.ggn if which == "ggn" else self.hessian


def scored(runs: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """`runs` with their errors: the columns rmse to n_entries of `TABLE`.

    `runs` has of, positions (among the reference's entries) and values (the estimates there).
    """
    rows = []
    for of, positions, values in zip(runs["of"], runs["positions"], runs["values"], strict=True):
        at, estimate = np.asarray(positions), np.asarray(values)
        rows.append(
            {
                "rmse": relative_error(estimate, reference.of(of)[at]),
                "rmse_hessian": relative_error(estimate, reference.hessian[at]),
                "spearman_ggn": spearman(estimate, reference.ggn[at]),
                "spearman_hessian": spearman(estimate, reference.hessian[at]),
                "n_entries": len(at),
            }
        )
    return pd.concat([runs, pd.DataFrame(rows, index=runs.index)], axis=1)


def relative_error(estimate: np.ndarray, exact: np.ndarray) -> float:
    """‖estimate − exact‖ / ‖exact‖."""
    return float(np.linalg.norm(estimate - exact) / np.linalg.norm(exact))


def spearman(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Spearman's ρ; NaN where either is constant."""
    if not (np.ptp(estimate) and np.ptp(exact)):
        return math.nan
    return float(spearmanr(estimate, exact).statistic)


def summarize(runs: pd.DataFrame, reference: Reference, size: int) -> pd.DataFrame:
    """A row a contender, of the schema `SUMMARY`, from `scored` runs on `size` parameters."""
    ours = runs[(runs["contender"] == "ggn") & (runs["budget"] == DRAWS)]
    goals = ours["rmse"].median(), ours["spearman_hessian"].median()
    groups = runs.groupby("contender", sort=False)
    return pd.DataFrame([_summary(rows, reference, size, *goals) for _, rows in groups])


def _summary(
    rows: pd.DataFrame, reference: Reference, size: int, error: float, correlation: float
) -> dict[str, str | float | int | bool | None]:
    cost = cost_of(rows)
    known = rows["budget"].to_numpy()
    few = rows[rows["budget"] == known[np.abs(known - DRAWS).argmin()]]
    budget, far = budget_to_spearman(rows, reference, size, GOAL)
    to_error, far_error = budget_to_error(rows, error, size)
    to_rank, far_rank = budget_to_spearman(rows, reference, size, correlation)
    return {
        "contender": rows["contender"].iloc[0],
        "of": rows["of"].iloc[0],
        "gradients_per_unit": cost.slope,
        "peak_ratio_tracked": _ratio(few, "peak_tracked_bytes"),
        "peak_ratio_rss": _ratio(few, "peak_rss_bytes"),
        "budget_98": None if budget is None else math.ceil(budget),
        "gradients_98": None if budget is None else cost(math.ceil(budget)),
        "extrapolated_98": None if budget is None else far,
        "gradients_to_ggn4": None if to_error is None else cost(to_error),
        "extrapolated_ggn4": None if to_error is None else far_error,
        "gradients_to_ggn4_spearman": None if to_rank is None else cost(to_rank),
        "extrapolated_ggn4_spearman": None if to_rank is None else far_rank,
    }


def _ratio(rows: pd.DataFrame, column: str) -> float:
    return float((rows[column] / rows[f"gradient_{column}"]).median())


@dataclass(frozen=True)
class Cost:
    """Gradients at a budget: as measured there, else on the line through what was measured."""

    measured: dict[int, float]
    slope: float
    start: float

    def __call__(self, budget: float) -> float:
        """Gradients that `budget` units take."""
        line = self.start + self.slope * budget
        return self.measured.get(int(budget), line) if budget == int(budget) else line


def cost_of(rows: pd.DataFrame) -> Cost:
    """The costs of one contender's runs: the medians over repeats, and a line through them.

    The line has least relative residuals, so that small budgets count as much as large ones.
    """
    medians = rows.groupby("budget")["gradients"].median()
    x, y = medians.index.to_numpy(dtype=float), medians.to_numpy()
    slope, start = np.polyfit(x, y, 1, w=1 / y) if len(x) > 1 else (y[0] / x[0], 0.0)
    return Cost(medians.to_dict(), float(slope), float(start))


def budget_to_spearman(
    rows: pd.DataFrame, reference: Reference, size: int, goal: float
) -> tuple[float | None, bool]:
    """Units to a Spearman's ρ of `goal` with the true Hessian, and whether extrapolated."""
    if math.isnan(goal):
        return None, False
    if rows["unit"].iloc[0] == "entry":
        return size, True
    medians = rows.groupby("budget")["spearman_hessian"].median()
    reached = medians.index[medians >= goal]
    if len(reached):
        return int(reached[0]), False
    truth, rate = reference.of(rows["of"].iloc[0]), rate_of(rows)
    if spearman(truth, reference.hessian) < goal:  # what noise adds by chance is no way there
        return None, True
    budgets = rows["budget"].to_numpy(dtype=float)[:, None]
    errors = np.stack(rows["values"].tolist()) - truth[np.stack(rows["positions"].tolist())]
    deviation = np.sqrt((errors**2 * budgets ** (2 * rate)).mean(0))
    noise = np.random.default_rng(0).standard_normal((NOISES, len(truth)))

    def reaches(budget: float) -> bool:
        simulated = truth + noise * deviation / budget**rate
        return bool(np.mean([spearman(s, reference.hessian) for s in simulated]) >= goal)

    low, high = float(budgets.max()), 2 * float(budgets.max())
    while not reaches(high):
        low, high = high, 2 * high
        if high > FAR:
            return None, True
    while high > 1.01 * low and high - low > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high, True


def budget_to_error(rows: pd.DataFrame, error: float, size: int) -> tuple[float | None, bool]:
    """Units to the relative error `error` of the own diagonal, and whether extrapolated."""
    if math.isnan(error):
        return None, False
    if rows["unit"].iloc[0] == "entry":
        return size, True
    if rows["contender"].iloc[0] == "ggn":
        return DRAWS, False
    rate = rate_of(rows)
    scale = float(np.median(rows["rmse"] * rows["budget"].astype(float) ** rate))
    budget = (scale / error) ** (1 / rate)
    return max(budget, 1.0), bool(budget > rows["budget"].max())


def rate_of(rows: pd.DataFrame) -> float:
    """The power of the budget with which the error falls."""
    medians = rows.groupby("budget")["rmse"].median()
    if rows["contender"].iloc[0] not in FITTED or len(medians) < 2:
        return 0.5
    slope = np.polyfit(np.log(medians.index.to_numpy(dtype=float)), np.log(medians), 1)[0]
    return float(max(-slope, 0.5))


def markdown(summary: pd.DataFrame) -> str:
    """The summary as a table of Markdown; extrapolated values bear a ~."""

    def cell(value: float | None, far: object = False, digits: int = 2) -> str:
        if value is None or pd.isna(value):
            return "never" if far is None else "–"
        text = f"{value:,.0f}" if value >= 1000 or digits == 0 else f"{value:.{digits}f}"
        return f"~{text}" if far is True or far == 1 else text

    lines = [
        "| contender | of | gradients a unit | peak, tracked | peak, RSS | units to ρ .98 with H "
        "| gradients to it | gradients to the error of 4 ggn draws "
        "| gradients to their ρ with H |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in summary.to_dict("records"):
        far, far_error = row["extrapolated_98"], row["extrapolated_ggn4"]
        cells = [
            row["contender"],
            row["of"],
            cell(row["gradients_per_unit"]),
            cell(row["peak_ratio_tracked"]),
            cell(row["peak_ratio_rss"]),
            cell(row["budget_98"], far, 0),
            cell(row["gradients_98"], far),
            cell(row["gradients_to_ggn4"], far_error),
            cell(row["gradients_to_ggn4_spearman"], row["extrapolated_ggn4_spearman"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
