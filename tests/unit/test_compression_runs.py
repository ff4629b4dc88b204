"""Runs are known by their folders, and gathered into tables without the model's machinery."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paramscope.artifacts.digest import imported_modules
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record, write_record
from paramscope.artifacts.tables import read_table, write_table
from paramscope.cli.compression_results import compression_results
from paramscope.compression.frontier import FRONTIER, frontier, of_runs
from paramscope.compression.runs import named, run_of
from paramscope.compression.schemas import EPOCHS, LAYERS
from paramscope.errors import ArtifactError, RequestError
from paramscope.figures.pruned import by_run

DENSE = 27.5
RUNS = {("wanda", 0.5): (40.0, 30.0), ("wanda", 0.05): (9000.0, 80.0), ("admm", 0.5): (35.0, 29.0)}


@pytest.mark.parametrize("density", [1.0, 0.5, 0.05, 1e-5])
def test_a_runs_folder_gives_back_what_the_rules_call_it_by(density):
    folder = Path(f"results/tiny/compression/sparsegpt-2:4/density-{density:g}")
    assert run_of(folder) == ("sparsegpt-2:4", density)
    assert run_of(Path(f"wanda/density-{density:g}/")) == ("wanda", density)


@pytest.mark.parametrize(
    "folder",
    ["wanda/0.5", "wanda/density-", "wanda/density-half", "wanda/density-0", "wanda/density--0.5",
     "wanda/density-1.5", "wanda/density-nan", "wanda/density-inf", "density-0.5", "wanda"],
)  # fmt: skip
def test_a_folder_of_another_name_is_no_run(folder):
    with pytest.raises(RequestError, match="not the folder of a run, METHOD/density-DENSITY"):
        run_of(Path(folder))


def test_values_are_named_and_may_hold_the_sign_themselves():
    assert named([]) == {}
    assert named(["b=2", "a=x=y"]) == {"b": "2", "a": "x=y"}
    for wrong in (["news"], ["=news.txt"], ["news="], ["news=a.txt", "news=b.txt"]):
        with pytest.raises(RequestError, match=f"'{wrong[-1]}': give NAME=VALUE, each name once"):
            named(wrong)


def evaluated(dense=DENSE):
    """The records of the runs; the shape of each is told by its density."""
    return {
        (method, density): {
            "dense": {"evaluation": dense},
            "pruned": {"evaluation": before},
            "finetuned": {"evaluation": after},
            "shape": {
                "density": density + 1e-4,
                "overall_zeros": 0.6 * (1 - density),
                "compact_bytes": round(1000 * density),
                "dense_bytes": 1000,
            },
        }
        for (method, density), (before, after) in RUNS.items()
    }


def make_epochs(method, density):
    """Two epochs whose numbers tell the run; the first has no change and no training loss."""
    before, after = RUNS[method, density]
    rows = pd.DataFrame({name: [1.0, 2.0] for name in EPOCHS.names})
    return rows.assign(
        epoch=[0, 1],
        perplexity=[before, after],
        change_percent=[None, 100 * (after / before - 1)],
        best=[False, True],
        training_loss=[None, 3.0],
    )


def make_layers(method, density):
    rows = pd.DataFrame({name: [density, density / 2] for name in LAYERS.names})
    return rows.assign(layer=[0, 1], tensor=[f"{method}.a", f"{method}.b"], n_weights=8, n_kept=4)


def test_the_frontier_has_each_runs_perplexities_and_shape():
    table, baseline = frontier(evaluated())
    assert baseline == DENSE
    assert list(table.columns) == FRONTIER.names
    assert list(zip(table["method"], table["density"], strict=True)) == list(RUNS)
    for row, (before, after) in zip(table.itertuples(), RUNS.values(), strict=True):
        assert (row.perplexity_pruned, row.perplexity_finetuned) == (before, after)
        assert row.density_reached == row.density + 1e-4
        assert row.overall_zeros == 0.6 * (1 - row.density)
        assert (row.compact_bytes, row.dense_bytes) == (round(1000 * row.density), 1000)


def test_a_frontier_keeps_a_null_and_refuses_two_dense_models():
    records = evaluated()
    records["wanda", 0.05]["pruned"]["evaluation"] = None  # as a record writes infinity
    table, _ = frontier(records)
    assert table["perplexity_pruned"].isna().tolist() == [False, True, False]
    records["admm", 0.5]["dense"] = {"evaluation": 28.0}
    with pytest.raises(ArtifactError, match="2 perplexities of the dense model"):
        frontier(records)
    with pytest.raises(ArtifactError, match="0 perplexities of the dense model"):
        frontier({})
    broken = {run: found | {"dense": {"evaluation": None}} for run, found in evaluated().items()}
    with pytest.raises(ArtifactError, match="dense model's perplexity is not finite"):
        frontier(broken)


def test_tables_of_runs_are_one_and_come_apart_again():
    for own, make in ((EPOCHS, make_epochs), (LAYERS, make_layers)):
        tables = {run: make(*run) for run in RUNS}
        table, schema = of_runs(tables, own)
        assert schema.names == ["method", "of_density", *own.names] == list(table.columns)
        assert [schema.field(name) for name in own.names] == list(own)
        parts = by_run(table)
        assert list(parts) == list(RUNS)
        for run, rows in tables.items():
            pd.testing.assert_frame_equal(parts[run].reset_index(drop=True), rows)
    with pytest.raises(ArtifactError, match="no run to gather"):
        of_runs({}, EPOCHS)


def test_rows_of_a_run_may_stand_anywhere_in_the_table():
    table, _ = of_runs({run: make_layers(*run) for run in RUNS}, LAYERS)
    mixed = by_run(table.sample(frac=1, random_state=3))
    assert mixed.keys() == RUNS.keys()
    for run, rows in mixed.items():
        pd.testing.assert_frame_equal(
            rows.sort_values("layer").reset_index(drop=True), make_layers(*run)
        )
    assert by_run(table[:0]) == {}


def test_the_command_gathers_what_the_runs_folders_hold(tmp_path):
    made_by = provenance("cli.evaluate", {})
    records = evaluated()
    records["wanda", 0.05]["pruned"]["evaluation"] = math.inf
    folders = []
    for (method, density), record in records.items():
        folders.append(tmp_path / method / f"density-{density:g}")
        write_record(folders[-1] / "evaluation.json", record, made_by)
        write_table(folders[-1] / "epochs.parquet", make_epochs(method, density), EPOCHS, made_by)
        layers = make_layers(method, density)
        write_table(folders[-1] / "pruned/layers.parquet", layers, LAYERS, made_by)
    compression_results(tmp_path / "study", folders, "tiny")
    for name, make in (("epochs", make_epochs), ("layers", make_layers)):
        parts = by_run(read_table(tmp_path / f"study/{name}.parquet"))
        for run, rows in parts.items():
            pd.testing.assert_frame_equal(
                rows.reset_index(drop=True), make(*run), check_dtype=False
            )
        assert parts.keys() == RUNS.keys()
    points = read_table(tmp_path / "study/frontier.parquet")
    np.testing.assert_array_equal(points["perplexity_pruned"], [40, np.nan, 35])
    written = read_record(tmp_path / "study/results.json")
    assert (written["model"], written["dense"]) == ("tiny", {"evaluation": DENSE})
    assert [(run["method"], run["density"]) for run in written["runs"]] == list(RUNS)
    assert (tmp_path / "study/table.tex").read_text().count("\\\\") == len(RUNS) + 2


@pytest.mark.parametrize(
    "stage",
    ["compression_results", "summary", "perplexity_trend", "density_frontier", "layer_sparsity",
     "memory_per_epoch"],
)  # fmt: skip
def test_what_reads_a_study_loads_no_torch(stage):
    """Its rule is given 500 MB, which torch and transformers take most of."""
    modules = sorted(imported_modules(f"cli.{stage}"))
    told = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
