"""What one sample can do to a step: at most C, with whatever it is batched, and finite or not."""

import pytest
import torch
from torch import nn

from paramscope.dpsgd.methods import make_method
from paramscope.dpsgd.privacy import Privacy
from paramscope.errors import RequestError
from tests.unit.conftest import make_tiny
from tests.unit.dpsgd_oracles import (
    EXACT,
    OURS,
    assert_bounded,
    chosen,
    clipped_oracle,
    contributions,
    median_norm,
    own_gradients,
    run,
    unclipped,
)

HUGE = 1e12


def least_norm(model, sequences):
    return float(clipped_oracle(model, sequences, 1.0)[1].min())


@pytest.mark.parametrize("name", OURS)
def test_no_sample_adds_more_than_the_bound(tiny, sequences, name):
    C = 0.1 * least_norm(tiny, sequences)
    norms = contributions(tiny, name, sequences, C)
    assert_bounded(norms, C)
    if name == "per_layer":  # √ΣC_l² is C only where every layer is clipped
        assert (norms > 0.5 * C).all()
    else:
        torch.testing.assert_close(norms, torch.full_like(norms, C), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OURS)
def test_without_a_bound_it_is_the_gradient_of_the_mean_loss(tiny, sequences, name):
    gradients, _ = own_gradients(tiny, sequences)
    mean = [g.mean(0) for g in gradients]
    found, (told,) = run(tiny, name, sequences, HUGE)
    for own, right in zip(found, mean, strict=True):
        torch.testing.assert_close(own, right * len(sequences), **EXACT)
    assert told.factors is None or (told.factors == 1).all()


def test_a_plain_backward_is_caught(tiny_opt, sequences, monkeypatch):
    C = 0.1 * least_norm(tiny_opt, sequences)
    assert_bounded(contributions(tiny_opt, "bk", sequences, C), C)
    unclipped(monkeypatch)
    norms = contributions(tiny_opt, "bk", sequences, C)
    assert (norms > C).all()
    with pytest.raises(AssertionError):
        assert_bounded(norms, C)


@pytest.mark.parametrize("name", OURS)
def test_the_sum_hangs_on_neither_order_nor_microbatches(tiny, sequences, name):
    C = median_norm(tiny, sequences)
    expected, _ = run(tiny, name, sequences, C)
    order = [4, 0, 5, 2, 1, 3]
    shuffled, _ = run(tiny, name, chosen(sequences, order), C)
    split, _ = run(tiny, name, sequences, C, batches=(slice(0, 1), slice(1, 4), slice(4, 6)))
    cut, _ = run(tiny, name, chosen(sequences, order), C, batches=(slice(0, 4), slice(4, 6)))
    for right, *others in zip(expected, shuffled, split, cut, strict=True):
        for own in others:
            torch.testing.assert_close(own, right, **EXACT)


def with_a_bad_token(sequences, place):
    """A model whose gradient is NaN for the sample at `place` alone, and the samples."""
    model = make_tiny("opt", tied=False)
    ids = sequences.ids.clone()
    ids[ids == 23] = 22
    ids[place, 1] = 23
    with torch.no_grad():
        model.get_input_embeddings().weight[23] = torch.nan
    return model, type(sequences)(ids, sequences.lengths, sequences.names)


@pytest.mark.parametrize("batches", [(None,), (slice(0, 2), slice(2, 3), slice(3, 6))])
@pytest.mark.parametrize("name", ["bk", "micro", "per_layer"])
def test_a_sample_that_is_not_finite_is_left_out(sequences, name, batches):
    """In a batch, and alone in one: place 2 is a microbatch of its own in the second split."""
    model, texts = with_a_bad_token(sequences, 2)
    C = median_norm(model, chosen(texts, [0, 1, 3, 4, 5]))
    expected, _ = run(model, name, chosen(texts, [0, 1, 3, 4, 5]), C)
    found, told = run(model, name, texts, C, batches=batches)
    assert torch.cat([t.dropped for t in told]).tolist() == [i == 2 for i in range(6)]
    for own, right in zip(found, expected, strict=True):
        assert own.isfinite().all()
        torch.testing.assert_close(own, right, **EXACT)
    assert max(float(f.abs().max()) for f in found) > 0


@pytest.mark.parametrize("name", ["ghost", "flash"])
def test_two_backwards_refuse_a_sample_that_is_not_finite(sequences, name):
    model, texts = with_a_bad_token(sequences, 2)
    with pytest.raises(RequestError, match="method bk or micro would do"):
        run(model, name, texts, 1.0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_norm": 0.0}, "max_norm is 0; give a norm above 0"),
        ({"max_norm": -1.0}, "max_norm is -1"),
        ({"max_norm": float("nan")}, "max_norm is nan"),
        ({"noise_multiplier": -0.1}, "noise_multiplier is -0.1; give 0"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier is inf"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier is nan"),
        ({"expected_batch": 0.0}, "expected_batch is 0; give more than 0"),
        ({"expected_batch": -4.0}, "expected_batch is -4"),
    ],
)
def test_mechanisms_that_cannot_be_are_refused(wrong, told):
    right = {"max_norm": 1.0, "noise_multiplier": 1.0, "expected_batch": 4.0}
    Privacy(**right)
    with pytest.raises(RequestError, match=told):
        Privacy(**right | wrong)


@pytest.mark.parametrize("name", [*OURS, "vanilla"])
def test_a_layer_that_mixes_samples_is_refused(name):
    model = make_tiny()
    model.model.decoder.final_layer_norm = nn.BatchNorm1d(8).double()
    with pytest.raises(RequestError, match="final_layer_norm: a BatchNorm1d mixes the samples"):
        make_method(name, model, Privacy(1.0, 1.0, 4.0))


def test_an_unknown_method_is_refused(tiny_opt):
    with pytest.raises(RequestError, match="method 'fast' is not known; known are vanilla"):
        make_method("fast", tiny_opt, Privacy(1.0, 1.0, 4.0))
