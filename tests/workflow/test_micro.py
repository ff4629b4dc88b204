"""The whole study on a micro model, what reruns when something changes, and a kill midway."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from tests.workflow.conftest import CHECKOUT, MICRO, Workplace

pytestmark = pytest.mark.workflow

FIGURES = (
    "curvature_quality",
    "curvature_by_layer",
    "umap_visualization",
    "parameter_clustering",
    "prm_phase_diagram",
    "noise_response_curves",
    "statistical_summary",
    "separation",
    "membership_scores",
    "layer_responses",
)
RULES = ("contrast", "curvature", "random")
PARTITIONS = {
    *("contrast", "curvature", "origin", "origin_quantile", "gate", "loss_gap"),
    *("random", "random_tensor"),
}
SWEEP = {"prm": 6, "prm_responses": 3, "prm_statistics": 3, "findings": 1}
PRM = SWEEP | {"noise_range": 3}
TENSORS = {"tensor_responses": 1, "layer_responses": 1}
PRM_FIGURES = dict.fromkeys(
    ("prm_phase_diagram", "noise_response_curves", "statistical_summary", "separation"), 1
)
UNIT_FIGURES = {"umap_visualization": 1, "parameter_clustering": 1}
SPOTCHECK = {"spotcheck": 1, "curvature_quality": 1}
CURVATURE = (
    {"curvature": 1, "units": 1, "embedding": 1, "partition": 8, "results": 1}
    | SPOTCHECK | PRM | TENSORS | PRM_FIGURES | UNIT_FIGURES | {"curvature_by_layer": 1}
)  # fmt: skip


@pytest.fixture
def results(micro):
    return micro.folder / "results/micro-opt"


def test_the_study_is_whole(results):
    for name in FIGURES:
        assert (results / f"figures/{name}.png").stat().st_size > 10_000
        assert (results / f"figures/{name}.pdf").is_file()
    record = read_record(results / "results.json")
    assert record["synthetic"] is False
    assert record["partitions"].keys() == PARTITIONS
    units = len(read_table(results / "geometry/units.parquet"))
    for rule in record["partitions"].values():
        assert sum(rule["counts"].values()) == units
    assert record["responses"].keys() == set(RULES)
    for rule in RULES:
        assert set(record["responses"][rule]["separation"]) == {"gap", "auc"}
    assert record["curvature"]["spotcheck"]["n"] == 24
    # Four sequences and 43,968 parameters: the estimate still ranks the entries.
    assert record["curvature"]["spotcheck"]["spearman_ggn"] > 0.9
    assert record["target"]["member_loss"] < record["base"]["member_loss"]
    assert record["target"]["auc"] > record["base"]["auc"]
    assert record["membership"]["n_members"] == 48  # 64 less the 16 that shaped partitions
    assert record["membership"]["scores"]["calibrated"]["auc"] > 0.5
    assert {one["rule"] for one in record["findings"]} == set(RULES) - {"random"}
    for one in record["findings"]:
        assert one["sentence"] in (results / "findings.md").read_text(encoding="utf-8")
    assert (results / "separation.tex").read_text(encoding="utf-8").count("texttt") == 2
    assert record["machine"]["memory_bytes"] > 0
    assert record["versions"]["torch"]


def test_the_csv_has_a_row_a_class_scale_and_seed(results):
    rows = pd.read_csv(results / "results.csv")
    for rule in RULES:
        partition = read_table(results / f"geometry/partition/{rule}.parquet")
        # Two scales and four seeds a class; of the control, one scale for each of five draws.
        each = partition["label"].nunique() * 2 * 4 if rule != "random" else 2 * 5
        assert len(rows[rows["rule"] == rule]) == each
    responses = read_table(results / "prm/curvature.parquet")
    sigma = responses.loc[responses["class"] == "W_sens", "sigma"].min()
    chosen = (
        (responses["class"] == "W_sens") & (responses["sigma"] == sigma) & (responses["seed"] == 2)
    )
    row = rows[
        (rows["rule"] == "curvature") & (rows["class"] == "W_sens")
        & (rows["sigma"] == sigma) & (rows["seed"] == 2)
    ].iloc[0]  # fmt: skip
    expected = responses[chosen]["delta_log_ppl"].mean()
    assert row["delta_log_ppl"] == pytest.approx(expected, rel=1e-12)
    assert row["delta_log_ppl"] != 0


def test_every_artifact_says_where_it_came_from(results):
    described = read_table_provenance(results / "prm/curvature.parquet")
    assert described["command"].startswith("paramscope prm-responses results/micro-opt/prm/")
    assert set(described["inputs"]) == {
        f"results/micro-opt/prm/shards/curvature/{first}-2.parquet" for first in (0, 2)
    }
    for path in (results / "geometry").rglob("*.parquet"):
        assert read_table_provenance(path)["synthetic"] is False


def test_a_second_run_has_nothing_to_do(micro):
    assert micro.planned() == {}
    for path in ("results/micro-opt/corpus/public.parquet", "results/micro-opt/target/config.json",
                 "src/paramscope/geometry/sparsity.py", "config.yaml"):  # fmt: skip
        (micro.folder / path).touch()
    assert micro.planned() == {}


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("figures/prm_phase_diagram.py", {"prm_phase_diagram": 1}),
        ("figures/umap_visualization.py", {"umap_visualization": 1}),
        (
            "geometry/embedding.py",
            {"embedding": 1, "umap_visualization": 1, "results": 1},
        ),
        (
            "geometry/sparsity.py",
            {"activation_sparsity": 1, "membership_features": 1, "units": 1, "embedding": 1}
            | {"partition": 8, "results": 1} | PRM | TENSORS | PRM_FIGURES | UNIT_FIGURES,
        ),
        (
            "curvature/spotcheck.py",
            {"spotcheck": 1, "curvature_quality": 1, "results": 1},
        ),
    ],
)  # fmt: skip
def test_an_edit_reruns_what_runs_that_code(micro, edited, expected):
    path = micro.folder / "src/paramscope" / edited
    before = path.read_bytes()
    path.write_bytes(before + b"\nEDITED = True\n")
    try:
        assert micro.planned() == expected
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("prm={bootstrap: 51}", SWEEP | PRM_FIGURES | {"results": 1}),
        ("embedding={min_dist: 0.2}", {"embedding": 1, "umap_visualization": 1, "results": 1}),
        (
            "prm={seeds: 6}",  # a shard more of each rule, the control as it was
            SWEEP | PRM_FIGURES
            | {"prm": 2, "prm_responses": 2, "prm_statistics": 2, "results": 1},
        ),
        ("membership={bootstrap: 101}", {"membership": 1, "membership_scores": 1, "results": 1}),
        ("curvature={draws: 6}", CURVATURE | {"curvature_draws": 1}),
        ("curvature={graph: layerwise}", CURVATURE | {"curvature_draws": 2}),
        # The first shard stands; the second has to look at it now.
        (
            "curvature={tolerance: 0.5}",
            {rule: n for rule, n in CURVATURE.items() if rule not in SPOTCHECK}
            | {"curvature_draws": 1},
        ),
        ("curvature={method: exact}", CURVATURE | {"curvature_draws": 1}),  # a single shard
        ("activation_sparsity={batch: 32}", {}),
    ],
)  # fmt: skip
def test_a_changed_value_reruns_what_uses_it(micro, change, expected):
    assert micro.planned("--config", change) == expected


def test_one_figure_is_redrawn_by_its_name_and_by_its_path(micro, results):
    png = results / "figures/prm_phase_diagram.png"
    before = png.read_bytes()
    png.unlink()
    for target in ("prm_phase_diagram", "results/micro-opt/figures/prm_phase_diagram.png"):
        assert micro.planned(target) == {"prm_phase_diagram": 1}
    micro.run("prm_phase_diagram")
    assert png.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prm={sigmas: []}", ("prm.sigmas", "[]")),
        ("prm={sigma: [1]}", ("prm.sigma", "did you mean prm.sigmas")),
        ("base={epochs: three}", ("base.epochs", "three", "whole number")),
        ("model=tiny-opr", ("model", "tiny-opr", "did you mean tiny-opt")),
        ("partition={rules: [curvatur]}", ("partition.rules", "curvatur", "origin_quantile")),
        ("density=0", ("density", "not a known key")),
    ],
)
def test_a_wrong_config_stops_before_any_job(micro, change, words):
    result = micro.snakemake("--config", change)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "config:" in line]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said[0]
    assert "Traceback" not in result.stderr
    assert "Job " not in result.stdout + result.stderr


def test_a_killed_run_resumes_to_the_same_numbers(micro, results, tmp_path):
    """SIGKILL to the whole process group while the sweep runs; then what `make resume` does."""
    workplace = Workplace.fresh(tmp_path / "checkout")
    process = subprocess.Popen(
        workplace.command("--configfile", MICRO), cwd=workplace.folder, env=workplace.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    here = workplace.folder / "results/micro-opt"
    deadline = time.monotonic() + 300
    while not any(here.glob("prm/shards/*/*.parquet")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (here / "results.csv").exists()
    kept = {p: p.stat().st_mtime_ns for p in here.glob("target/model.safetensors")}
    locked = workplace.snakemake()
    assert locked.returncode != 0
    assert "lock" in (locked.stdout + locked.stderr).lower()
    workplace.run("--unlock")
    workplace.run("--rerun-incomplete")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept  # what was done was not done again
    for path in results.rglob("*"):
        if path.is_file() and path.name != "results.json":
            assert (here / path.relative_to(results)).read_bytes() == path.read_bytes(), path.name
    ours, theirs = (read_record(r / "results.json") for r in (here, results))
    for record in (ours, theirs):
        assert record.pop("stages")["prm"]["jobs"] == 6  # seconds and memory are not repeatable
        del record["provenance"]["content_digest"]
    assert ours == theirs
    assert not list(here.rglob(".partial-*"))


WIKITEXT = CHECKOUT.parent / "shared/data/wikitext-2"


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="the folder of real text is not on this machine")
def test_local_files_are_dealt_and_tokenised(tmp_path):
    workplace = Workplace.fresh(tmp_path / "checkout")
    paths = [str(WIKITEXT / name) for name in ("wiki.valid.tokens", "wiki.test.raw")]
    tokenizer = "results/micro-opt/tokenizer/tokenizer.json"
    corpus = json.dumps({"source": "local", "paths": paths})
    workplace.run(tokenizer, "--config", f"corpus={corpus}")
    gate = read_record(workplace.folder / "results/micro-opt/corpus/gate.json")
    assert gate["passed"] is True
    public = read_table(workplace.folder / "results/micro-opt/corpus/public.parquet")
    assert len(public) == 240
    described = read_table_provenance(workplace.folder / "results/micro-opt/corpus/public.parquet")
    assert described["notes"]["source_documents"] == 120  # articles of the two files
    assert Path(paths[0]).name in "".join(described["inputs"])


def test_wikitext_config_is_the_default_study_on_local_files():
    """Its paths are relative to the checkout, and all else but the model's name is the default."""
    from paramscope.config.load import load

    default, local = load([]), load([CHECKOUT / "workflow/configs/wikitext-local.yaml"])
    differing = {
        name
        for name in type(default).model_fields
        if getattr(default, name) != getattr(local, name)
    }
    assert differing == {"model", "models", "corpus"}
    assert local.models[local.model] == default.models["tiny-opt"]


def test_a_checkpoint_is_a_base(micro, tmp_path):
    """A local folder in the place of a scratch model: the micro study's own base."""
    workplace = Workplace.fresh(tmp_path / "checkout")
    shutil.copytree(micro.folder / "results/micro-opt/base", tmp_path / "published")
    models = json.dumps({"mine": {"kind": "checkpoint", "source": str(tmp_path / "published")}})
    folder = "results/mine/base"
    workplace.run(f"{folder}/model.safetensors", "--config", "model=mine", f"models={models}")
    ours, theirs = (
        (p / "model.safetensors").read_bytes()
        for p in (workplace.folder / folder, tmp_path / "published")
    )
    assert ours == theirs
    assert len(read_table(workplace.folder / folder / "training.parquet")) == 1
