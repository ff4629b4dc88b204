"""Perplexity and attacks against scikit-learn, scipy, and the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from paramscope.evaluation.membership import (
    auc,
    min_k,
    resample_counts,
    resampled_auc,
    resampled_mean,
    wins,
)
from paramscope.evaluation.perplexity import (
    log_perplexity,
    model_log_perplexity,
    model_perplexity,
    resampled_log_perplexity,
)
from paramscope.models.losses import (
    document_losses,
    mean_loss,
    token_log_probabilities,
)
from paramscope.models.sequences import concatenate, padded, windows
from tests.unit.conftest import make_tiny

scores = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(scores, scores)
def test_auc_is_scikit_learns_ties_included(members, nonmembers):
    expected = roc_auc_score([1] * len(members) + [0] * len(nonmembers), members + nonmembers)
    assert auc(torch.tensor(members), torch.tensor(nonmembers)) == pytest.approx(expected)


def test_resampled_auc_is_the_auc_of_the_resample():
    generator = torch.Generator().manual_seed(0)
    members = torch.randint(5, (7,), generator=generator)
    nonmembers = torch.randint(5, (9,), generator=generator)
    m, n = resample_counts(7, 20, seed=1), resample_counts(9, 20, seed=2)
    assert m.sum(1).tolist() == [7] * 20
    got = resampled_auc(wins(members, nonmembers), m, n)
    for r in range(20):
        drawn = members.repeat_interleave(m[r].long()), nonmembers.repeat_interleave(n[r].long())
        assert float(got[r]) == pytest.approx(auc(*drawn))


def test_resampled_mean_is_the_mean_of_the_resample():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(11, generator=generator, dtype=torch.float64)
    counts = resample_counts(11, 30, seed=3)
    got = resampled_mean(values, counts)
    for r in range(30):
        drawn = values.repeat_interleave(counts[r].long())
        assert float(got[r]) == pytest.approx(float(drawn.mean()), rel=1e-12)
    uneven = torch.tensor([[0, 3, 1], [0, 0, 2]])  # counts need not add up to the values'
    given = torch.tensor([100.0, 2.0, 6.0])
    assert resampled_mean(given, uneven).tolist() == [3, 6]


def test_resampled_means_spread_as_the_standard_error_says():
    """Over resamples, a mean of n values has the variance σ²/n, σ² their own by 1/n."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = resampled_mean(values, resample_counts(40, 20_000, seed=0))
    error = float(values.std(correction=0)) / 40**0.5
    # of 20,000 resamples: their mean is known to error/141, their deviation to 0.5 percent
    assert float(means.mean()) == pytest.approx(float(values.mean()), abs=4 * error / 20_000**0.5)
    assert float(means.std()) == pytest.approx(error, rel=0.02)


def test_min_k_is_the_published_formula():
    """Mean of the ⌊k·n⌋ lowest log-probabilities of each text alone (Shi et al. 2024)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([21, 2, 7, 14])
    log_probs = -torch.rand(4, 20, generator=generator, dtype=torch.float64) - 0.01
    places = torch.arange(20)
    log_probs[places >= (lengths - 1)[:, None]] = 0
    got = min_k(log_probs, lengths, 20)
    for row, n, value in zip(log_probs, lengths.tolist(), got.tolist(), strict=True):
        text = np.sort(row.numpy()[: n - 1])
        assert value == pytest.approx(text[: max(1, int(0.2 * (n - 1)))].mean(), rel=1e-12)
    torch.testing.assert_close(min_k(log_probs, lengths, 100), -document_losses(log_probs, lengths))


def test_log_probabilities_are_those_of_each_text_alone(sequences):
    model = make_tiny()
    together = token_log_probabilities(model, sequences, batch_size=4)
    for i, n in enumerate(sequences.lengths.tolist()):
        ids = sequences.ids[i : i + 1, :n]
        with torch.no_grad():
            alone = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        expected = alone.gather(1, ids[0, 1:, None]).squeeze(1)
        torch.testing.assert_close(together[i, : n - 1], expected, rtol=1e-9, atol=1e-12)
        assert not together[i, n - 1 :].any()


def test_pads_change_neither_loss_nor_gradient(sequences):
    model = make_tiny()
    wider = concatenate(sequences, padded([[4] * 12], ["long"]))[: len(sequences)]
    results = []
    for batch in (sequences, wider):
        model.zero_grad()
        loss = mean_loss(model, batch)
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(sequences):
    model = make_tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert float(mean_loss(model, sequences)) == pytest.approx(math.log(24))
    assert model_perplexity(model, sequences, 4) == pytest.approx(24)


def test_perplexity_is_that_of_each_text_alone_at_any_batch_size(sequences, capsys):
    model, total = make_tiny(), 0.0
    for ids, n in zip(sequences.ids, sequences.lengths.tolist(), strict=True):
        alone = ids[None, :n]
        with torch.no_grad():  # transformers' own loss, a mean over n − 1 tokens, in float32
            total += float(model(input_ids=alone, labels=alone).loss) * (n - 1)
    log_probs = token_log_probabilities(model, sequences, 6)
    expected = log_perplexity(log_probs, sequences.lengths)
    theirs = total / sum(n - 1 for n in sequences.lengths.tolist())
    assert expected == pytest.approx(theirs, rel=1e-6)
    for size in (1, 4, 6):  # float64 sums in another order
        assert model_log_perplexity(model, sequences, size) == pytest.approx(expected, rel=1e-12)
        assert model_perplexity(model, sequences, size) == pytest.approx(math.exp(expected))
    assert capsys.readouterr().err == ""
    model_perplexity(model, sequences, 4, "tiny on text")
    assert "tiny on text: 100%" in capsys.readouterr().err


def test_a_perplexity_that_no_float_holds_is_infinite(sequences):
    model = make_tiny()
    with torch.no_grad():
        model.model.decoder.final_layer_norm.weight.mul_(1e4)
    assert 710 < model_log_perplexity(model, sequences, 4) < math.inf
    assert model_perplexity(model, sequences, 4) == math.inf


def test_perplexity_weighs_windows_by_their_tokens():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    lengths = torch.tensor([4, 2])
    assert log_perplexity(log_probs, lengths) == pytest.approx(10 / 4)
    counts = torch.tensor([[1, 1], [2, 0], [0, 2]])
    expected = [10 / 4, 2.0, 4.0]
    assert resampled_log_perplexity(log_probs, lengths, counts).tolist() == pytest.approx(expected)


def test_windows_tile_the_joined_text_and_keep_its_tail():
    from paramscope.models.tokenizer import train_tokenizer

    text = ["alpha beta gamma delta " * 5, "epsilon zeta eta theta " * 5]
    tokenizer = train_tokenizer(text * 3, 280)
    ids = tokenizer.encode("\n\n".join(text)).ids
    cut = windows(tokenizer, text, length=16, stride=16)
    joined = [i for row, n in zip(cut.ids, cut.lengths, strict=True) for i in row[:n].tolist()]
    assert joined == ids[: len(joined)]
    assert len(ids) - len(joined) <= 1  # a last token alone predicts nothing
    assert cut.lengths[:-1].tolist() == [16] * (len(cut) - 1)
