"""Every command that computes on a model halves its batch, says so, and finds what it found."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.main import get_command

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from paramscope.artifacts.tensors import read_tensors, read_tensors_provenance
from paramscope.cli import app
from paramscope.cli.microbatches import mends, microbatch_of
from paramscope.cli.options import Dtype
from paramscope.curvature import lanczos as search
from paramscope.errors import DeviceError
from tests.unit.scarce_memory import scarce
from tests.unit.test_compression_commands import LENGTH, TEXT, make_model, write_text

SPLITS = {
    "public": TEXT[:16], "calibration": TEXT[4:14], "member": TEXT[:12], "nonmember": TEXT[12:],
    "evaluation": TEXT[6:18] * 3,
}  # fmt: skip
SHAPES = {"length": LENGTH, "threads": 1, "dtype": Dtype.float64}
HALVED = {"batch": {"asked": 8, "taken": 2}}
TIMES = ["wall_s", "memory_before_bytes", "memory_consumed_bytes", "memory_peak_bytes",
         "memory_total_peak_bytes"]  # fmt: skip


def stage(name, *arguments, **options):
    """A command, called as Python, with what all of them share where it has it."""
    function = command(name)
    own = inspect.signature(function).parameters
    shared = {key: value for key, value in SHAPES.items() if key in own}
    function(*arguments, **shared | options)


def command(name):
    return getattr(import_module(f"paramscope.cli.{name}"), name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, its splits, and what some commands need of others."""
    folder = tmp_path_factory.mktemp("halving")
    make_model(folder / "base")
    for name, texts in SPLITS.items():
        write_text(folder / f"{name}.parquet", texts)
    split = {name: folder / f"{name}.parquet" for name in SPLITS}
    base = folder / "base"
    stage("target", base, split["member"], split["nonmember"], folder / "target", max_epochs=2,
          batch=4)  # fmt: skip
    stage("curvature_draws", base, split["calibration"], folder / "shard.pt")
    stage("curvature", folder / "diagonal.pt", [folder / "shard.pt"], folder / "summary.parquet")
    stage("kfac", base, split["calibration"], folder / "kfac.pt")
    stage("directions", folder / "kfac.pt", folder / "directions.pt")
    stage("prune", base, folder / "pruned", split["calibration"])
    stage("dp_finetune", base, split["member"], folder / "private", epochs=2, batch=4,
          learning_rate=1e-4)  # fmt: skip
    return folder


# By command: inputs, outputs, further options.
U = "model.decoder.layers.0.fc1.weight:3"
JUDGED = ["member.parquet", "nonmember.parquet", "evaluation.parquet"]
EVALUATIONS = {
    "activation_sparsity": (["base", "calibration.parquet"], ["o.parquet"], {}),
    "curvature_blocks": (["base", "calibration.parquet"], ["o.pt"], {"unit": [U]}),
    "curvature_draws": (["base", "calibration.parquet"], ["o.pt"], {}),
    "eigenspace": (["base", "calibration.parquet"], ["o.pt"], {"k": 2}),
    "kfac": (["base", "calibration.parquet"], ["o.pt"], {}),
    "membership": (
        ["target", "base", "member.parquet", "nonmember.parquet"], ["o.parquet", "o.json"],
        {"probe": 0, "bootstrap": 40},
    ),
    "membership_features": (
        ["target", "public.parquet", "evaluation.parquet"], ["o.parquet"], {"probe": 6, "draws": 2},
    ),
    "noise_range": (["base", "directions.pt", "evaluation.parquet"], ["o.json"], {"seeds": 1}),
    "prm": (
        ["target", "directions.pt", *JUDGED], ["o.parquet"],
        {"sigma": [0.1], "probe": 0, "seeds": 1, "bootstrap": 40},
    ),
    "tensor_responses": (
        ["target", "diagonal.pt", *JUDGED], ["o.parquet"], {"probe": 0, "seeds": 1},
    ),
    "removal": (
        ["target", "directions.pt", *JUDGED], ["o.parquet", "o.json"],
        {"probe": 0, "draws": 1, "seeds": 2, "bootstrap": 40},
    ),
    "prune": (["base"], ["o"], {"calibration": "calibration.parquet"}),
}  # fmt: skip


def run(made, name, folder, **more):
    inputs, outputs, options = EVALUATIONS[name]
    folder.mkdir(exist_ok=True)
    given = {k: made / v if str(v).endswith(".parquet") else v for k, v in options.items()}
    paths = [*(made / x for x in inputs), *(folder / x for x in outputs)]
    stage(name, *paths, **{"batch": 8} | given | more)
    return [folder / x for x in outputs]


def provenance_of(path):
    if path.is_dir():
        return provenance_of(path / "pruned.json")
    reader = {".pt": read_tensors_provenance, ".parquet": read_table_provenance}.get(path.suffix)
    return read_record(path)["provenance"] if reader is None else reader(path)


def assert_close(ours, theirs):
    """Numbers to 1e-7: float64's rounding, through eigenvectors and standard errors."""
    assert ours.suffix == theirs.suffix
    if ours.is_dir():
        for path in sorted(theirs.iterdir()):
            if path.suffix in (".parquet", ".safetensors"):
                assert_close(ours / path.name, path)
    elif ours.suffix == ".safetensors":
        found, expected = load_file(ours), load_file(theirs)
        assert_tensors_close(found, expected)
    elif ours.suffix == ".pt":
        assert_tensors_close(read_tensors(ours), read_tensors(theirs))
    elif ours.suffix == ".parquet":
        found, expected = (read_table(path).drop(columns=TIMES, errors="ignore")
                           for path in (ours, theirs))  # fmt: skip
        pd.testing.assert_frame_equal(found, expected, rtol=1e-7, atol=1e-10)
        assert len(found)
    else:
        found, expected = (_without_provenance(read_record(path)) for path in (ours, theirs))
        found, expected = flat(found), flat(expected)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-7, abs=1e-9, nan_ok=True)
            assert found[name] == value


def assert_tensors_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9 * scale)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value)
        else:
            assert found[name] == value


def _without_provenance(record):
    return {key: value for key, value in record.items() if key != "provenance"}


def flat(value, key=""):
    if isinstance(value, dict):
        return {k: v for part, x in value.items() for k, v in flat(x, f"{key}.{part}").items()}
    if isinstance(value, list):
        return {k: v for i, x in enumerate(value) for k, v in flat(x, f"{key}.{i}").items()}
    return {key: value}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_is_the_same_and_its_record_says_what_it_took(made, tmp_path, name):
    free = run(made, name, tmp_path / "free")
    with scarce(2) as calls:
        scant = run(made, name, tmp_path / "scant")
    assert max(calls) > 2
    for ours, theirs in zip(scant, free, strict=True):
        assert_close(ours, theirs)
        assert "microbatch" not in provenance_of(theirs)
        assert provenance_of(ours)["microbatch"] == HALVED


def test_exact_entries_are_told_apart_from_draws(made, tmp_path):
    def check(folder):
        folder.mkdir()
        stage("spotcheck", made / "base", made / "calibration.parquet", folder / "s.parquet",
              folder / "draws.parquet", folder / "q.json", parameters=30, sequences=8,
              batch=4)  # fmt: skip

    check(tmp_path / "free")
    with scarce(2):
        check(tmp_path / "scant")
    for name in ("s.parquet", "draws.parquet", "q.json"):
        assert_close(tmp_path / "scant" / name, tmp_path / "free" / name)
    assert provenance_of(tmp_path / "scant/s.parquet")["microbatch"] == {
        "batch": {"asked": 4, "taken": 2}, "sequences": {"asked": 8, "taken": 2},
    }  # fmt: skip
    assert "microbatch" not in provenance_of(tmp_path / "free/s.parquet")


def test_all_models_and_private_ones_are_judged_in_halves(made, tmp_path):
    def judge(folder):
        folder.mkdir()
        stage("evaluate", made / "base", made / "pruned", made / "pruned", folder / "e.json",
              made / "evaluation.parquet", batch=8)  # fmt: skip
        splits = {n: made / f"{n}.parquet" for n in ("member", "nonmember", "evaluation")}
        stage("privacy_scores", folder / "p.json", made / "base", made / "target",
              [made / "private"], **splits, bootstrap=40, batch=8)  # fmt: skip

    judge(tmp_path / "free")
    with scarce(2):
        judge(tmp_path / "scant")
    for name in ("e.json", "p.json"):
        assert_close(tmp_path / "scant" / name, tmp_path / "free" / name)
        assert provenance_of(tmp_path / "scant" / name)["microbatch"] == HALVED
        assert "microbatch" not in provenance_of(tmp_path / "free" / name)


TRAININGS = {
    "base": (["base", "public.parquet", "member.parquet", "nonmember.parquet"],
             {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "positions": 16, "epochs": 2}),
    "target": (["base", "member.parquet", "nonmember.parquet"], {"max_epochs": 2}),
    "shadow": (["base", "member.parquet", "nonmember.parquet"],
               {"number": 0, "count": 2, "max_epochs": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_keeps_its_logical_batch(made, tmp_path, name):
    """Steps, losses and weights; 1e-5 since AdamW divides small gradients by their own size."""
    inputs, options = TRAININGS[name]
    output = "o.parquet" if name == "shadow" else "o"

    def once(folder):
        folder.mkdir()
        stage(name, *(made / x for x in inputs), folder / output, batch=8, **options)
        return folder / output

    free = once(tmp_path / "free")
    with scarce(3) as calls:
        scant = once(tmp_path / "scant")
    assert max(calls) == 12
    tables = [p if name == "shadow" else p / "training.parquet" for p in (scant, free)]
    found, expected = map(read_table, tables)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    for path, told in ((scant, True), (free, False)):
        by = provenance_of(path if name == "shadow" else path / "provenance.json")
        assert ("microbatch" in by) == told
    told = provenance_of(tables[0])["microbatch"]
    assert told["batch"] == {"asked": 8, "taken": 2}
    assert told["evaluation"]["asked"] == 16
    assert 1 <= told["evaluation"]["taken"] <= 3
    if name != "shadow":
        ours, theirs = (load_file(p / "model.safetensors") for p in (scant, free))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-8)


def test_a_finetuning_after_pruning_keeps_its_logical_batch(made, tmp_path):
    def once(folder):
        folder.mkdir()
        stage("finetune", made / "pruned", folder / "o", folder / "o.parquet",
              made / "public.parquet", made / "nonmember.parquet", made / "evaluation.parquet",
              epochs=2, batch=8, accumulation=2, max_steps=4, learning_rate=1e-2)  # fmt: skip
        return folder / "o"

    free = once(tmp_path / "free")
    with scarce(2) as calls:
        scant = once(tmp_path / "scant")
    assert max(calls) == 8
    found, expected = (read_table(p.with_suffix(".parquet")).drop(columns=TIMES)
                       for p in (scant, free))  # fmt: skip
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    told = {"batch": {"asked": 4, "taken": 2}, "evaluation": {"asked": 8, "taken": 2}}
    assert provenance_of(scant.with_suffix(".parquet"))["microbatch"] == told
    assert read_record(scant / "finetuned.json")["provenance"]["microbatch"] == told
    assert "microbatch" not in read_record(free / "finetuned.json")["provenance"]


def test_pruning_by_stages_begins_anew_and_its_recovery_goes_on(made, tmp_path):
    options = {"method": "gradual", "density": 0.3, "text": made / "public.parquet",
               "recovery_steps": 3, "training_batch": 4}  # fmt: skip
    [free] = run(made, "prune", tmp_path / "free", **options)
    with scarce(3) as calls:
        [scant] = run(made, "prune", tmp_path / "scant", **options)
    assert max(calls) == 8
    assert_close(scant / "layers.parquet", free / "layers.parquet")
    assert provenance_of(scant / "layers.parquet")["microbatch"] == {
        "batch": {"asked": 8, "taken": 2}, "training_batch": {"asked": 4, "taken": 2},
        "evaluation": {"asked": 4, "taken": 2},
    }  # fmt: skip


def test_what_memory_sufficed_for_is_not_released_with_a_private_model(made, tmp_path):
    """It hangs on which documents chance drew, and on how long they are."""
    options = {"epochs": 2, "batch": 9, "physical_batch": 8, "learning_rate": 1e-4}
    for name, most in (("free", 99), ("scant", 2)):
        with scarce(most):
            stage("dp_finetune", made / "base", made / "member.parquet", tmp_path / name, **options)
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("scant", "free"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-8)
    private = {n: read_record(tmp_path / f"{n}.private.json") for n in ("scant", "free")}
    told = private["scant"]["provenance"]["microbatch"]["physical_batch"]
    assert told["asked"] == 8
    assert told["taken"] <= 2
    assert _without_provenance(private["scant"]) == _without_provenance(private["free"])
    assert "microbatch" not in private["free"]["provenance"]
    for path in (tmp_path / "scant").iterdir():
        if path.suffix == ".parquet" or path.name in ("privacy.json", "provenance.json"):
            assert "microbatch" not in provenance_of(path)


def test_a_stopped_eigenspace_goes_on_with_what_it_came_down_to(made, tmp_path, monkeypatch):
    def once(output):
        stage("eigenspace", made / "base", made / "calibration.parquet", output, k=2, batch=8)
        return output

    with scarce(2):
        whole = once(tmp_path / "whole.pt")
    real = search.lanczos

    def stopped(*args, checkpoint, **kwargs):
        def save(state):
            checkpoint(state)
            if len(state.alphas) == 6:
                raise KeyboardInterrupt

        return real(*args, checkpoint=save, **kwargs)

    with monkeypatch.context() as patched, scarce(2), pytest.raises(KeyboardInterrupt):
        patched.setattr(search, "lanczos", stopped)
        once(tmp_path / "cut.pt")
    with scarce(99) as calls:
        cut = once(tmp_path / "cut.pt")
    assert set(calls) == {2}
    assert provenance_of(cut)["microbatch"] == HALVED
    for name, value in read_tensors(whole).items():
        assert torch.equal(read_tensors(cut)[name], value)


@pytest.mark.parametrize("name", ["curvature_draws", "membership", "prune"])
def test_where_one_sequence_does_not_fit_the_error_names_the_commands_own_mends(
    made, tmp_path, name
):
    with scarce(0), pytest.raises(DeviceError) as told:
        run(made, name, tmp_path / "o")
    first = "--graph layerwise, fewer --draws, " if name == "curvature_draws" else ""
    middle = f"{first}a smaller --length"
    assert str(told.value) == (
        f"out of memory with one sequence a forward; less is taken with {middle} or --dtype float32"
    )
    assert not list((tmp_path / "o").iterdir())


def defaults(name):
    """A command's arguments where nothing is asked for."""
    parameters = inspect.signature(command(name)).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


MEASURING = ("dpsgd_profile", "plan_accuracy")  # what they find hangs on the batch
COMPUTING = [
    name
    for name in app.STAGES
    if name not in MEASURING
    and {"batch", "physical_batch"} & defaults(name).keys()
    and {"dtype", "threads"} <= defaults(name).keys()
]


@pytest.mark.parametrize("name", COMPUTING)
def test_a_mend_is_an_option_that_the_command_has(name):
    own = Typer()
    own.command()(command(name))
    has = {option for parameter in get_command(own).params for option in parameter.opts}
    words = " ".join(mends(defaults(name)))
    named = set(re.findall(r"--[a-z-]+", words))
    assert {"--length", "--dtype"} <= named <= has
    assert ("--graph" in named) == ("--graph" in has)


@pytest.mark.parametrize("name", COMPUTING)
def test_every_command_that_takes_a_batch_halves_it(name):
    """None was forgotten: each makes its microbatches of its own arguments, and records them."""
    text = Path(inspect.getfile(command(name))).read_text()
    assert "microbatch_of(arguments" in text
    assert "microbatch=halved(" in text


def test_what_is_done_already_is_no_mend():
    asked = {"batch": 8, "length": 9, "dtype": "bfloat16", "graph": "layerwise", "draws": 1}
    assert list(mends(asked)) == ["a smaller --length"]
    assert microbatch_of(asked).mend == "less is taken with a smaller --length"
    assert list(mends(asked | {"graph": "whole", "method": "xdiag"})) == ["a smaller --length"]
    exact = {"dtype": "float64", "method": "finite_difference", "memory_gb": 2.0}
    assert list(mends(exact)) == ["a larger --memory-gb", "a smaller --length"]
    trained = {"dtype": "float32", "checkpoint": None, "checkpoint_activations": False}
    assert list(mends(trained)) == [
        "--checkpoint-activations", "a smaller --length", "--dtype bfloat16",
    ]  # fmt: skip
