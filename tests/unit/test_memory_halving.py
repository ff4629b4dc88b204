"""A microbatch is halved where memory runs out, and what is computed stays what it was."""

import copy
import dataclasses
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F

from paramscope.compression.finetune import Judged
from paramscope.compression.finetune import finetune as masked_finetune
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.masked_step import take_step
from paramscope.compression.schedule import Schedule as MaskedSchedule
from paramscope.compression.signed_zeros import apply_masks
from paramscope.curvature.products import HessianProduct, ggn_entries, hessian_entries
from paramscope.curvature.spotcheck import exact_entries
from paramscope.dpsgd.finetune import finetune as private_finetune
from paramscope.dpsgd.plan import Plan
from paramscope.errors import DeviceError, RequestError
from paramscope.evaluation.perplexity import model_perplexity
from paramscope.memory import Microbatch, halved, out_of_memory, pieces
from paramscope.models.losses import mean_loss, token_statistics
from paramscope.models.sequences import padded
from paramscope.models.training import Schedule, train
from tests.unit.conftest import make_tiny
from tests.unit.killed_runs import after_kills
from tests.unit.scarce_memory import cuda_error, scarce
from tests.unit.test_compression_masked_adamw import random_masks

EXACT = {"rtol": 1e-10, "atol": 1e-14}  # float64: sums of a few terms in another order
CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module")
def text():
    """Ten sequences of 5 to 10 tokens."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(4, 24, (5 + i % 6,), generator=generator).tolist() for i in range(10)]
    return padded(rows, [str(i) for i in range(10)])


def no_judge(model):
    return 0.0, 0.0, 0.0


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "error",
    [
        cuda_error(),
        CPU_ERROR,
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_it_is_halved_until_it_fits_and_stays_there(error, capsys):
    tried = []

    def run(size):
        tried.append(size)
        if size > 3:
            raise error
        return 10 * size

    size = Microbatch(22)
    assert size.fit(run) == 20
    assert tried == [22, 11, 5, 2]
    assert size.fit(run) == 20
    assert tried[4:] == [2]
    assert halved(size, Microbatch(9, "evaluation")) == {"batch": {"asked": 22, "taken": 2}}
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"out of memory: going on with {n} sequences a forward" for n in (11, 5, 2)]
    assert out_of_memory(error)


def test_a_batch_that_is_short_is_halved_from_what_it_had():
    tried = []

    def run(size):
        tried.append(size)
        if size > 2:
            raise cuda_error()

    size = Microbatch(16)
    size.fit(run, most=6)
    assert tried == [6, 3, 1]
    assert size.taken == 1


def test_what_a_failed_attempt_held_is_gone_before_the_next():
    held = []

    def run(size):
        if held:
            assert held[0]() is None
            return
        big = torch.zeros(size, requires_grad=True)
        loop = [(big * 2).sum()]
        loop.append(loop)  # as hooks and closures make them
        held.append(weakref.ref(loop[0]))
        raise cuda_error()

    Microbatch(2).fit(run)
    assert len(held) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("NaN")]
)
def test_no_other_error_is_swallowed(text, error):
    size = Microbatch(4)
    with scarce(2, error=lambda: error) as calls, pytest.raises(type(error), match=str(error)):
        token_statistics(make_tiny(), text, size, moments=False)
    assert calls == [4]
    assert not halved(size)


def test_a_nan_is_not_taken_for_want_of_memory(text):
    model = make_tiny()
    masks = random_masks(model)
    apply_masks(model, masks)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1e-3)
    schedule = MaskedSchedule(epochs=1, batch=10, learning_rate=1e-3)
    size = Microbatch(10)
    with pytest.raises(RequestError, match="give a lower learning rate"):
        take_step(model, optimizer, text, 1e-3, schedule, None, size)
    assert not halved(size)


def test_one_sequence_that_does_not_fit_ends_it_with_the_mend(text):
    size = Microbatch(4, mend="less is taken with --graph layerwise or --dtype bfloat16")
    with scarce(0) as calls, pytest.raises(DeviceError) as told:
        token_statistics(make_tiny(), text, size, moments=False)
    assert calls == [4, 2, 1]
    assert str(told.value) == (
        "out of memory with one sequence a forward; less is taken with --graph layerwise or "
        "--dtype bfloat16"
    )


def test_a_plain_number_is_never_halved(text):
    with scarce(2) as calls, pytest.raises(torch.OutOfMemoryError):
        token_statistics(make_tiny(), text, 4, moments=False)
    assert calls == [4]


@pytest.mark.parametrize("size", [0, -3])
def test_batches_of_nothing_are_refused(size):
    with pytest.raises(RequestError, match="give 1 or more"):
        Microbatch(size)
    with pytest.raises(RequestError, match="give 1 or more"):
        list(pieces(5, size, lambda place: place))


@pytest.mark.parametrize("moments", [True, False])
def test_a_batch_that_fails_is_begun_anew_and_those_before_it_stand(text, moments):
    model = make_tiny()
    expected = token_statistics(model, text, 4, moments=moments)
    size = Microbatch(4)
    with scarce(1, after=1) as calls:
        found = token_statistics(model, text, size, moments=moments)
    assert calls == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert halved(size) == {"batch": {"asked": 4, "taken": 1}}
    for name, values in vars(expected).items():
        if values is not None:
            torch.testing.assert_close(getattr(found, name), values, **EXACT)


def test_without_a_failure_not_a_bit_changes(text):
    model = make_tiny()
    assert_equal(
        token_statistics(model, text, Microbatch(4), moments=True).__dict__.values(),
        token_statistics(model, text, 4, moments=True).__dict__.values(),
    )
    assert model_perplexity(model, text, Microbatch(4)) == model_perplexity(model, text, 4)


def test_a_product_with_the_hessian_is_begun_anew(text):
    model = make_tiny()
    plain = HessianProduct(model, text, 5)
    vector = torch.randn(plain.size, generator=torch.Generator().manual_seed(0)).double()
    expected = plain(vector)
    size = Microbatch(5)
    with scarce(2, backward=True) as calls:
        found = HessianProduct(model, text, size)(vector)
    assert calls == [5, 2, 2, 2, 2, 2]
    assert size.taken == 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert float(expected.norm()) > 0.1


@pytest.mark.parametrize("exact", [ggn_entries, hessian_entries])
def test_exact_entries_of_parts_add_up(text, exact):
    model = make_tiny()
    entries = [(name, i) for name, p in model.named_parameters() for i in (0, p.numel() - 1)][:24]
    expected = list(exact(model, text, entries))
    whole = exact_entries(exact, model, text, entries, "", len(text))
    assert whole == expected
    with scarce(3):
        parts = Microbatch(10).fit(lambda n: exact_entries(exact, model, text, entries, "", n))
    assert parts == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert parts != expected


def gradient_oracle(model, text):
    """The gradient of the mean loss a token of all sequences, one by one, by plain autograd."""
    model = copy.deepcopy(model).eval()
    total = 0.0
    for ids, n in zip(text.ids, text.lengths.tolist(), strict=True):
        scores = model(input_ids=ids[None, :n], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(scores, ids[1:n], reduction="sum")
    loss = total / text.n_predicted
    return torch.autograd.grad(loss, list(model.parameters())), loss.item()


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of each step as they come to be clipped."""
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def clip_seen(parameters, limit):
        parameters = list(parameters)
        seen.append([p.grad.clone() for p in parameters])
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_seen)
    return seen


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_in_several_forwards_has_the_gradient_of_the_logical_batch(
    text, gradients, backward
):
    model = make_tiny()
    expected, loss = gradient_oracle(model, text)
    size = Microbatch(10)
    with scarce(3, backward=backward) as calls:
        rows = train(model, text, Schedule(1, 10, 1e-3, 1), no_judge, 0, size)
    assert calls == [10, 5, 2, 2, 2, 2, 2]
    assert size.taken == 2
    for found, right in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(found, right, **EXACT)
    assert rows["training_loss"].iloc[-1] == pytest.approx(loss, rel=1e-12)
    assert len(gradients) == 1


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("distillation", [0.0, 2.0])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_masked_step_in_several_forwards_is_the_step(
    text, gradients, accumulation, backward, distillation, checkpoint
):
    """Ratios of the distillation too, which are not those of its pieces."""
    teacher = make_tiny() if distillation else None
    schedule = MaskedSchedule(
        epochs=1, batch=10, learning_rate=1e-3, accumulation=accumulation,
        distillation=distillation, checkpoint_activations=checkpoint,
    )  # fmt: skip
    losses = []
    for most in (99, 2):
        model = make_tiny(seed=1)
        masks = random_masks(model)
        apply_masks(model, masks)
        optimizer = MaskedAdamW(model.named_parameters(), masks, lr=1e-3)
        size = Microbatch(10)
        with scarce(most, backward=backward):
            losses.append(take_step(model, optimizer, text, 1e-3, schedule, teacher, size))
        assert size.taken == {99: 10, 2: {1: 2, 3: 2}[accumulation]}[most]
    whole, parts = gradients
    for found, right in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, right, **EXACT)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    if not distillation:
        expected, loss = gradient_oracle(model_before_step(masks), text)
        for name, found, right in zip(dict(model.named_parameters()), parts, expected, strict=True):
            right = right if name not in masks else right * masks[name]
            torch.testing.assert_close(found, right, **EXACT)
        assert losses[0][0] == pytest.approx(loss, rel=1e-12)


def model_before_step(masks):
    model = make_tiny(seed=1)
    apply_masks(model, masks)
    return model


def with_dropout(model):
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.2
    return model


def test_without_a_failure_training_is_what_it_was_bit_by_bit(text):
    """The loop as it is without a microbatch: one forward a step, dropout and all."""
    schedule = Schedule(3, 4, 1e-2, 4)
    seen = []
    for size in (None, Microbatch(4)):
        model = with_dropout(make_tiny())
        rows = train(model, text, schedule, no_judge, 5, size)
        seen.append((weights(model), rows))
    assert_equal(seen[0][0], seen[1][0])
    assert seen[0][1].equals(seen[1][1])
    expected = with_dropout(make_tiny())
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(
        expected.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95)
    )
    expected.train()
    optimizer.param_groups[0]["lr"] = 1e-2  # the only step is the warm-up's last
    mean_loss(expected, text).backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    optimizer.step()
    model = with_dropout(make_tiny())
    in_order = Schedule(1, 10, 1e-2, 1)
    unshuffled(model, text, in_order, Microbatch(10))
    assert_equal(weights(model), weights(expected))


def unshuffled(model, text, schedule, size):
    """One step on the text in its own order."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
        train(model, text, schedule, no_judge, 5, size)


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_ran_out_is_undone_dropout_included(text, backward):
    """Halved at the second step it goes on to the bits of a run that is halved there at once."""
    runs = []
    for size, after in ((Microbatch(4), 1), (Lowered(4, 2, at=1), 0)):
        model = with_dropout(make_tiny())
        with scarce(2 if after else 99, backward=backward, after=after) as calls:
            rows = train(model, text, Schedule(2, 4, 1e-2, 2), no_judge, 5, size)
        runs.append((weights(model), rows, calls))
    steps = [2, 2, 2, 2, 2, 2, 2, 2]  # of the second on: four sequences, two, four, four, two
    assert runs[0][2] == [4, 4, *steps]
    assert runs[1][2] == [4, *steps]
    assert_equal(runs[0][0], runs[1][0])
    assert runs[0][1].equals(runs[1][1])


class Lowered(Microbatch):
    """Takes `taken` from the step after `at` on, and never fails."""

    def __init__(self, asked, taken, at):
        super().__init__(asked)
        self.later, self.left = taken, at

    def fit(self, run, most=None):
        if self.left == 0:
            self.lower(self.later)
        self.left -= 1
        return super().fit(run, most)


@pytest.mark.parametrize("kill", [2, 3, 5])
def test_a_killed_finetuning_goes_on_with_what_it_came_down_to(text, tmp_path, kill):
    """To the bits of the run that was not killed, with memory enough by then."""

    def run(folder, on_step, most):
        model = make_tiny(seed=1)
        masks = random_masks(model)
        folder.mkdir(exist_ok=True)
        size = Microbatch(4)
        schedule = MaskedSchedule(epochs=2, batch=4, learning_rate=1e-2)
        with scarce(most, backward=True):
            done = masked_finetune(
                model, masks, text, lambda _: Judged(1.0, 1.0), schedule, seed=3,
                state=folder / "state.pt", save_every=1, microbatch=size,
                on_step=lambda step: on_step(step.step),
            )  # fmt: skip
        return weights(model), done.epochs["training_loss"].tolist()[1:], halved(size)

    whole = run(tmp_path / "whole", lambda _: None, 2)
    most = iter((2, 99))
    (ours, losses, told), steps = after_kills(
        lambda on_step: run(tmp_path / "killed", on_step, next(most)), [kill]
    )
    assert steps[0] == kill + 1
    assert_equal(ours, whole[0])
    assert losses == whole[1]
    assert told == whole[2] == {"batch": {"asked": 4, "taken": 2}}


PRIVATE = Plan(0.7, 5, 0.5, 1.0, physical_batch=6, learning_rate=1e-2)
ALL = dataclasses.replace(PRIVATE, sample_rate=1.0, steps=3, physical_batch=8)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["bk", "flash", "ghost", "per_layer"])
def test_a_private_step_that_ran_out_is_undone(text, method, backward):
    """The bits of the smaller physical batch, noise included; and the step of the larger."""
    plan = dataclasses.replace(ALL, method=method)
    runs = []
    for physical, most in ((8, 99), (8, 2), (2, 99)):
        model, size = make_tiny(), Microbatch(physical, "physical_batch")
        with scarce(most, backward=backward) as calls:
            seen = private_finetune(
                model, text, dataclasses.replace(plan, physical_batch=physical), seed=0,
                microbatch=size,
            )  # fmt: skip
        runs.append((weights(model), seen))
    whole, ran_out, smaller = runs
    assert size.taken == 2
    assert set(calls) == {2}
    assert ran_out[1] == whole[1] == smaller[1]
    assert_equal(ran_out[0], smaller[0])
    for own, right in zip(ran_out[0], whole[0], strict=True):
        # AdamW's first steps divide a gradient by its own size, so rounding by small ones shows
        torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kill", [1, 3])
def test_a_killed_private_finetuning_goes_on_with_what_it_came_down_to(text, tmp_path, kill):
    def run(folder, on_step, most):
        model, size = make_tiny(), Microbatch(6, "physical_batch")
        folder.mkdir(exist_ok=True)
        with scarce(most):
            private_finetune(
                model, text, PRIVATE, seed=0, state=folder / "state.pt", save_every=1,
                on_step=on_step, microbatch=size,
            )  # fmt: skip
        return weights(model), size.taken

    whole = run(tmp_path / "whole", lambda _: None, 2)
    most = iter((2, 99))
    found, _ = after_kills(lambda on_step: run(tmp_path / "killed", on_step, next(most)), [kill])
    assert_equal(found[0], whole[0])
    assert found[1] == whole[1] < 6


LIMITED = """
import sys, torch
from transformers import OPTConfig, OPTForCausalLM
from paramscope.memory import Microbatch, halved, limit_memory
from paramscope.models.sequences import padded
from paramscope.models.training import Schedule, train
torch.set_num_threads(1)
def new():
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=128, word_embed_proj_dim=128,
        num_hidden_layers=4, num_attention_heads=2, ffn_dim=512, max_position_embeddings=256,
        dropout=0.0)).eval()
text = padded([torch.randint(4, 64, (256,)).tolist() for _ in range(32)],
    [f"d{i}" for i in range(32)])
judge = lambda model: (0.0, 0.0, 0.0)
schedule = Schedule(1, 32, 1e-4, 1)
before = [p.detach().clone() for p in new().parameters()]
free = new()
train(free, text, schedule, judge, 0, Microbatch(2))
held = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line) / 1e6
limit_memory(held + 0.2, torch.device("cpu"))
size = Microbatch(32)
kept = new()
train(kept, text, schedule, judge, 0, size)
print("moved", max(float((a - b).abs().max()) for a, b in zip(before, kept.parameters())))
pairs = zip(free.parameters(), kept.parameters())
print("apart", max(float((a - b).abs().max()) for a, b in pairs))
print("told", halved(size))
"""


def test_a_limit_of_memory_halves_a_training_step_and_changes_nothing():
    """Some 10 MB of activations a sequence, 32 of them; the system refuses more than 200."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    told = dict(line.split(" ", 1) for line in result.stdout.splitlines()[-3:])
    assert "out of memory: going on with 16 sequences a forward" in result.stdout
    assert "{'batch': {'asked': 32, 'taken': " in told["told"]
    assert float(told["moved"]) > 1e-4  # AdamW's first step, at the rate
    assert float(told["apart"]) < 1e-5  # float32 sums in another order, over their own size
