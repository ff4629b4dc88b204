"""The commands that finetune and evaluate a pruned model, on a model of two blocks."""

import math
import sys
from types import ModuleType

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, write_table
from paramscope.cli.evaluate import evaluate
from paramscope.cli.finetune import finetune
from paramscope.cli.inputs import windows_for
from paramscope.cli.prune import prune
from paramscope.compression import tracking
from paramscope.compression.compact import expand
from paramscope.corpus.splits import DOCUMENTS
from paramscope.errors import ArtifactError, RequestError
from paramscope.models.folders import TOKENIZER_FILES
from paramscope.models.load import Architecture, new_opt
from paramscope.models.sequences import load_tokenizer
from paramscope.models.tokenizer import save_tokenizer, train_tokenizer

CPU = torch.device("cpu")
TEXT = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog", "fox")
        for c in ("mat", "log", "hill", "step")]  # fmt: skip
LENGTH = 12


def write_text(path, texts):
    rows = pd.DataFrame({"doc_id": [f"d{i}" for i in range(len(texts))], "text": texts})
    write_table(path, rows, DOCUMENTS, provenance("cli.corpus", {}))
    return path


def make_model(folder):
    """An OPT of two blocks at random weights, with its tokenizer."""
    save_tokenizer(train_tokenizer(TEXT, 290), folder)
    sizes = Architecture(hidden=16, layers=2, heads=2, ffn=32, positions=16)
    new_opt(sizes, 290, seed=0).save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the dense model, it pruned, and three splits."""
    folder = tmp_path_factory.mktemp("commands")
    make_model(folder / "dense")
    for name, texts in (("public", TEXT[:16]), ("nonmember", TEXT[16:]), ("evaluation", TEXT[8:])):
        write_text(folder / f"{name}.parquet", texts)
    prune(
        folder / "dense", folder / "pruned", folder / "public.parquet", density=0.5, length=LENGTH
    )
    return folder


def train(made, output, evaluation=None, **more):
    finetune(
        made / "pruned", output, output.with_suffix(".parquet"), made / "public.parquet",
        made / "nonmember.parquet", evaluation or made / "evaluation.parquet",
        epochs=2, batch=4, max_steps=8, learning_rate=1e-2, length=LENGTH, save_every=1, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finetuned(made):
    train(made, made / "finetuned")
    return made / "finetuned"


def transformers_perplexity(folder, texts):
    """By transformers' own model and loss, a window at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(load_tokenizer(folder).encode("\n\n".join(texts)).ids)
    total, tokens = 0.0, 0
    for window in ids.split(LENGTH):
        if len(window) > 1:
            with torch.no_grad():
                loss = float(model(input_ids=window[None], labels=window[None]).loss)
            total, tokens = total + loss * (len(window) - 1), tokens + len(window) - 1
    return math.exp(total / tokens), tokens


def test_all_three_models_are_measured_on_every_text(made, finetuned, tmp_path, capsys):
    news = ["a cat is not a dog", "the old hill sat"]
    (tmp_path / "news.txt").write_text("\n\n".join(news))
    (tmp_path / "more.txt").write_text(TEXT[3])
    evaluate(
        made / "dense", made / "pruned", finetuned, tmp_path / "evaluation.json",
        made / "evaluation.parquet", text=[f"news={tmp_path / 'news.txt'}"],
        hub=[f"more={tmp_path}:more.txt"], length=LENGTH, batch=5,
    )  # fmt: skip
    told = capsys.readouterr()
    record = read_record(tmp_path / "evaluation.json")
    for stage in ("pruned", "finetuned"):
        (tmp_path / stage).mkdir()
        expand(made / stage, tmp_path / stage)
    texts = {"evaluation": TEXT[8:], "news": news, "more": [TEXT[3]]}
    for stage, folder in (("dense", made), ("pruned", tmp_path), ("finetuned", tmp_path)):
        assert record[stage].keys() == texts.keys()
        for name, words in texts.items():
            expected, tokens = transformers_perplexity(folder / stage, words)
            assert record[stage][name] == pytest.approx(expected, rel=1e-5)  # float32 logits
            assert record["tokens"][name] == tokens
            assert f"{stage} on {name}: 100%" in told.err
            [line] = [x for x in told.out.splitlines() if x.startswith(f"perplexity on {name}:")]
            assert f"{stage} {expected:.2f}" in line
    shape = read_record(made / "pruned/pruned.json")
    assert record["shape"] == {key: shape[key] for key in shape.keys() - {"provenance"}}
    assert record["finetuned"]["evaluation"] < record["pruned"]["evaluation"]


def test_continuations_are_scored_of_the_documents_given(made, finetuned, tmp_path, monkeypatch):
    """By each of the three models; what a score is, others test."""
    seen = []

    def scores(model, tokenizer, documents, *, batch_size, **lengths):
        lengths["batch"] = batch_size.asked
        seen.append((sum(int((p == 0).sum()) for p in model.parameters()), len(documents), lengths))
        return {"bleu": float(len(seen))}

    monkeypatch.setattr("paramscope.evaluation.generation.generate_scores", scores)
    evaluate(
        made / "dense", made / "pruned", finetuned, tmp_path / "evaluation.json",
        made / "evaluation.parquet", documents=made / "nonmember.parquet",
        prompt_tokens=3, new_tokens=4, batch=5, length=LENGTH,
    )  # fmt: skip
    record = read_record(tmp_path / "evaluation.json")
    for place, stage in enumerate(("dense", "pruned", "finetuned"), start=1):
        assert record[stage].keys() == {"evaluation", "generation"}
        assert record[stage]["generation"] == {"bleu": float(place)}
    (dense, *_), (pruned, *_), (kept, *_) = seen
    assert dense < kept <= pruned  # what was pruned stays 0
    lengths = {"prompt_tokens": 3, "new_tokens": 4, "batch": 5}
    assert [(n, given) for _, n, given in seen] == [(len(TEXT[16:]), lengths)] * 3


@pytest.mark.parametrize(
    ("texts", "hub", "told"),
    [
        (["evaluation=a.txt"], [], "'evaluation' is what the record calls its own"),
        ([], ["generation={0}:a.txt"], "'generation' is what the record calls its own"),
        (["news=a.txt"], ["news={0}:a.txt"], "'news' is given by --text and by --hub"),
    ],
)
def test_a_text_takes_no_name_that_is_taken(texts, hub, told, made, tmp_path):
    with pytest.raises(RequestError, match=told):
        evaluate(
            made / "dense", made / "pruned", made / "pruned", tmp_path / "evaluation.json",
            made / "evaluation.parquet", text=texts, hub=[one.format(tmp_path) for one in hub],
        )  # fmt: skip
    assert not (tmp_path / "evaluation.json").exists()


def test_a_finetuning_goes_on_by_its_own_texts_alone(made, tmp_path, monkeypatch):
    def stopping(*_):
        def on_step(step):
            if step.step == 5:
                raise KeyboardInterrupt

        return on_step

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tracking, "tracker", stopping)
        train(made, tmp_path / "cut")
    assert (tmp_path / ".cut.state.pt").exists()
    other = write_text(tmp_path / "other.parquet", TEXT[9:])
    with pytest.raises(ArtifactError, match=r"or text \(to train on, or to judge by\)"):
        train(made, tmp_path / "cut", evaluation=other)
    assert not (tmp_path / "cut").exists()
    train(made, tmp_path / "cut")
    train(made, tmp_path / "whole")
    told = ["epoch", "step", "perplexity", "validation_perplexity", "training_loss", "best"]
    cut, whole = (read_table(tmp_path / f"{name}.parquet")[told] for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(cut, whole, check_exact=True)


def test_what_tensorboard_is_told_is_no_input(made, tmp_path, monkeypatch):
    """Its files hold times: they would make each run's provenance another."""

    class Writer:
        def __init__(self, folder, purge_step):
            (tmp_path / "board").mkdir()
            (tmp_path / "board/events").write_text(folder)

        def add_scalar(self, *_):
            pass

        flush = add_scalar

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(made, tmp_path / "shown", output_tensorboard=tmp_path / "board")
    train(made, tmp_path / "plain")
    assert (tmp_path / "board/events").is_file()
    shown, plain = (
        read_record(tmp_path / name / "finetuned.json")["provenance"] for name in ("shown", "plain")
    )
    for part in ("inputs", "parameters"):
        assert shown[part] == plain[part]


def test_a_tokenizer_goes_along_from_folder_to_folder(made, finetuned, tmp_path):
    expand(finetuned, tmp_path)
    for folder in (made / "pruned", finetuned, tmp_path):
        for name in TOKENIZER_FILES:
            source = made / "dense" / name
            assert (folder / name).exists() == source.exists()
            if source.exists():
                assert (folder / name).read_bytes() == source.read_bytes()
    assert (tmp_path / "generation_config.json").is_file()


def test_windows_tile_a_split(made):
    text = windows_for(made / "dense", made / "evaluation.parquet", LENGTH, CPU)
    ids = load_tokenizer(made / "dense").encode("\n\n".join(TEXT[8:])).ids
    rows = zip(text.ids.tolist(), text.lengths.tolist(), strict=True)
    assert [token for row, n in rows for token in row[:n]] == ids[: int(text.lengths.sum())]
    assert text.lengths[:-1].tolist() == [LENGTH] * (len(text) - 1)
