"""The plan in the workflow: what jobs ask for, what they take, and what is refused."""

import json
import subprocess
import sys

import pytest
from transformers import OPTConfig

from paramscope.config.load import load
from paramscope.planner.known_devices import known_device, usable_bytes
from paramscope.planner.run_plan import RunPlan
from paramscope.planner.stages.table import STAGES, stages_of
from tests.workflow.conftest import CHECKOUT, MICRO, Workplace, copied
from tests.workflow.watched import assert_planned, peaks, watched

pytestmark = pytest.mark.workflow

LAPTOP = "workflow/configs/laptop-8gb.yaml"
STUDIED = (
    *("base", "target", "curvature_draws", "curvature", "spotcheck", "eigenspace"),
    *("activation_sparsity", "membership_features", "units"),
    *("membership", "noise_range", "prm", "tensor_responses"),
)
WITHIN_8_GB = {  # a job of each kind of work, whose inputs the micro study has
    "curvature_draws": "curvature/draws/0-2.pt",
    "spotcheck": "curvature/spotcheck.parquet",
    "eigenspace": "curvature/eigenspace.pt",
    "membership_features": "geometry/membership.parquet",
    "prm": "prm/shards/curvature/0-2.parquet",
}
SPARSITY = "results/micro-opt/activations/sparsity.parquet"


def refused(result):
    assert result.returncode != 0
    told = result.stdout + result.stderr
    assert "Traceback" not in told
    assert "Nothing was started; --config force=true begins all the same." in told
    return told


def test_no_job_of_the_study_takes_more_than_planned(micro):
    """No false fit: by the kernel's figures and by Snakemake's benchmarks.

    The micro model's jobs are little but Python and its libraries; DESIGN's larger models are held
    to their plans tensor by tensor in tests/unit.
    """
    assert_planned(micro.folder, "micro-opt", STUDIED)
    assert set(STUDIED) == peaks(micro.folder).keys() & STAGES.keys()


def test_the_laptops_plan_fits():
    """Each stage of each study that a run could be refused for."""
    config = load([CHECKOUT / LAPTOP])
    laptop = known_device(config.memory.device)
    assert laptop.name == "laptop-8gb"
    rules = [rule for rule, stage in stages_of(config).items() if stage.binding]
    plan = RunPlan(config.model_dump(mode="json"))
    assert plan.refusals([(rule, "tiny-opt") for rule in rules]) == []
    needs = {rule: plan.of(rule, "tiny-opt") for rule in rules}
    assert len(needs) == len(STAGES) - 1
    assert all(need["fits"] for need in needs.values())
    assert max(need["memory_bytes"] for need in needs.values()) <= usable_bytes(laptop)
    assert min(need["memory_bytes"] for need in needs.values()) > 3e8  # Python and torch alone


def test_the_laptops_run_ends_well_under_8_gb(micro, tmp_path_factory):
    """Its settings with the micro study's sizes, no job of which may have more data than that."""
    workplace = copied(micro, tmp_path_factory, "laptop")
    here = Workplace(workplace.folder, watched(workplace.folder, 8 * 10**9))
    targets = [f"results/micro-opt/{path}" for path in WITHIN_8_GB.values()]
    before = {path: (here.folder / path).stat().st_mtime_ns for path in targets}
    result = here.snakemake(
        *targets, "--force", "--rerun-triggers", "mtime", "--configfile", LAPTOP, MICRO, config=None
    )
    assert result.returncode == 0, result.stderr
    assert "mem_mb=" in result.stdout + result.stderr  # what its jobs share
    assert all((here.folder / path).stat().st_mtime_ns > before[path] for path in targets)


def test_what_does_not_fit_is_refused_before_any_job(tmp_path):
    """OPT-6.7B's architecture on a GPU of 24 GB: no weights are needed to know."""
    source = tmp_path / "opt-6.7b"
    OPTConfig(
        hidden_size=4096, word_embed_proj_dim=4096, num_hidden_layers=32, ffn_dim=16384,
        num_attention_heads=32,
    ).save_pretrained(source)  # fmt: skip
    workplace = Workplace.fresh(tmp_path / "checkout")
    given = {
        "model": "large",
        "models": {"large": {"kind": "checkpoint", "source": str(source)}},
        "memory": {"device": "rtx-24gb"},
        "base": {"batch": 1},
        "length": 16,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    target = "results/large/base/model.safetensors"
    told = refused(workplace.snakemake(target, "--config", *words, config=None))
    line = next(line for line in told.splitlines() if line.startswith("does not fit"))
    assert line.startswith("does not fit: base (inference) takes 26.")  # 6.66e9 of 4 bytes
    assert "and rtx-24gb has 24.0 GB to use; dtype: bfloat16 would fit, at 13." in line
    assert not (workplace.folder / "results").exists()
    dry = workplace.run(target, "--dry-run", "--config", *words, config=None)
    assert (dry.stdout + dry.stderr).count(line) == 1
    mended = workplace.run(target, "--dry-run", "--config", *words, "dtype=bfloat16", config=None)
    assert "does not fit" not in mended.stdout + mended.stderr


def test_force_begins_all_the_same(micro, tmp_path_factory):
    """Documents of up to three million characters would not fit; the real ones are short."""
    workplace = copied(micro, tmp_path_factory, "forced")
    arguments = [SPARSITY, "--force", "--rerun-triggers", "mtime", "--config"]
    arguments += ["corpus={chunk_characters: 3000000}", "memory={device: laptop-8gb}"]
    before = (workplace.folder / SPARSITY).stat().st_mtime_ns
    told = refused(workplace.snakemake(*arguments))
    assert "does not fit: activation_sparsity (inference) takes 6." in told
    assert (workplace.folder / SPARSITY).stat().st_mtime_ns == before
    workplace.run(*arguments, "force=true")
    assert (workplace.folder / SPARSITY).stat().st_mtime_ns > before


def test_a_model_that_cant_be_read_is_told_and_not_planned(tmp_path):
    (tmp_path / "empty").mkdir()
    workplace = Workplace.fresh(tmp_path / "checkout")
    models = json.dumps({"mine": {"kind": "checkpoint", "source": str(tmp_path / "empty")}})
    arguments = ["--dry-run", "--config", "model=mine", f"models={models}"]
    result = workplace.run("results/mine/prm/contrast.range.json", *arguments)
    told = [line for line in result.stderr.splitlines() if "not planned" in line]
    assert len(told) == 1
    assert told[0].startswith("memory is not planned, its rules' own constants are taken: ")
    assert "no config.json there" in told[0]


def test_nothing_is_asked_where_no_model_is_needed(tmp_path, monkeypatch):
    """Neither torch nor a plan: for a figure, a lint or a planted model."""
    monkeypatch.setenv("PARAMSCOPE_CACHE", str(tmp_path / "plans"))
    workplace = Workplace.fresh(tmp_path / "checkout")
    workplace.run("--dry-run", config="workflow/configs/planted.yaml")
    workplace.run("--lint", config=None)
    assert not (tmp_path / "plans").exists()
    code = "import sys; import paramscope.planner.run_plan; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
