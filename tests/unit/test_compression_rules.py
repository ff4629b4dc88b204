"""What the rules of compression hand their commands, by the functions that the rules call."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.main import get_command

from paramscope.cli.evaluate import evaluate
from paramscope.cli.finetune import finetune
from paramscope.config.model import Config

RULES = Path(__file__).parents[2] / "rules"
RUN = SimpleNamespace(model="tiny-opt", method="wanda", density="0.1")


def rules(**changed):
    """The functions of compression_common.smk where the `compression` settings are so changed."""
    config = Config().model_dump(mode="json")
    for section, values in changed.items():
        config["compression"][section] |= values
    names = {"config": config, "RESULTS": "results/tiny-opt", "WEIGHTS": ("config.json",)}
    shared = ast.parse((RULES / "common.smk").read_text())
    wanted = {"options", "repeated", "target_folder"}
    shared.body = [n for n in shared.body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    exec(compile(shared, "common.smk", "exec"), names)
    exec((RULES / "compression_common.smk").read_text(), names)
    return SimpleNamespace(**names)


def given(line):
    """The options of a command line by name; one without a value is True."""
    found, name = {}, ""
    for word in line.split():
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        else:
            found[name] = word
    return found


def taken(command):
    """The names of a command's options."""
    app = typer.Typer()
    app.command()(command)
    declared = [name for parameter in get_command(app).params for name in parameter.opts]
    return {name.removeprefix("--") for name in declared}


def test_every_setting_of_finetuning_is_an_option_of_its_command():
    common = rules(finetune={"distillation": 0.5, "checkpoint_activations": True})
    options = given(common.finetune_options(RUN))
    assert options.keys() <= taken(finetune)
    settings = {name.replace("_", "-") for name in common.PRUNING["finetune"]}
    assert settings - options.keys() == {"tensorboard", "wandb"}
    assert options["distillation"] == "0.5"
    assert options["checkpoint-activations"] is True
    assert options["teacher"] == "results/tiny-opt/target"


@pytest.mark.parametrize("tensorboard", [False, True])
@pytest.mark.parametrize("wandb", [False, True])
def test_a_finetuning_is_tracked_where_that_is_set(tensorboard, wandb):
    common = rules(finetune={"tensorboard": tensorboard, "wandb": wandb})
    expected = {}
    if tensorboard:
        expected["tensorboard"] = "logs/tiny-opt/finetune/wanda-0.1.tensorboard"
    if wandb:
        expected["wandb"] = "paramscope"
    assert given(common.tracking_options(RUN)) == expected
    assert expected.keys() <= taken(finetune)


def test_continuations_are_of_documents_that_chose_nothing():
    """The best epoch is chosen by the non-members (rule finetune's validation)."""
    common = rules(generation={"enabled": True})
    evaluation = "results/tiny-opt/corpus/evaluation.parquet"
    assert common.generation_documents(RUN) == evaluation
    options = given(common.evaluation_options(RUN))
    assert options["documents"] == evaluation
    assert options.keys() <= taken(evaluate)
    assert rules().generation_documents(RUN) == []
