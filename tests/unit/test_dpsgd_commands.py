"""The commands that finetune privately and score private models, on a model of two blocks."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table
from paramscope.cli.dp_finetune import dp_finetune
from paramscope.cli.privacy_scores import privacy_scores
from paramscope.cli.target import target
from paramscope.dpsgd import finetune as finetuning
from paramscope.dpsgd.accounting import auc_bound, epsilon_spent, one_run_auc_bound
from paramscope.errors import ArtifactError, RequestError
from paramscope.figures.privacy_utility import privacy_utility
from paramscope.models.sequences import load_tokenizer
from tests.unit.test_compression_commands import (
    LENGTH,
    TEXT,
    make_model,
    transformers_perplexity,
    write_text,
)

SHAPES = {"length": LENGTH, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, members, as many others, evaluation text, two private models and a target."""
    folder = tmp_path_factory.mktemp("dpsgd")
    make_model(folder / "base")
    splits = {"member": TEXT[:12], "nonmember": TEXT[12:], "evaluation": TEXT[6:18]}
    for name, texts in splits.items():
        write_text(folder / f"{name}.parquet", texts)
    private(folder, folder / "tight", epsilon=2.0)
    private(folder, folder / "loose", epsilon=8.0)
    target(folder / "base", folder / "member.parquet", folder / "nonmember.parquet",
           folder / "target", max_epochs=2, batch=4, **SHAPES)  # fmt: skip
    return folder


def private(made, output, member="member", **more):
    given = {"epochs": 3, "batch": 4, "physical_batch": 3} | more
    dp_finetune(made / "base", made / f"{member}.parquet", output, **given, **SHAPES)


def score(made, output, folders=("tight", "loose"), **more):
    splits = {name: made / f"{name}.parquet" for name in ("member", "nonmember", "evaluation")}
    given = {"base": made / "base", "target": made / "target", "bootstrap": 200} | splits | more
    privacy_scores(output, private=[made / name for name in folders], **given, **SHAPES)


def content(path):
    return {key: value for key, value in read_record(path).items() if key != "provenance"}


def test_a_private_model_tells_its_budget(made, tmp_path, capsys):
    private(made, tmp_path / "model", epsilon=2.0)
    last = capsys.readouterr().out.splitlines()[-1]
    told = content(tmp_path / "model/privacy.json")
    delta = 12**-1.1
    assert told.items() >= {
        "epsilon_asked": 2.0, "delta": delta, "max_norm": 1.0, "n": 12, "expected_batch": 4,
        "sample_rate": 4 / 12, "steps": 9, "accountant": "rdp", "method": "bk",
    }.items()  # fmt: skip
    spent = epsilon_spent(told["noise_multiplier"], delta, 4 / 12, 9)
    assert told["epsilon_spent"] == spent
    assert 1.97 < spent <= 2.0
    history = read_table(tmp_path / "model/training.parquet")
    assert history.columns.tolist() == ["step", "epoch", "learning_rate", "epsilon"]
    assert history["step"].tolist() == [3, 6, 9]
    assert history["epsilon"].iloc[-1] == spent
    assert f"epsilon {spent:.3f} spent at delta {delta:.3g} (rdp) over 9 steps" in last
    assert f"sigma {told['noise_multiplier']:.4g}, of 12 documents" in last
    for folder in (made / "tight", made / "base"):
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
        other = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        same = all(torch.equal(value, other[name]) for name, value in ours.items())
        assert same == (folder.name == "tight")  # the same request gives the same bits


def test_what_the_samples_showed_is_beside_and_not_within(made, tmp_path):
    private(made, tmp_path / "model", output_private=tmp_path / "own.json")
    seen = content(tmp_path / "own.json")
    assert seen["private"]
    assert seen["dropped"] == 0
    assert len(seen["by_step"]["batch"]) == 9
    assert seen["mean_batch"] == pytest.approx(np.mean(seen["by_step"]["batch"]))
    assert 0 <= seen["clipped_share"] <= 1
    assert (made / "tight.private.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "own.json"]
    within = {path.name for path in (tmp_path / "model").iterdir()}
    assert within - {"generation_config.json"} == {
        "config.json", "model.safetensors", "privacy.json", "provenance.json", "training.parquet",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_what_is_told_hangs_on_no_document(made, tmp_path, capsys):
    """Other documents, as many: other weights, and the same words, table and record."""
    told = []
    for member in ("member", "nonmember"):
        output = tmp_path / member
        private(made, output, member)
        out = capsys.readouterr()
        bar = out.err.splitlines()[-1].split("|")[0]
        words = out.out.replace(str(output), "")
        told.append((words, bar, content(output / "privacy.json"), output))
    (*one, first), (*other, second) = told
    assert one == other
    tables = (read_table(folder / "training.parquet") for folder in (first, second))
    assert next(tables).equals(next(tables))
    weights = [AutoModelForCausalLM.from_pretrained(f).lm_head.weight for f in (first, second)]
    assert not torch.equal(*weights)


def test_noise_in_place_of_a_budget(made, tmp_path):
    private(
        made, tmp_path / "model", noise_multiplier=1.5, delta=1e-3, accountant="prv",
        method="flash", checkpoint=True, max_norm=0.5,
    )  # fmt: skip
    told = content(tmp_path / "model/privacy.json")
    assert told["epsilon_asked"] is None
    assert told["noise_multiplier"] == 1.5
    assert told["epsilon_spent"] == epsilon_spent(1.5, 1e-3, 4 / 12, 9, "prv")


def test_a_killed_command_goes_on(made, tmp_path, monkeypatch):
    def dies(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        step = finetuning._Run._step
        patched.setattr(
            finetuning._Run, "_step", lambda run, p: dies() if run.steps == 5 else step(run, p)
        )
        with pytest.raises(KeyboardInterrupt):
            private(made, tmp_path / "model", epsilon=2.0, save_every=2)
    assert [path.name for path in tmp_path.iterdir()] == [".model.state.pt"]
    taken = []
    with monkeypatch.context() as patched:
        step = finetuning._Run._step
        patched.setattr(
            finetuning._Run, "_step", lambda run, p: (taken.append(run.steps), step(run, p))
        )
        private(made, tmp_path / "model", epsilon=2.0, save_every=2)
    assert taken == [4, 5, 6, 7, 8]
    assert not (tmp_path / ".model.state.pt").exists()
    ours, whole = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "model", made / "tight")
    )
    assert ours == whole


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 13}, "a batch of 13 is expected of 12 documents; give 12 or fewer"),
        ({"epsilon": 0.0}, "epsilon is 0; give a budget above 0"),
        ({"accountant": "gdp"}, "give rdp or prv"),
        ({"max_norm": 0.0}, "max_norm is 0; give a norm above 0"),
        ({"method": "vanilla"}, "method 'vanilla' does not finetune privately"),
        ({"physical_batch": 0}, "physical_batch is 0"),
        ({"delta": 1.0}, "delta is 1; give one between 0 and 1"),
    ],
)
def test_wrong_requests_write_nothing(made, tmp_path, wrong, told):
    with pytest.raises(RequestError, match=told):
        private(made, tmp_path / "model", **wrong)
    assert not list(tmp_path.iterdir())


def plain_losses(folder, texts):
    """A text's mean loss a token by transformers' own."""
    model, encode = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    found = []
    for text in texts:
        ids = torch.tensor([encode.encode(text).ids[:LENGTH]])
        with torch.no_grad():
            found.append(float(model(input_ids=ids, labels=ids).loss))
    return found


def test_models_are_scored_by_one_yardstick(made, tmp_path, capsys):
    score(made, tmp_path / "scores.json", model="tiny")
    record = content(tmp_path / "scores.json")
    rows = record.pop("rows")
    assert record == {
        "model": "tiny", "delta": 12**-1.1, "n_members": 12, "n_nonmembers": 12, "attack": "loss",
        "bootstrap": 200,
    }  # fmt: skip
    assert [row["name"] for row in rows] == ["base", "private", "private", "target"]
    folders = ("base", "tight", "loose", "target")
    for folder, row in zip(folders, rows, strict=True):
        perplexity, _ = transformers_perplexity(made / folder, TEXT[6:18])
        assert row["perplexity"] == pytest.approx(perplexity, rel=1e-5)  # float32 logits
        assert row["perplexity_low"] < perplexity < row["perplexity_high"]
        losses = plain_losses(made / folder, TEXT[:12] + TEXT[12:])
        auc = roc_auc_score([1] * 12 + [0] * 12, [-loss for loss in losses])
        assert row["auc"] == pytest.approx(auc, abs=2 / 144)  # a pair may be a tie in float32
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert row["tpr_at_1"] is None  # 12 non-members have no rate of 1%
    budgets = [content(made / name / "privacy.json") for name in ("tight", "loose")]
    for budget, row in zip(budgets, rows[1:3], strict=True):
        spent, delta = budget["epsilon_spent"], budget["delta"]
        assert row["epsilon"] == spent
        assert row["noise_multiplier"] == budget["noise_multiplier"]
        assert row["steps"] == 9
        assert row["auc_bound"] == auc_bound(spent, delta)
        assert row["auc_bound_one_run"] == one_run_auc_bound(spent, delta)
    base, *_, last = rows
    assert (base["epsilon"], base["steps"], base["auc_bound"]) == (0, 0, 0.5)
    assert last["epsilon"] is last["auc_bound"] is last["noise_multiplier"] is None
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:-1]] == [
        "base, epsilon 0", *(f"private, epsilon {row['epsilon']:.3g}" for row in rows[1:3]),
        "target, no privacy",
    ]  # fmt: skip
    privacy_utility(record | {"rows": rows}, "tiny")  # the figure takes it as it is


def test_models_that_cannot_be_compared_are_refused(made, tmp_path):
    output = tmp_path / "scores.json"
    private(made, tmp_path / "others", member="nonmember")
    with pytest.raises(RequestError, match=r"others was not finetuned on .*member.parquet"):
        score(made, output, ("tight", tmp_path / "others"))
    private(made, tmp_path / "strict", delta=1e-3)
    with pytest.raises(RequestError, match=r"strict has delta 0.001, and .*tight has 0.06"):
        score(made, output, ("tight", tmp_path / "strict"))
    with pytest.raises(ArtifactError, match=r"privacy.json: no such record"):
        score(made, output, ("target",))
    with pytest.raises(RequestError, match="name one by --private"):
        score(made, output, ())
    (tmp_path / "other").mkdir()
    words = json.loads((made / "base/tokenizer.json").read_text())
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(words, indent=1))
    with pytest.raises(RequestError, match="other has another tokenizer than"):
        score(made, output, target=tmp_path / "other")
    assert not output.exists()
