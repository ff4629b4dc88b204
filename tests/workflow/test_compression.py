"""The compression study on the micro model: its outputs, and what reruns when something changes."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table
from paramscope.cli.expand import expand
from tests.workflow.conftest import Workplace, copied
from tests.workflow.watched import assert_planned

pytestmark = pytest.mark.workflow

METHODS, DENSITIES = ("magnitude", "sparsegpt", "gradual"), (0.5, 0.1)
FIGURES = ("perplexity_trend", "density_frontier", "layer_sparsity", "memory_per_epoch")


@pytest.fixture(scope="session")
def study(micro, tmp_path_factory):
    """The micro study's checkout and results with the pruned models made beside them."""
    workplace = copied(micro, tmp_path_factory, "compression")
    planned = workplace.planned("compression")
    assert {"prune", "finetune", "evaluate"} < planned.keys()
    assert not {"corpus", "base", "target"} & planned.keys()
    workplace.run("compression")
    return workplace


@pytest.fixture
def folder(study):
    return study.folder / "results/micro-opt/compression"


def test_the_study_is_whole(folder):
    for name in FIGURES:
        assert (folder / f"figures/{name}.png").stat().st_size > 10_000
        assert (folder / f"figures/{name}.pdf").is_file()
    frontier = read_table(folder / "study/frontier.parquet").set_index(["method", "density"])
    control = ("magnitude", 1.0)
    assert set(frontier.index) == {(m, d) for m in METHODS for d in DENSITIES} | {control}
    assert frontier.loc[control, "perplexity_pruned"] == pytest.approx(
        read_record(folder / "study/results.json")["dense"]["evaluation"], rel=1e-12
    )
    layers = read_table(folder / "study/layers.parquet")
    assert ((layers["n_kept"] - layers["of_density"] * layers["n_weights"]).abs() <= 1).all()
    dense = read_record(folder / "study/results.json")["dense"]["evaluation"]
    for method in METHODS:
        half, tenth = (frontier.loc[(method, density)] for density in DENSITIES)
        if method != "gradual":  # which has been finetuned on the way
            assert dense < half["perplexity_pruned"] < tenth["perplexity_pruned"]
        assert tenth["perplexity_finetuned"] < tenth["perplexity_pruned"]
        assert tenth["density_reached"] == pytest.approx(0.1, abs=1e-3)  # one in a block's weights
        assert tenth["compact_bytes"] < half["compact_bytes"] < half["dense_bytes"]
    # What it is for: second moments of the inputs beat magnitudes, after pruning.
    one_shot = frontier["perplexity_pruned"].unstack("method").loc[0.1]
    assert one_shot["sparsegpt"] < one_shot["magnitude"]


def test_no_job_takes_more_than_planned(study):
    assert_planned(study.folder, "micro-opt", ["prune", "finetune", "evaluate"])


def test_each_run_tells_its_epochs(folder):
    for method in METHODS:
        run = folder / method / "density-0.1"
        epochs = read_table(run / "epochs.parquet")
        spent = read_record(run / "pruned/pruned.json")["recovery_steps"]
        assert spent == (6 if method == "gradual" else 0)
        assert epochs["step"].iloc[-1] == 16 - spent  # equal steps in all
        assert epochs["best"].sum() == 1
        evaluated = read_record(run / "evaluation.json")
        best = epochs.loc[epochs["best"], "perplexity"].item()
        assert evaluated["finetuned"]["evaluation"] == pytest.approx(best, rel=1e-6)
        assert evaluated["pruned"]["evaluation"] == pytest.approx(
            epochs["perplexity"].iloc[0], rel=1e-6
        )
        text = (run / "summary.txt").read_text(encoding="utf-8")
        assert f"{best:,.2f}" in text
        assert not list(run.glob("*state*"))
    assert "Gradual" in (folder / "study/table.tex").read_text(encoding="utf-8")


def test_a_compact_folder_expands_to_a_plain_one(folder, tmp_path, capsys):
    compact = folder / "sparsegpt/density-0.1/finetuned"
    expand(compact, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    layers = read_table(folder / "sparsegpt/density-0.1/pruned/layers.parquet")
    for tensor, kept in zip(layers["tensor"], layers["n_kept"], strict=True):
        assert int(torch.count_nonzero(model.get_parameter(tensor))) == kept
    assert (tmp_path / "plain/tokenizer.json").is_file()
    assert "from_pretrained" in capsys.readouterr().out


def test_what_changes_is_made_again_and_no_more(study):
    assert study.planned("compression") == {}

    def after(**changed):
        return study.planned("compression", "--config", f"compression={json.dumps(changed)}")

    seven = dict.fromkeys(("finetune", "evaluate", "summary"), 7)
    figures = dict.fromkeys(FIGURES, 1)
    gathered = {"compression_results": 1, "compression": 1}
    clip = after(finetune={"clip": 0.5})
    assert {k: v for k, v in clip.items() if k not in (figures | gathered)} == seven
    assert after(damping=0.02)["prune"] == 7
    assert after(recovery_steps=1)["prune"] == 2  # of gradual alone
    new = after(densities=[0.5, 0.1, 0.3])
    assert {new[name] for name in ("prune", "finetune", "evaluate", "summary")} == {3}


def test_the_published_model_is_pruned_from_a_folder(tmp_path):
    """workflow/configs/opt-125m.yaml with local folders in the hub's place, to its first results.

    The checkpoint is of OPT-125M's own architecture, but for two layers in place of twelve, and
    random; the dataset's files are laid out as on the hub.
    """
    workplace = Workplace.fresh(tmp_path / "checkout")
    workplace.run(
        "results/micro-opt/corpus/gate.json", "results/micro-opt/tokenizer/tokenizer.json"
    )
    made = workplace.folder / "results/micro-opt"
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(num_hidden_layers=2, dropout=0.0, attention_dropout=0.0))
    assert (model.config.hidden_size, model.config.ffn_dim, model.config.vocab_size) == (
        768, 3072, 50272
    )  # fmt: skip
    model.save_pretrained(tmp_path / "published")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (made / f"tokenizer/{name}").is_file():
            shutil.copyfile(made / f"tokenizer/{name}", tmp_path / f"published/{name}")
    text = read_table(made / "corpus/public.parquet", ["text"])
    rows = np.repeat(text["text"].to_numpy(), 1)
    for part in ("train", "test"):
        path = tmp_path / f"dataset/wikitext-2-raw-v1/{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        text.assign(text=rows).to_parquet(path)
    small = {
        "models": {"opt-125m": {"kind": "checkpoint", "source": str(tmp_path / "published")}},
        "corpus": {
            "dataset": str(tmp_path / "dataset"),
            "chunk_characters": 120,
            "documents": dict.fromkeys(
                ("public", "member", "nonmember", "calibration", "evaluation"), 16
            ),
        },
        "target": {"max_epochs": 1},
        "membership": {"probe": 4},
        "eigenspace": {"sequences": 8},
        "compression": {"texts": [], "finetune": {"epochs": 1}},
    }
    small["compression"]["texts"] = [
        {
            "name": "wikitext2-test",
            "dataset": str(tmp_path / "dataset"),
            "path": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        }
    ]
    given = [f"{name}={json.dumps(value)}" for name, value in small.items()]
    run = "results/opt-125m/compression/wanda/density-0.1"
    workplace.run(
        f"{run}/summary.txt", "--config", "length=32", *given,
        config="workflow/configs/opt-125m.yaml",
    )  # fmt: skip
    found = read_record(workplace.folder / run / "evaluation.json")
    assert found["shape"]["overall_zeros"] == pytest.approx(
        0.9 * 2 * 12 * 768**2 / model.num_parameters(), rel=1e-3
    )
    assert found["dense"].keys() == {"evaluation", "wikitext2-test"}
    assert found["shape"]["masked_compact_bytes"] < 0.14 * found["shape"]["masked_dense_bytes"]
