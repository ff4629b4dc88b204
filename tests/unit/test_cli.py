"""The command line: its defaults are the configuration's, and its failures are two lines."""

import importlib
import inspect
import subprocess
import sys

import pytest

from paramscope.cli.app import STAGES
from paramscope.config.model import Config

DEFAULT = Config().model_dump(mode="json")
# which section of the configuration a stage's options stand in, and options under other names
SECTIONS = {
    "corpus": DEFAULT["corpus"] | DEFAULT["corpus"]["documents"] | DEFAULT["corpus"]["gate"],
    "tokenizer": DEFAULT["models"]["tiny-opt"],
    "base": DEFAULT["base"] | DEFAULT["models"]["tiny-opt"],
    "target": DEFAULT["target"],
    "curvature_draws": DEFAULT["curvature"] | {"draws": DEFAULT["curvature"]["draws_per_shard"]},
    "spotcheck": DEFAULT["spotcheck"]
    | {name: DEFAULT["curvature"][name] for name in ("draws", "batch")},
    "eigenspace": DEFAULT["eigenspace"] | {"batch": DEFAULT["curvature"]["batch"]},
    "activation_sparsity": DEFAULT["activation_sparsity"],
    "planted_units": {"units": DEFAULT["models"]["planted"]["units"]},
    "embedding": DEFAULT["embedding"],
    "partition": {"draws": DEFAULT["partition"]["random_draws"]},
    "noise_range": {name: DEFAULT["prm"][name] for name in ("points", "noise", "batch")},
    "prm": DEFAULT["prm"]
    | {"seeds": DEFAULT["prm"]["seeds_per_shard"], "probe": DEFAULT["membership"]["probe"]},
    "tensor_responses": {
        "probe": DEFAULT["membership"]["probe"],
        "seeds": DEFAULT["prm"]["tensor_seeds"],
        "batch": DEFAULT["prm"]["batch"],
    },
    "membership": DEFAULT["membership"] | {"min_k": DEFAULT["prm"]["min_k"]},
    "shadow": DEFAULT["target"],
    "membership_features": {
        "probe": DEFAULT["membership"]["probe"],
        "draws": DEFAULT["membership"]["contrast_draws"],
        "batch": DEFAULT["curvature"]["batch"],
    },
    "kfac": DEFAULT["kfac"],
    "directions": DEFAULT["kfac"],
    "units": {"granularity": DEFAULT["partition"]["granularity"]},
    "dpsgd_profile": DEFAULT["dpsgd"] | DEFAULT["dpsgd"]["known"]["decoder-small"],
    "dp_finetune": DEFAULT["dpsgd"]["finetuning"],
}
SHARED = {name: DEFAULT[name] for name in ("seed", "length", "device", "dtype")}


@pytest.mark.parametrize("stage", SECTIONS)
def test_defaults_are_the_configurations(stage):
    command = getattr(importlib.import_module(f"paramscope.cli.{stage}"), stage)
    expected = SHARED | SECTIONS[stage]
    checked = 0
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.default is not inspect.Parameter.empty and name in expected:
            assert parameter.default == expected[name], f"{stage} --{name}"
            checked += 1
    assert checked


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_help_on_every_option(stage):
    import typer
    from typer.testing import CliRunner

    app = typer.Typer(rich_markup_mode=None)
    command = getattr(importlib.import_module(f"paramscope.cli.{stage}"), stage)
    app.command()(command)
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert command.__doc__.splitlines()[0][:40] in result.output
    for annotation in inspect.get_annotations(command, eval_str=True).values():
        if annotation is not None:
            assert annotation.__metadata__[0].help, f"{stage}: an option without help"


def paramscope(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "paramscope", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_missing_input_is_one_line_and_exit_1(tmp_path):
    result = paramscope("partition", str(tmp_path / "none.parquet"), str(tmp_path / "out.parquet"))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "none.parquet: no such table; run the rule that makes it" in result.stderr


def test_a_wrong_request_is_exit_2_and_debug_shows_the_traceback(tmp_path):
    arguments = ("planted-units", str(tmp_path / "units.parquet"), "--units", "3")
    result = paramscope(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
    assert "Traceback" in paramscope("--debug", *arguments).stderr


def test_an_unknown_device_is_refused(tmp_path):
    result = paramscope("activation-sparsity", str(tmp_path), "x", "y", "--device", "tpu")
    assert result.returncode == 2
    assert "give auto, cpu, cuda or cuda:N" in result.stderr
