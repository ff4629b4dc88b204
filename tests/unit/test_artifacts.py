"""Artifacts come back as they went in, or not at all."""

import json
import os
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest
import torch

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.digest import code_digest, file_digest, imported_modules, seed_of
from paramscope.artifacts.provenance import Provenance, provenance
from paramscope.artifacts.records import read_record, write_record
from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
from paramscope.artifacts.tensors import read_tensors, read_tensors_provenance, write_tensors
from paramscope.errors import ArtifactError

SCHEMA = pa.schema([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.float64())])


@pytest.fixture
def made_by():
    return Provenance("paramscope test", {"x": 1}, "code", {}, {"python": "3"}, seed=7)


def test_a_table_comes_back(tmp_path, made_by):
    frame = pd.DataFrame({"b": [1.5, None], "a": [1, 2], "ignored": ["x", "y"]})
    write_table(tmp_path / "t.parquet", frame, SCHEMA, made_by)
    back = read_table(tmp_path / "t.parquet")
    assert list(back.columns) == ["a", "b"]
    assert back["a"].tolist() == [1, 2]
    assert back["b"][0] == 1.5
    assert pd.isna(back["b"][1])
    assert read_table_provenance(tmp_path / "t.parquet")["seed"] == 7


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"a": [1]}), "lacks the column"),
        (pd.DataFrame({"a": [None], "b": [1.0]}), "1 null value"),
        (pd.DataFrame({"a": ["x"], "b": [1.0]}), "does not fit its schema"),
    ],
)
def test_a_table_that_breaks_its_schema_is_not_written(tmp_path, made_by, frame, words):
    with pytest.raises(ArtifactError, match=words):
        write_table(tmp_path / "t.parquet", frame, SCHEMA, made_by)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_table_is_refused(tmp_path, made_by):
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    write_table(path, pd.DataFrame({"a": [1], "b": [2.0]}), SCHEMA, made_by)
    table = pq.read_table(path)
    forged = table.set_column(0, table.schema.field(0), pa.array([9], pa.int32()))
    pq.write_table(forged.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ArtifactError, match="content differs"):
        read_table(path)
    with pytest.raises(ArtifactError, match="no such table"):
        read_table(tmp_path / "none.parquet")
    with pytest.raises(ArtifactError, match=r"lacks the column\(s\) c"):
        write_table(path, pd.DataFrame({"a": [1], "b": [2.0]}), SCHEMA, made_by)
        read_table(path, ["a", "c"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="not a readable Parquet file"):
        read_table(path)


def test_tensors_come_back_and_changes_are_refused(tmp_path, made_by):
    path = tmp_path / "t.pt"
    content = {"w": torch.arange(6.0).reshape(2, 3), "b16": torch.ones(3).bfloat16(), "n": 4}
    write_tensors(path, content, made_by)
    back = read_tensors(path)
    assert back.keys() == content.keys()
    assert back["n"] == 4
    torch.testing.assert_close(back["w"], content["w"], rtol=0, atol=0)
    torch.testing.assert_close(back["b16"], content["b16"], rtol=0, atol=0)
    assert read_tensors_provenance(path)["command"] == "paramscope test"
    forged = torch.load(path, weights_only=True)
    forged["w"][0, 0] = 5
    torch.save(forged, path)
    with pytest.raises(ArtifactError, match="content differs"):
        read_tensors(path)


def test_records_come_back_and_nan_is_null(tmp_path, made_by):
    path = tmp_path / "r.json"
    write_record(path, {"x": float("nan"), "y": [torch.tensor(1.5).item()], "z": {"k": 1}}, made_by)
    record = read_record(path)
    assert record["x"] is None
    assert record["y"] == [1.5]
    assert record["provenance"]["parameters"] == {"x": 1}
    record["z"]["k"] = 2
    path.write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="content differs"):
        read_record(path)


def test_equal_work_gives_equal_bytes(tmp_path, made_by):
    for name in ("one", "another"):
        write_table(
            tmp_path / f"{name}.parquet", pd.DataFrame({"a": [1], "b": [2.0]}), SCHEMA, made_by
        )
        write_tensors(tmp_path / f"{name}.pt", {"w": torch.ones(3)}, made_by)
    for suffix in ("parquet", "pt"):
        one, another = (file_digest(tmp_path / f"{name}.{suffix}") for name in ("one", "another"))
        assert one == another


def test_provenance_tells_inputs_from_outputs_and_parameters(tmp_path):
    given = tmp_path / "in.txt"
    given.write_text("text")
    arguments = {"source": given, "output": tmp_path / "out.txt", "seed": 3, "folder": tmp_path}
    described = provenance("artifacts.atomic", arguments)
    assert described.inputs == {str(given): file_digest(given)}
    assert described.parameters == {"seed": 3}
    assert described.code == code_digest("artifacts.atomic")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_killed_writer_leaves_no_output_and_is_cleared_up(tmp_path):
    path = tmp_path / "x.txt"
    script = (
        "import os, pathlib, sys\n"
        "from paramscope.artifacts.atomic import atomic\n"
        "with atomic(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1  # what the killed one left
    with atomic(path) as partial:
        partial.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("old", "new"):
        with atomic(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / text).write_text(text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]


def test_seeds_hang_on_every_part_of_an_identity():
    seeds = {seed_of(0, "a", 1), seed_of(0, "a", 11), seed_of(0, "a1", 1), seed_of(1, "a", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "a", 1) == seed_of(0, "a", 1)


def test_code_digests_follow_imports():
    figure = imported_modules("cli.prm_phase_diagram")
    assert {"paramscope.figures.prm_phase_diagram", "paramscope.artifacts.tables"} <= figure
    assert "paramscope.figures.umap_visualization" not in figure
    assert not any(name.startswith("paramscope.config") for name in figure)
    stage = imported_modules("cli.activation_sparsity")
    assert "paramscope.geometry.sparsity" in stage
    assert "paramscope.curvature.ggn" not in stage
    with pytest.raises(ValueError, match="no module"):
        code_digest("cli.nothing")


def test_no_module_imports_upwards():
    """The floors of the library: each module may import what stands on a lower one."""
    floors = [
        {"errors", "names", "rehearsal", "units"},
        {"artifacts", "config", "machine", "memory", "tracker"},
        {"devices", "nvml", "corpus", "figures"},
        {"models"},
        {"persample", "evaluation"},
        {"curvature", "compression", "dpsgd"},
        {"geometry", "planner"},
        {"response"},
        {"cli"},
    ]
    level = {name: i for i, names in enumerate(floors) for name in names}
    from paramscope.artifacts.digest import SOURCE, _imports

    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if len(parts) == 1 and parts[0] in ("__init__", "__main__"):
            continue
        module = ".".join(("paramscope", *parts)).removesuffix(".__init__")
        for imported in _imports(module):
            names = imported.split(".")
            if len(names) > 1:
                assert level[names[1]] <= level[parts[0]], f"{module} imports {imported}"


def test_starting_the_command_line_loads_nothing_heavy():
    script = (
        "import sys; from paramscope.cli.app import _register; _register();"
        "heavy = {'torch', 'pandas', 'pyarrow', 'umap', 'sklearn', 'matplotlib', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"
