"""The summary's numbers are the table's, its text and LaTeX say them, and gaps are refused."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from paramscope.compression.summary import latex, summary
from paramscope.errors import ArtifactError

BASELINE = 27.66


def make_epochs(perplexities, best):
    values = np.array(perplexities, dtype=float)
    with np.errstate(invalid="ignore"):
        change = np.concatenate([[np.nan], 100 * (values[1:] / values[:-1] - 1)])
    return pd.DataFrame(
        {
            "epoch": np.arange(len(values), dtype="int16"),
            "perplexity": values,
            "change_percent": change,
            "best": np.arange(len(values)) == best,
        }
    )


def lines_of(text):
    """The block's lines as name and value, which two or more spaces part; the trend left out."""
    parts = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[:9])
    return {p[0]: p[1] for p in parts if len(p) == 2}


def test_the_numbers_are_those_of_the_table():
    got = summary(make_epochs([1383.0, 100.0, 55.32, 60.0], best=2).sample(frac=1), BASELINE)
    assert (got.baseline, got.pruned, got.final, got.best) == (BASELINE, 1383.0, 60.0, 55.32)
    assert got.best_epoch == 2
    assert got.improvement_percent == pytest.approx(96)  # 1383 · .04 = 55.32
    assert got.gap_percent == pytest.approx(100)  # twice the dense model's
    assert [epoch for epoch, _, _ in got.trend] == [0, 1, 2, 3]
    assert math.isnan(got.trend[0][2])
    assert got.trend[2][2] == pytest.approx(-44.68)


def test_best_is_what_the_table_marks_not_the_least():
    marked = make_epochs([90.0, 40.0, 50.0], best=2)
    assert summary(marked, BASELINE).best == 50
    so_far = make_epochs([90.0, 40.0, 50.0], best=1).assign(best=[True, True, False])
    assert summary(so_far, BASELINE).best == 40


def test_finetuning_that_never_helped_improves_by_nothing():
    got = summary(make_epochs([30.0, 31.0], best=0), BASELINE)
    assert (got.best_epoch, got.improvement_percent, got.final) == (0, 0.0, 31.0)


def test_the_block_says_all_numbers_aligned():
    got = summary(make_epochs([1383.0, 100.0, 55.32, 60.0], best=2), BASELINE)
    text = got.text("opt-125m", "sparsegpt", 0.1)
    assert text.startswith("opt-125m: SparseGPT, density 0.1 (10% kept, 90% zeros)\n")
    assert lines_of(text) == {
        "Baseline perplexity (dense)": "27.66",
        "After pruning": "1,383.00",
        "Final (epoch 3)": "60.00",
        "Best (epoch 2)": "55.32",
        "Improvement, pruned to best": "96.0%",
        "Gap to the baseline": "+100.0%",
    }
    assert len({len(line) for line in text.splitlines()[2:8]}) == 1
    trend = text.splitlines()[10:]
    assert trend[2].split() == ["2", "55.32", "-44.7%", "best"]
    assert trend[3].split() == ["3", "60.00", "+8.5%"]
    assert text.count("best\n") == 1
    assert text.isascii()


def test_what_is_not_finite_is_a_dash():
    got = summary(make_epochs([np.inf, 80.0], best=1), BASELINE)
    text = got.text("tiny", "magnitude", 0.05)
    assert lines_of(text)["After pruning"] == "-"
    assert lines_of(text)["Improvement, pruned to best"] == "-"
    assert "nan" not in text
    assert "inf" not in text
    huge = summary(make_epochs([3.2e12, 80.0], best=1), BASELINE).text("tiny", "wanda", 0.05)
    assert lines_of(huge)["After pruning"] == "3.20e+12"


def test_latex_has_a_row_a_run_and_the_best_of_each_density_bold():
    found = {
        ("gradual", 0.1): summary(make_epochs([700.0, 40.0], best=1), BASELINE),
        ("sparsegpt", 0.1): summary(make_epochs([3671.0, 46.5], best=1), BASELINE),
        ("sparsegpt", 0.5): summary(make_epochs([36.85, 30.0], best=1), BASELINE),
        ("my_own", 0.5): summary(make_epochs([np.inf, 31.0], best=1), BASELINE),
    }
    table = latex(found)
    assert table.startswith("\\begin{tabular}{lrrrrrr}\n\\toprule\n")
    assert table.endswith("\\bottomrule\n\\end{tabular}\n")
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert all(row.count("&") == 6 for row in rows)
    cells = [[c.strip() for c in row.removesuffix(r"\\").split("&")] for row in rows]
    assert cells[1][:5] == ["dense", "1", "", "", "27.66"]
    assert [row[:2] for row in cells[2:]] == [
        ["SparseGPT", "0.5"], [r"my\_own", "0.5"], ["SparseGPT", "0.1"],
        ["Gradual SparseGPT", "0.1"],
    ]  # fmt: skip
    assert cells[2][2:] == ["36.85", "30.00", r"\textbf{30.00}", "$18.6$", "$8.5$"]
    assert cells[3][2:] == ["--", "31.00", "31.00", "--", "$12.1$"]
    assert cells[5][4] == r"\textbf{40.00}"
    assert cells[4][4] == "46.50"
    assert table.count("\\midrule") == 3


def test_tables_that_say_too_little_are_refused():
    epochs = make_epochs([90.0, 40.0], best=1)
    with pytest.raises(ArtifactError, match="epoch 0"):
        summary(epochs[1:], BASELINE)
    with pytest.raises(ArtifactError, match="epoch 0"):
        summary(epochs[:0], BASELINE)
    with pytest.raises(ArtifactError, match="no best one"):
        summary(epochs.assign(best=False), BASELINE)
    for baseline in (np.nan, np.inf, 0.5, None):
        with pytest.raises(ArtifactError, match="dense model's perplexity"):
            summary(epochs, baseline)
    with pytest.raises(ArtifactError, match="0 baselines"):
        latex({})
    with pytest.raises(ArtifactError, match="2 baselines"):
        latex({("wanda", 0.1): summary(epochs, 20.0), ("wanda", 0.2): summary(epochs, 30.0)})
