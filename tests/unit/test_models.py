"""Training learns, repeats and stops; tokenizers and folders come back as they went in."""

import pytest
import torch

from paramscope.errors import ArtifactError, RequestError
from paramscope.models.load import Architecture, load_model, logits, new_opt
from paramscope.models.sequences import documents, load_tokenizer, padded
from paramscope.models.tokenizer import (
    SPECIAL,
    checkpoint_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from paramscope.models.training import Schedule, membership_judge, train

TEXT = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog", "fox")
        for c in ("mat", "log", "hill", "step")]  # fmt: skip
SMALL = Architecture(hidden=16, layers=1, heads=2, ffn=32, positions=16)
CPU = torch.device("cpu")


@pytest.fixture
def text():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 40, (10,), generator=generator).tolist() for _ in range(24)]
    return padded(rows, [str(i) for i in range(24)])


def test_a_tokenizer_comes_back_and_starts_every_text(tmp_path):
    save_tokenizer(train_tokenizer(TEXT, 290), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab_size() == 290
    ids = tokenizer.encode("the red cat, unseen ünïcode").ids
    assert ids[0] == SPECIAL.index("</s>")
    assert tokenizer.decode(ids) == "the red cat, unseen ünïcode"
    assert SPECIAL.index("<pad>") not in ids
    again = checkpoint_tokenizer(str(tmp_path))
    assert again.encode("the old fox").ids == tokenizer.encode("the old fox").ids


def test_wrong_tokenizers_are_refused(tmp_path):
    with pytest.raises(RequestError, match="at least 260"):
        train_tokenizer(TEXT, 100)
    with pytest.raises(RequestError, match="the text fills only"):
        train_tokenizer(TEXT, 5000)
    with pytest.raises(ArtifactError, match="no such tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(RequestError, match="no tokenizer to be had"):
        checkpoint_tokenizer(str(tmp_path / "nothing"))


def test_documents_are_cut_and_empty_ones_named(tmp_path):
    tokenizer = train_tokenizer(TEXT, 290)
    cut = documents(tokenizer, TEXT[:3], ["a", "b", "c"], length=4)
    assert cut.lengths.tolist() == [4, 4, 4]
    with pytest.raises(RequestError, match="document b has 1 token"):
        documents(tokenizer, ["x", ""], ["a", "b"], length=4)
    with pytest.raises(RequestError, match="the split is empty"):
        documents(tokenizer, [], [], length=4)


def test_training_learns_its_text_and_repeats(text):
    schedule = Schedule(epochs=12, batch=8, learning_rate=1e-2, evaluate_every=9)
    members, others = text[:12], text[12:]
    judge = membership_judge(members, others, batch_size=8)
    weights = []
    for _ in range(2):
        model = new_opt(SMALL, 40, seed=3)
        history = train(model, members, schedule, judge, seed=1)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    first, last = history.iloc[0], history.iloc[-1]
    assert first["member_loss"] == pytest.approx(3.69, abs=0.2)  # log 40 at random weights
    assert last["member_loss"] < first["member_loss"] - 0.5
    assert last["member_loss"] < last["nonmember_loss"]
    assert last["auc"] > 0.9 > first["auc"]
    assert history["step"].tolist() == [0, 9, 18, 24]
    assert not model.training


def test_finetuning_stops_at_its_target(text):
    schedule = Schedule(200, 8, 1e-2, evaluate_every=1, target_auc=0.8)
    judge = membership_judge(text[:12], text[12:], batch_size=8)
    history = train(new_opt(SMALL, 40, seed=3), text[:12], schedule, judge, seed=1)
    assert history["auc"].iloc[-1] >= 0.8
    assert (history["auc"].iloc[:-1] < 0.8).all()


def test_models_that_cannot_be_used_are_refused(tmp_path):
    model = new_opt(SMALL, 40, seed=0)
    with pytest.raises(RequestError, match="17 tokens, but the model has 16 positions"):
        logits(model, torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ArtifactError, match="not a model folder that loads"):
        load_model(tmp_path, CPU)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ArtifactError, match=r"fc1\.weight holds NaN"):
        load_model(tmp_path / "nan", CPU)
    with pytest.raises(RequestError, match="checkpoint 'no/such-model'"):
        load_model("no/such-model", CPU)
