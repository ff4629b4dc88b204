"""Oracles: the definitions of the derived columns, the planted classes, and a fresh process."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from paramscope.errors import RequestError
from paramscope.geometry.partition import counts, label_units
from paramscope.geometry.planted import PLANTED_UNITS, POPULATIONS, plant

PIPELINE = """
import sys
from pathlib import Path
from paramscope.cli.embedding import embedding
from paramscope.cli.partition import partition
from paramscope.cli.planted_units import planted_units

folder = Path(sys.argv[1])
planted_units(folder / "units.parquet")
embedding(folder / "units.parquet", folder / "embedding.parquet", folder / "embedding.json")
partition(folder / "units.parquet", folder / "origin.parquet", rule="origin")
partition(
    folder / "units.parquet", folder / "random.parquet", "random", like=folder / "origin.parquet"
)
print("torch" in sys.modules)
# VmHWM is this process's own peak; ru_maxrss would start from the peak of the one it came from
status = Path("/proc/self/status").read_text().split()
print(int(status[status.index("VmHWM:") + 1]) / 1024)
"""


def test_derived_columns_follow_from_the_others():
    units = plant(900, seed=0)
    assert list(units.columns) == PLANTED_UNITS.names
    assert len(units) == 900
    assert units["unit"].is_unique
    assert units.groupby(["layer", "kind"]).size().tolist() == [25] * 36
    np.testing.assert_allclose(
        units["curvature_sum"], units["curvature_mean"] * units["n_parameters"]
    )
    expected = [
        percentileofscore(units["alignment"], value, kind="mean") / 100
        for value in units["alignment"]
    ]
    np.testing.assert_allclose(units["alignment_percentile"], expected)
    # were h and w² uncorrelated, the saliency would be ½ Σh · mean w²; the factor has deviation .1
    factor = np.log(units["saliency"] / (0.5 * units["curvature_sum"] * units["weight_rms"] ** 2))
    assert factor.std() == pytest.approx(0.1, rel=0.1)  # 900 draws: error 2.4%, so 4 of them
    assert abs(factor.mean()) < 4 * 0.1 / np.sqrt(900)


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_origin_recovers_the_planted_classes_exactly(seed):
    units = plant(900, seed)
    found = label_units(units, "origin")
    assert found["label"].tolist() == units["planted_label"].tolist()
    assert min(counts(found).values()) > 150


def test_classes_are_drawn_from_their_stated_populations():
    units = plant(5000, seed=0)
    for label, rows in units.groupby("planted_label"):
        population = POPULATIONS[label]
        for column in ("alignment", "sparsity"):
            low, high = getattr(population, column)
            assert rows[column].between(low, high).all()
            # deviation of a Beta(3, 3) is .19 of its range; 4 errors of the mean of > 1,000 rows
            assert abs(rows[column].mean() - (low + high) / 2) < 4 * 0.19 * (high - low) / 1000**0.5
        logs = np.log10(rows["curvature_mean"])
        assert abs(logs.mean() - population.log10_curvature) < 4 * 0.15 / 1000**0.5
        first, last = (rows["layer"] == 0).sum(), (rows["layer"] == 5).sum()
        n = len(units) / 6
        for found, share in zip((first, last), population.share, strict=True):
            assert abs(found / n - share) < 4 * 0.5 / n**0.5


def test_the_seed_alone_decides():
    pd.testing.assert_frame_equal(plant(300, seed=1), plant(300, seed=1))
    assert (plant(300, seed=1)["alignment"] != plant(300, seed=2)["alignment"]).all()


@pytest.mark.parametrize("n_units", [0, 143, 36 * 768 + 1])
def test_too_few_or_too_many_units_are_refused(n_units):
    with pytest.raises(RequestError, match=f"{n_units} planted units: take 144 to 27648"):
        plant(n_units)


def test_the_planted_path_needs_no_torch_and_little_memory_and_says_synthetic(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    *_, torch_loaded, peak_mb = run.stdout.splitlines()
    assert torch_loaded == "False"
    if sys.platform == "linux":
        assert float(peak_mb) <= 450
    for name in ("units", "embedding", "origin", "random"):
        described = read_table_provenance(tmp_path / f"{name}.parquet")
        assert described["synthetic"] is True, name
        assert described["seed"] == 0
    record = read_record(tmp_path / "embedding.json")
    assert record["synthetic"] is True
    assert record["provenance"]["synthetic"] is True
    assert record["n_units"] == len(read_table(tmp_path / "embedding.parquet")) == 900
    assert record["n_clusters"] >= 3
    assert read_table(tmp_path / "random.parquet")["draw"].nunique() == 20


def test_planted_membership_tells_the_classes_and_is_consistent():
    units = plant(5000, seed=0)
    for label, rows in units.groupby("planted_label"):
        # 4 errors of the mean of > 1,000 normal values of deviation .0005
        expected = POPULATIONS[label].gate
        assert abs(rows["gate"].mean() - expected) < 4 * 5e-4 / 1000**0.5
    assert (units.groupby("tensor")["contrast"].nunique() == 1).all()
    first, last = (units[units["layer"] == layer]["contrast"].mean() for layer in (0, 5))
    assert last - first == pytest.approx(0.6, abs=4 * 0.05 * (2 / 6) ** 0.5)
    # |γ| = |⟨w, d⟩| can't be above ‖w‖·‖d‖ (Cauchy and Schwarz)
    norms = units["weight_rms"] * units["n_parameters"] ** 0.5
    assert (units["gate"].abs() <= 0.5 * norms * units["loss_gap"] * (1 + 1e-12)).all()
    found = label_units(units, "gate")["label"]
    assert (units["planted_label"][found == "W_sens"] == "W_sens").mean() > 0.9
    assert set(label_units(units, "contrast")["label"]) == {"W_func", "W_sens", "W_both"}
