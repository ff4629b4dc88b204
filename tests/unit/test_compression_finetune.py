"""Finetuning lowers perplexity, keeps its masks, and goes on after a kill as if there was none."""

import copy
import dataclasses

import pandas as pd
import pyarrow as pa
import pytest
import torch

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import read_table, write_table
from paramscope.compression.distillation import hidden_states, square_head, teacher_states
from paramscope.compression.finetune import Judged, finetune
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.masked_step import take_step
from paramscope.compression.schedule import Schedule
from paramscope.compression.schemas import EPOCHS
from paramscope.compression.signed_zeros import apply_masks, masks_of
from paramscope.errors import ArtifactError, RequestError
from paramscope.evaluation.perplexity import model_perplexity
from paramscope.models.load import logits
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import padded
from tests.unit.conftest import make_tiny
from tests.unit.killed_runs import after_kills
from tests.unit.test_compression_masked_adamw import random_masks

SCHEDULE = Schedule(epochs=3, batch=4, learning_rate=2e-2)


@pytest.fixture(scope="module")
def text():
    """Ten sequences of several lengths in which each token gives the next."""
    rows = [[4 + (3 * i + 5 * j) % 20 for j in range(5 + i % 6)] for i in range(10)]
    return padded(rows, [str(i) for i in range(10)])


def judge(text):
    def evaluate(model):
        found = model_perplexity(model, text, 8)
        return Judged(found, found)

    return evaluate


def pruned(kind="opt", seed=0, dtype=torch.float64):
    model = make_tiny(kind, seed=seed).to(dtype)
    masks = random_masks(model)
    apply_masks(model, masks)
    return model, masks


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_finetuning_recovers_and_masks_hold(kind, text, tmp_path):
    model, masks = pruned(kind)
    before = judge(text)(model).told
    found = finetune(model, masks, text, judge(text), SCHEDULE, seed=0)
    rows = found.epochs
    assert rows["epoch"].tolist() == [0, 1, 2, 3]
    assert rows["step"].tolist() == [0, 3, 6, 9]
    assert rows["perplexity"][0] == before
    assert rows["perplexity"][3] < 0.7 * before
    assert found.best_epoch == rows["perplexity"].argmin()
    assert rows["best"].tolist() == [i == found.best_epoch for i in range(4)]
    assert judge(text)(model).told == rows["perplexity"].min()
    change = 100 * (rows["perplexity"] / rows["perplexity"].shift() - 1)
    pd.testing.assert_series_equal(rows["change_percent"], change, check_names=False)
    assert (rows["memory_peak_bytes"] >= rows["memory_before_bytes"]).all()
    assert rows["memory_total_peak_bytes"].is_monotonic_increasing
    for name, mask in masks_of(model, masks).items():
        assert torch.equal(mask, masks[name])
    made_by = provenance("compression.finetune", {})
    write_table(tmp_path / "epochs.parquet", rows, EPOCHS, made_by)
    assert (
        pa.Table.from_pandas(read_table(tmp_path / "epochs.parquet"), preserve_index=False)
        .column("training_loss")
        .null_count
        == 1
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(  # saved at each second step, and at an epoch's end: each third
    ("killed_at", "goes_on_at"),
    [([1], 1), ([2], 3), ([3], 3), ([5, 7], 7), ([1, 2, 3, 4, 5], 5)],
)
def test_a_killed_run_goes_on_bit_by_bit(dtype, killed_at, goes_on_at, text, tmp_path):
    schedule = dataclasses.replace(SCHEDULE, accumulation=2, weight_decay=0.01)
    whole, masks = pruned(dtype=dtype)
    expected = finetune(whole, masks, text, judge(text), schedule, seed=3)
    state = tmp_path / "state.pt"

    def train(on_step):
        model, masks = pruned(dtype=dtype)
        found = finetune(
            model, masks, text, judge(text), schedule,
            seed=3, state=state, save_every=2, on_step=lambda told: on_step(told.step),
        )  # fmt: skip
        return model, found

    (model, found), steps = after_kills(train, killed_at)
    assert steps == list(range(goes_on_at, 10))
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    exact = ["epoch", "step", "perplexity", "best", "training_loss", "learning_rate"]
    pd.testing.assert_frame_equal(found.epochs[exact], expected.epochs[exact], check_exact=True)
    (model, found), steps = after_kills(train, [])  # a finished run is not run again
    assert steps == []
    assert judge(text)(model).told == expected.epochs["perplexity"].min()


def test_another_runs_state_is_refused(text, tmp_path):
    state = tmp_path / "state.pt"
    short = dataclasses.replace(SCHEDULE, max_steps=1)
    model, masks = pruned()
    judged_by = (text[:4], text[4:])
    finetune(model, masks, text, judge(text), short, seed=0, state=state, judged_by=judged_by)
    fewer = {name: mask & (torch.rand(mask.shape) < 0.9) for name, mask in masks.items()}
    for change in (
        {"schedule": dataclasses.replace(short, clip=2.0)},
        {"seed": 1},
        {"text": text[:8]},
        {"masks": fewer},
        {"model": pruned(seed=1)[0]},
        {"teacher": make_tiny(), "schedule": dataclasses.replace(short, distillation=0.1)},
        {"judged_by": ()},
        {"judged_by": judged_by[::-1]},
        {"judged_by": (text[:4], text[4:8])},
        {"judged_by": (text, text[:0])},
    ):
        asked = {"masks": masks, "text": text, "schedule": short, "seed": 0}
        asked |= {"model": pruned()[0], "evaluate": judge(text), "state": state}
        asked |= {"judged_by": judged_by} | change
        with pytest.raises(ArtifactError, match="delete it to begin anew"):
            finetune(**asked)
    finetune(**asked | {"judged_by": judged_by})  # its own is taken up
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a readable Torch file"):
        finetune(pruned()[0], masks, text, judge(text), short, seed=0, state=state)


def test_gradients_are_masked_before_they_are_clipped(text):
    model, masks = pruned()
    schedule = dataclasses.replace(SCHEDULE, clip=0.05)
    mean_loss(model, text).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    kept = torch.cat(
        [(p.grad * masks.get(n, torch.ones(()))).flatten() for n, p in model.named_parameters()]
    ).norm()
    assert kept < 0.9 * whole
    model.zero_grad()
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1.0)
    _, norm = take_step(model, optimizer, text, 1e-3, schedule, None)
    assert norm == pytest.approx(float(kept), rel=1e-12)  # float64 sums in another order
    first = torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()])
    # a first moment is a tenth of the clipped gradient; torch divides by the norm + 1e-6
    assert first.norm() == pytest.approx(0.1 * 0.05 * norm / (norm + 1e-6), rel=1e-12)


def test_accumulation_and_checkpointing_change_no_step(text):
    steps = []
    for change in ({}, {"accumulation": 3}, {"checkpoint_activations": True}):
        model, masks = pruned()
        optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1.0)
        schedule = dataclasses.replace(SCHEDULE, batch=10, clip=0.0, **change)
        loss, _ = take_step(model, optimizer, text, 1e-3, schedule, None)
        moments = torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()])
        steps.append((loss, moments))
    for loss, moments in steps[1:]:
        assert loss == pytest.approx(steps[0][0], rel=1e-12)
        torch.testing.assert_close(moments, steps[0][1], rtol=1e-9, atol=1e-12)  # float64 sums


def test_pads_count_in_nothing(text):
    longer = dataclasses.replace(text, ids=torch.nn.functional.pad(text.ids, (0, 3), value=7))
    results = []
    for words in (text, longer):
        model, masks = pruned()
        teacher = make_tiny()
        schedule = dataclasses.replace(SCHEDULE, epochs=1, distillation=0.5)
        finetune(model, masks, words, judge(text), schedule, seed=0, teacher=teacher)
        results.append(judge(text)(model).told)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_the_best_epoch_is_kept_and_patience_ends(text):
    """Both go by the validation text; what is told of plays no part."""
    answers = iter([9.0, 5.0, 6.0, 5.0, 1.0, 1.0])
    told = iter([9.0, 8.0, 7.0, 1.0, 1.0, 1.0])
    weights = []

    def evaluate(model):
        weights.append([p.detach().clone() for p in model.parameters()])
        return Judged(next(told), next(answers))

    model, masks = pruned()
    schedule = dataclasses.replace(SCHEDULE, epochs=5, patience=2)
    found = finetune(model, masks, text, evaluate, schedule, seed=0)
    assert found.epochs["perplexity"].tolist() == [9, 8, 7, 1]
    assert found.epochs["validation_perplexity"].tolist() == [9, 5, 6, 5]
    assert found.best_epoch == 1
    for expected, got in zip(weights[1], model.parameters(), strict=True):
        assert torch.equal(expected, got)
    assert not torch.equal(weights[1][0], weights[3][0])


def test_each_epoch_takes_each_sequence_once_in_an_order_of_its_own(text):
    model, masks = pruned()
    schedule = Schedule(epochs=3, batch=1, learning_rate=1e-14)  # so losses tell sequences
    steps = []
    found = finetune(model, masks, text, judge(text), schedule, seed=0, on_step=steps.append)
    losses = [[s.loss for s in steps if s.epoch == epoch] for epoch in (1, 2, 3)]
    own = sorted(mean_loss(model, text[i : i + 1]).item() for i in range(len(text)))
    for epoch in losses:
        assert sorted(epoch) == pytest.approx(own, rel=1e-9)
        assert epoch != pytest.approx(own, rel=1e-3)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert losses[1] != pytest.approx(losses[2], rel=1e-3)
    means = [sum(epoch) / len(epoch) for epoch in losses]
    assert found.epochs["training_loss"][1:].tolist() == pytest.approx(means, rel=1e-12)


def test_the_rate_follows_the_batch():
    rates = {b: Schedule(epochs=1, batch=b).peak_rate for b in (1, 4, 8)}
    assert rates == {1: 5e-6, 4: 1e-5, 8: pytest.approx(1.41e-5, rel=3e-3)}  # METHODS 6, rounded
    assert Schedule(epochs=1, batch=4, learning_rate=1.0).peak_rate == 1
    assert Schedule(epochs=99, batch=8).total_steps(1000) == 1250
    assert Schedule(epochs=2, batch=8).total_steps(1001) == 252
    assert Schedule(epochs=2, batch=8, max_steps=7).total_steps(1001) == 7
    schedule = Schedule(epochs=1, learning_rate=2.0, warmup_share=0.1)
    rates = [schedule.rate(step, 100) for step in range(1, 101)]
    assert rates[4] == 1
    assert rates[9] == 2 == max(rates)
    assert rates[54] == pytest.approx(1.1)  # half way down to a tenth
    assert rates[99] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"max_steps": 0}, {"clip": -1.0},
     {"accumulation": 5}, {"learning_rate": float("nan")}],
)  # fmt: skip
def test_schedules_that_cannot_be_are_refused(wrong):
    with pytest.raises(RequestError, match="give"):
        Schedule(**{"epochs": 1, "batch": 4} | wrong)


def test_losses_that_are_not_finite_end_it(text):
    model, masks = pruned()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    with pytest.raises(RequestError, match="perplexity after epoch 0 is NaN"):
        finetune(model, masks, text, judge(text), SCHEDULE, seed=0)
    with pytest.raises(RequestError, match="give a lower learning rate"):
        finetune(model, masks, text, lambda model: Judged(1.0, 1.0), SCHEDULE, seed=0)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_square_head_is_its_formula_sequence_by_sequence(kind, text):
    teacher = make_tiny(kind)
    student, _ = pruned(kind)
    with torch.no_grad():
        top, bottom = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for ids, n in zip(text.ids, text.lengths.tolist(), strict=True):
            one = padded([ids[:n].tolist()], ["one"])
            with hidden_states(student) as states:
                logits(student, one.ids)
            for i, (s, t) in enumerate(zip(states, teacher_states(teacher, one), strict=True)):
                top[i] += (s - t).square().sum()
                bottom[i] += t.square().sum()
        with hidden_states(student) as states:
            logits(student, text.ids)
    got = square_head(states, teacher_states(teacher, text), text)
    assert float(got) == pytest.approx(float((top / bottom).sum()), rel=1e-9)
    assert float(got) > 0.01
    wanted = teacher_states(teacher, text)
    assert float(square_head(wanted, wanted, text)) == 0
    with pytest.raises(RequestError, match="give the dense model that was pruned"):
        square_head(states[:1], wanted, text)


def test_distillation_brings_the_blocks_closer(text):
    teacher = make_tiny()
    frozen = copy.deepcopy(teacher)
    apart = {}
    for weight in (0.0, 100.0):
        model, masks = pruned()
        schedule = dataclasses.replace(SCHEDULE, epochs=6, distillation=weight)
        falling = iter(range(100, 0, -1))  # so that the last epoch is the best

        def last_is_best(_, falling=falling):
            return Judged(1.0, float(next(falling)))

        finetune(model, masks, text, last_is_best, schedule, seed=0, teacher=teacher)
        with torch.no_grad(), hidden_states(model) as states:
            logits(model, text.ids)
        apart[weight] = float(square_head(states, teacher_states(teacher, text), text))
    assert 0 < apart[100.0] < 0.8 * apart[0.0]
    for one, other in zip(frozen.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is None
    with pytest.raises(RequestError, match="needs the dense model"):
        finetune(model, masks, text, judge(text), schedule, seed=0)
