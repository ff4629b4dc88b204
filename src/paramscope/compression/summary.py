"""What pruning cost and finetuning recovered, in a few numbers, as text and as a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from paramscope.errors import ArtifactError

NOTHING = "-"
EPOCHS = ("epoch", "perplexity", "change_percent", "best")  # the columns that are needed
NAMES = {
    "magnitude": "Magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "gradual": "Gradual SparseGPT",
    "admm": "ADMM",
}
_SPECIAL = str.maketrans({c: rf"\{c}" for c in "&%$#_{}"})
WIDTH = 34  # characters of a line's name


@dataclass(frozen=True)
class Summary:
    """Perplexities of a model before and after pruning and over its finetuning.

    Attributes:
        baseline: of the dense model.
        pruned: after pruning, before finetuning.
        final: after the last epoch.
        best: at the epoch whose weights are kept, `best_epoch`; 0 where finetuning never helped.
        improvement_percent: of the pruned model's perplexity, what the best epoch took off.
        gap_percent: by how much the best is above the dense model's.
        trend: epoch, perplexity and change in percent to the row before; NaN in the first row.
    """

    baseline: float
    pruned: float
    final: float
    best: float
    best_epoch: int
    improvement_percent: float
    gap_percent: float
    trend: tuple[tuple[int, float, float], ...]

    def text(self, model: str, method: str, density: float) -> str:
        """The block of summary.txt: plain aligned lines, the trend below."""
        last = self.trend[-1][0]
        lines = [
            f"{model}: {NAMES.get(method, method)}, {_density(density)}",
            "",
            _line("Baseline perplexity (dense)", _value(self.baseline)),
            _line("After pruning", _value(self.pruned)),
            _line(f"Final (epoch {last})", _value(self.final)),
            _line(f"Best (epoch {self.best_epoch})", _value(self.best)),
            _line("Improvement, pruned to best", _percent(self.improvement_percent)),
            _line("Gap to the baseline", _percent(self.gap_percent, signed=True)),
            "",
            "Perplexity by epoch (0: after pruning), and its change",
        ]
        for epoch, perplexity, change in self.trend:
            told = f"{_value(perplexity):>14}{_percent(change, signed=True):>10}"
            mark = "  best" if epoch == self.best_epoch else ""
            lines.append(f"  {epoch:>5}{told}{mark}")
        return "\n".join(lines) + "\n"


def summary(epochs: pd.DataFrame, baseline: float | None) -> Summary:
    """The numbers of one finetuning.

    Args:
        epochs: `EPOCHS`, a row an epoch, epoch 0 after pruning.
        baseline: perplexity of the dense model; None where it is not finite.

    Raises:
        ArtifactError: no rows, no epoch 0, no best one, or a baseline that is no perplexity.
    """
    rows = epochs.sort_values("epoch")
    if rows.empty or int(rows["epoch"].iloc[0]) != 0:
        raise ArtifactError("the epochs lack epoch 0, the pruned model's; rerun finetune")
    chosen = rows[rows["best"].astype(bool)]
    if chosen.empty:
        raise ArtifactError("the epochs name no best one; rerun finetune")
    if baseline is None or not (math.isfinite(baseline) and baseline >= 1):
        told = "not finite" if baseline is None else f"{baseline:g}"
        raise ArtifactError(f"the dense model's perplexity is {told}; rerun its evaluation")
    pruned, final = (float(rows["perplexity"].iloc[i]) for i in (0, -1))
    best = float(chosen["perplexity"].iloc[-1])
    trend = rows[["epoch", "perplexity", "change_percent"]].astype(float).to_numpy()
    return Summary(
        baseline=float(baseline),
        pruned=pruned,
        final=final,
        best=best,
        best_epoch=int(chosen["epoch"].iloc[-1]),
        improvement_percent=100 * (pruned - best) / pruned,
        gap_percent=100 * (best / baseline - 1),
        trend=tuple((int(epoch), value, change) for epoch, value, change in trend),
    )


def latex(summaries: Mapping[tuple[str, float], Summary]) -> str:
    """A table for a paper (booktabs): a row a method and density, densities set apart.

    The best perplexity of each density is bold; the dense model's heads the table.

    Raises:
        ArtifactError: no summaries, or those of different dense models.
    """
    baselines = {one.baseline for one in summaries.values()}
    if len(baselines) != 1:
        raise ArtifactError(
            f"{len(baselines)} baselines in one table; give summaries of one dense model"
        )
    groups = [f"dense & 1 & & & {_value(baselines.pop())} & & \\\\"]
    for density in sorted({density for _, density in summaries}, reverse=True):
        found = {method: one for (method, of), one in summaries.items() if of == density}
        least = min((one.best for one in found.values() if math.isfinite(one.best)), default=None)
        order = sorted(found, key=lambda m: (list(NAMES).index(m) if m in NAMES else len(NAMES), m))
        groups.append("\n".join(_row(m, density, found[m], found[m].best == least) for m in order))
    head = (
        "method & density & pruned & final & best & "
        r"improvement (\%) & gap to dense (\%) \\"
    )
    body = "\n\\midrule\n".join(groups)
    return (
        "\\begin{tabular}{lrrrrrr}\n\\toprule\n"
        f"{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _row(method: str, density: float, one: Summary, least: bool) -> str:
    best = rf"\textbf{{{_value(one.best)}}}" if least else _value(one.best)
    name = NAMES.get(method, method).translate(_SPECIAL)
    cells = [name, f"{density:g}", _value(one.pruned), _value(one.final), best]
    for value in (one.improvement_percent, one.gap_percent):
        told = _percent(value).removesuffix("%")
        cells.append("--" if told == NOTHING else f"${told.replace(',', '{,}')}$")
    return " & ".join("--" if cell == NOTHING else cell for cell in cells) + r" \\"


def _line(name: str, value: str) -> str:
    return f"  {name:<{WIDTH}}{value:>14}"


def _density(density: float) -> str:
    return f"density {density:g} ({100 * density:.4g}% kept, {100 * (1 - density):.4g}% zeros)"


def _value(value: float) -> str:
    """Two decimals, or two digits where they'd be a dozen; a dash for what is not finite."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.2f}" if value < 1e8 else f"{value:.2e}"


def _percent(value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return NOTHING
    told = f"{value:,.1f}" if abs(value) < 1e8 else f"{value:.1e}"
    return f"{'+' if signed and value >= 0 else ''}{told}%"
