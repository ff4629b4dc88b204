"""The plan that Snakemake asks for: how often, what it hangs on, and what it refuses."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from paramscope.config.load import load, merge, validate
from paramscope.errors import RequestError
from paramscope.planner import run_plan
from paramscope.planner.known_devices import Device
from paramscope.planner.run_plan import RunPlan, digest, on_gpu, shared_memory_mb

MICRO = load([Path(__file__).parents[2] / "workflow/configs/micro.yaml"])
GB = 10**9
BASE, PRM = ("base", "micro-opt"), ("prm", "micro-opt")


def changed(**values):
    return merge(MICRO.model_dump(mode="json"), values)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 10 GB without a GPU, and an answer of 4 GB a stage; told of each question."""
    here = SimpleNamespace(free=10 * GB, gpus=(), asked=[], takes=4 * GB, binding=True)

    def ask(config, rules):
        here.asked.append(sorted(rules))
        fits = here.takes <= 0.9 * here.free
        told = {"mem_mb": 4000, "memory_bytes": here.takes, "binding": here.binding}
        return {
            rule: told | {"fits": fits or not here.binding, "advice": None if fits else f"{rule}!"}
            for rule in rules
        }

    memory = SimpleNamespace
    monkeypatch.setattr(run_plan, "ask", ask)
    monkeypatch.setattr(run_plan, "_gpus", lambda: here.gpus)
    monkeypatch.setattr(
        run_plan, "main_memory", lambda: memory(device=Device("cpu", "cpu", here.free, "", ""))
    )
    return here


def test_all_that_is_not_kept_is_asked_for_at_once(machine, tmp_path):
    plan = RunPlan(changed(), tmp_path)
    told = plan.of(*BASE, lambda: [PRM, BASE, ("corpus", "micro-opt")])
    assert told["mem_mb"] == 4000
    assert plan.of(*PRM)["mem_mb"] == 4000
    assert machine.asked == [["base", "prm"]]
    again = RunPlan(changed(), tmp_path)
    again.prepare([PRM, BASE])
    assert again.of(*PRM)["mem_mb"] == 4000
    assert machine.asked == [["base", "prm"]]


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"embedding": {"min_dist": 0.2}, "prm": {"bootstrap": 60}, "seed": 3}, None),
        ({"base": {"batch": 8}}, ["base"]),
        ({"prm": {"batch": 8}}, ["prm"]),
        ({"dtype": "bfloat16"}, ["base", "prm"]),
        ({"models": {"micro-opt": {"layers": 3}}}, ["base", "prm"]),
        ({"memory": {"device": "h200"}}, ["base", "prm"]),
    ],
)
def test_a_stage_is_planned_anew_where_what_it_hangs_on_changes(machine, tmp_path, values, asked):
    RunPlan(changed(), tmp_path).prepare([BASE, PRM])
    RunPlan(changed(**values), tmp_path).prepare([BASE, PRM])
    assert machine.asked[1:] == ([asked] if asked else [])


def test_a_checkpoints_architecture_counts_and_not_its_folders_name(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    models = {"mine": {"kind": "checkpoint", "source": str(folder)}}
    config = validate(changed(model="mine", models=models))
    first = digest(config, "base")
    assert digest(config, "base") == first
    (folder / "config.json").write_text('{"model_type": "opt"}', encoding="utf-8")
    assert digest(config, "base") != first


def test_what_is_kept_is_held_against_what_is_free_now(machine, tmp_path):
    plan = RunPlan(changed(), tmp_path)
    assert plan.refusals([BASE, PRM]) == []
    machine.free = 4 * GB  # of which 3.6 can be used
    later = RunPlan(changed(), tmp_path)
    assert later.refusals([BASE, PRM, BASE]) == ["base!", "prm!"]
    assert machine.asked == [["base", "prm"]] * 2
    assert later.refusals([PRM]) == ["prm!"]
    assert len(machine.asked) == 2
    machine.free = 10 * GB
    assert RunPlan(changed(), tmp_path).refusals([BASE]) == []
    assert len(machine.asked) == 2


def test_a_known_device_is_not_asked_of_again(machine, tmp_path):
    machine.takes = 10 * GB
    for _ in range(2):
        assert RunPlan(changed(memory={"device": "laptop-8gb"}), tmp_path).refusals([BASE]) == [
            "base!"
        ]
    assert machine.asked == [["base"]]


def test_a_stage_that_may_fail_is_not_refused(machine, tmp_path):
    machine.takes, machine.binding = 100 * GB, False
    assert RunPlan(changed(), tmp_path).refusals([("dpsgd_profile", "micro-opt")]) == []


def test_where_a_gpu_computes_it_is_asked_what_it_has_free(machine, tmp_path):
    machine.gpus = ("NVIDIA H100 80GB HBM3",)
    plan = RunPlan(changed(), tmp_path)
    plan.prepare([BASE])
    assert plan.refusals([BASE]) == []
    assert RunPlan(changed(), tmp_path).refusals([BASE]) == []
    assert machine.asked == [["base"], ["base"]]


def test_a_model_that_cant_be_read_is_asked_for_once(machine, tmp_path, monkeypatch):
    def unread(config, rules):
        machine.asked.append(rules)
        raise RequestError("no config.json there")

    monkeypatch.setattr(run_plan, "ask", unread)
    plan = RunPlan(changed(), tmp_path)
    for wanted in (BASE, PRM, BASE):
        with pytest.raises(RequestError, match="no config"):
            plan.of(*wanted)
    assert len(machine.asked) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_a_planted_model_has_nothing_to_ask(machine, tmp_path):
    assert RunPlan(changed(model="planted"), tmp_path).of("units", "planted") is None
    assert machine.asked == []


@pytest.mark.parametrize(
    ("values", "gpus", "computes"),
    [
        ({}, (), False),
        ({}, ("A100",), True),
        ({"device": "cpu"}, ("A100",), False),
        ({"device": "cuda:1"}, (), True),
        ({"memory": {"device": "h200"}}, (), True),
        ({"memory": {"device": "wsl-8gb"}}, ("A100",), False),
    ],
)
def test_a_stage_takes_a_gpu_where_it_is_planned_for_one(machine, values, gpus, computes):
    machine.gpus = gpus
    assert on_gpu(validate(changed(**values))) is computes


def test_jobs_share_the_memory_that_is_planned_for(machine):
    assert shared_memory_mb(validate(changed())) == 9000
    assert shared_memory_mb(validate(changed(memory={"device": "h200"}))) == 9000
    assert shared_memory_mb(validate(changed(memory={"device": "laptop-8gb"}))) == 3600


def test_the_commands_error_is_its_own_words(monkeypatch, capfd):
    """In a process: progress goes on to stderr, the error comes back as one."""
    script = "import sys; sys.stderr.write('half\\r'); sys.stderr.flush(); "
    script += "sys.stderr.write('paramscope: no config.json there'); sys.exit(2)"
    popen = run_plan.subprocess.Popen
    monkeypatch.setattr(
        run_plan.subprocess,
        "Popen",
        lambda command, **k: popen([sys.executable, "-c", script], **k),
    )
    with pytest.raises(RequestError, match=r"^no config\.json there$"):
        run_plan.ask(MICRO, ["base"])
    assert "no config" not in capfd.readouterr().err
    answer = json.dumps({"stages": {"base": {"mem_mb": 1}}})
    script = f"import sys; sys.stderr.write('all'); sys.stdin.read(); print('{answer}')"
    assert run_plan.ask(MICRO, ["base"]) == {"base": {"mem_mb": 1}}
    assert capfd.readouterr().err == "all"
