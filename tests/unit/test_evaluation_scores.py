"""Membership scores against the published formulas, ROC curves against scikit-learn."""

import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, write_table
from paramscope.errors import RequestError
from paramscope.evaluation.membership import resampled_auc, wins
from paramscope.evaluation.roc import (
    Resamples,
    area,
    curve_rates,
    judge,
    loss_gap,
    resampled_curves,
    resamples,
    roc_curve,
    tpr_at,
)
from paramscope.evaluation.scores import (
    DOCUMENT_SCORES,
    LIRA,
    SCORES,
    document_scores,
    membership_summary,
    standardised,
    zlib_bytes,
)
from paramscope.models import losses
from paramscope.models.losses import TokenStatistics, token_log_probabilities, token_statistics
from paramscope.models.tokenizer import train_tokenizer
from tests.unit.conftest import make_tiny

values = st.lists(st.integers(0, 6), min_size=1, max_size=30)
TEXT = ["alpha beta gamma delta — ε " * 4, "one two three", "epsilon zeta eta theta iota " * 3]


def one_by_one(model, sequences):
    """Probabilities of the next token, a text at a time: (p [T − 1, V], the tokens [T − 1])."""
    for i, n in enumerate(sequences.lengths.tolist()):
        ids = sequences.ids[i : i + 1, :n]
        with torch.no_grad():
            p = model(input_ids=ids).logits[0, :-1].softmax(-1)
        yield p.numpy(), ids[0, 1:].numpy()


@pytest.mark.parametrize("chunk", [1, 1000, 2**20])
def test_token_statistics_are_those_of_each_text_alone(tiny, sequences, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk)
    found = token_statistics(tiny, sequences, batch_size=4, moments=True)
    for i, (p, tokens) in enumerate(one_by_one(tiny, sequences)):
        log_p = np.log(p)
        mean = (p * log_p).sum(1)
        own = log_p[np.arange(len(tokens)), tokens]
        sigma = np.sqrt((p * log_p**2).sum(1) - mean**2)
        for row, expected in zip(
            (found.log_probs[i], found.mean[i], found.deviation[i]), (own, mean, sigma), strict=True
        ):
            # float64, sums in another order
            np.testing.assert_allclose(row[: len(tokens)], expected, rtol=1e-8, atol=1e-10)
            assert not row[len(tokens) :].any()


def test_without_moments_log_probabilities_are_the_same(tiny, sequences):
    found = token_statistics(tiny, sequences, batch_size=4, moments=False)
    assert found.mean is None
    assert found.deviation is None
    assert torch.equal(found.log_probs, token_log_probabilities(tiny, sequences, batch_size=4))
    with pytest.raises(RequestError, match="moments"):
        standardised(found)


def test_no_second_copy_of_the_logits_lives(sequences, monkeypatch):
    """All that is made of the logits, once they are there, is of a few tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (24,) and not is_view(out):
                rows.append(out.numel() // 24)
            return out

    def is_view(out):
        return out.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()

    model = make_tiny()
    with torch.no_grad():
        scores = losses.logits(model, sequences.ids)
    monkeypatch.setattr(losses, "logits", lambda model, ids: scores)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 24 * 3)
    with Sizes():
        token_statistics(model, sequences, batch_size=6, moments=True)
    assert len(rows) > 10
    assert max(rows) == 3


def test_scores_are_the_published_formulas():
    """Min-K%++ as in Zhang et al. 2024, equation 3, written out; the others likewise."""
    from tests.unit.conftest import padded

    target, base = make_tiny(), make_tiny(seed=1)
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(4, 24, (n,), generator=generator).tolist() for n in (16, 11, 6, 2)]
    sequences = padded(rows, list("abcd"))
    before = token_statistics(base, sequences, 2, moments=False).log_probs
    sizes = torch.tensor([30.0, 40.0, 20.0, 10.0], dtype=torch.float64)
    found = document_scores(
        token_statistics(target, sequences, 3, moments=True),
        sequences.lengths,
        base_losses=losses.document_losses(before, sequences.lengths),
        zlib_bytes=sizes,
        percent=20,
    )
    assert set(found) == set(SCORES) - {LIRA}
    alone = zip(one_by_one(target, sequences), one_by_one(base, sequences), strict=True)
    for i, ((p, tokens), (q, _)) in enumerate(alone):
        places = np.arange(len(tokens))
        log_p = np.log(p)
        own = log_p[places, tokens]
        k = max(1, int(0.2 * len(tokens)))
        spread = [
            (own[t] - p[t] @ log_p[t]) / np.sqrt(p[t] @ log_p[t] ** 2 - (p[t] @ log_p[t]) ** 2)
            for t in places
        ]
        expected = {
            "loss": own.mean(),
            "zlib": own.mean() / float(sizes[i]),
            "min_k": np.sort(own)[:k].mean(),
            "min_k_plus_plus": np.sort(spread)[:k].mean(),
            "calibrated": own.mean() - np.log(q[places, tokens]).mean(),
        }
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(value, rel=1e-6), name


def test_where_the_softmax_has_rounded_to_certainty_scores_are_finite():
    """σ is 0 there: the certain token scores 0, any other as far below as can be told."""
    log_probs = torch.tensor([[0.0, -90.0]], dtype=torch.float64)
    zero = torch.zeros_like(log_probs)
    found = standardised(TokenStatistics(log_probs, zero, zero))
    assert found.isfinite().all()
    assert found[0, 0] == 0
    assert found[0, 1] < -1e6


def test_zlib_reads_what_the_model_reads():
    tokenizer = train_tokenizer(TEXT * 3, 280)
    whole = zlib_bytes(tokenizer, TEXT, length=10_000).tolist()
    assert whole == [len(zlib.compress(text.encode())) for text in TEXT]
    encoding = tokenizer.encode(TEXT[0])
    read = tokenizer.decode(encoding.ids[:12])
    cut = zlib_bytes(tokenizer, TEXT[:1], length=12)
    assert cut.tolist() == [len(zlib.compress(read.encode()))]
    assert cut[0] < whole[0]


@settings(deadline=None, max_examples=50)
@given(values, values)
def test_curves_are_scikit_learns_ties_included(members, nonmembers):
    labels = [1] * len(members) + [0] * len(nonmembers)
    expected = metrics.roc_curve(labels, members + nonmembers, drop_intermediate=False)
    fpr, tpr = roc_curve(np.array(members, float), np.array(nonmembers, float))
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    auc = metrics.roc_auc_score(labels, members + nonmembers)
    assert area(fpr[None], tpr[None])[0] == pytest.approx(auc)
    levels = np.array([0.0, 0.01, 0.05, 0.5, 1.0])
    best = [max(t for f, t in zip(*expected[:2], strict=True) if f <= e) for e in levels]
    np.testing.assert_allclose(tpr_at(fpr[None], tpr[None], levels)[0], best)


def test_resampled_curves_are_those_of_the_resample():
    generator = np.random.default_rng(0)
    members, nonmembers = (generator.integers(0, 9, n).astype(float) for n in (12, 17))
    drawn = resamples(len(members), len(nonmembers), 40, seed=3)
    assert drawn.members.sum(1).tolist() == [12] * 40
    assert len({row.tobytes() for row in drawn.members}) == 40
    fpr, tpr = resampled_curves(members, nonmembers, drawn)
    levels = np.array([0.05, 0.3])
    at_levels = tpr_at(fpr, tpr, levels)
    counts = drawn.members.astype(int), drawn.nonmembers.astype(int)
    for r in range(40):
        m, n = (np.repeat(x, c[r]) for x, c in zip((members, nonmembers), counts, strict=True))
        labels = [1] * len(m) + [0] * len(n)
        scores = np.concatenate([m, n])
        assert area(fpr, tpr)[r] == pytest.approx(metrics.roc_auc_score(labels, scores))
        f, t, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(at_levels[r], [t[f <= e + 1e-12].max() for e in levels])
    table = wins(torch.tensor(members), torch.tensor(nonmembers))
    both = resampled_auc(table, torch.tensor(drawn.members), torch.tensor(drawn.nonmembers))
    np.testing.assert_allclose(both, area(fpr, tpr))


def test_intervals_cover_what_normals_have():
    """95% intervals of AUC, TPR at 5% and gap over 300 worlds whose values are known.

    The binomial's own spread of 300 trials is ± 2.5 points at two sigma. Percentile intervals
    of a rate read off a threshold are known to be wide at small counts, never short.
    """
    generator = np.random.default_rng(0)
    shift, n, trials = 1.0, 100, 300
    truth = {
        "auc": norm.cdf(shift / np.sqrt(2)),
        "tpr_5": norm.cdf(shift + norm.ppf(0.05)),
        "gap": shift,
    }
    covered = dict.fromkeys(truth, 0)
    spread, errors = [], []
    for trial in range(trials):
        members, nonmembers = generator.normal(shift, 1, n), generator.normal(0, 1, n)
        drawn = resamples(n, n, 200, seed=trial)
        judged = judge(members, nonmembers, drawn)
        gap = loss_gap(-members, -nonmembers, drawn)
        for name, found in (("auc", judged.auc), ("tpr_5", judged.tpr_5), ("gap", gap)):
            assert found.low <= found.value <= found.high
            covered[name] += found.low <= truth[name] <= found.high
        spread.append(judged.auc.value)
        errors.append(judged.auc.se)
    for name, times in covered.items():
        assert 0.91 <= times / trials <= 0.99, (name, times)
    assert np.mean(errors) == pytest.approx(np.std(spread), rel=0.15)  # 1/√600 of the latter


def test_no_rate_at_one_percent_below_a_thousand_nonmembers():
    generator = np.random.default_rng(0)
    for n in (999, 1000):
        members, nonmembers = generator.normal(1, 1, 50), generator.normal(0, 1, n)
        judged = judge(members, nonmembers, resamples(50, n, 40, seed=0))
        assert (judged.tpr_1 is None) == (n == 999)
    assert judged.tpr_1.value <= judged.tpr_5.value
    assert judged.tpr_1.value > 0
    with pytest.raises(RequestError, match="resamples"):
        resamples(50, 50, 39, seed=0)


def test_curves_begin_at_one_false_positive_and_thin_out():
    np.testing.assert_allclose(curve_rates(20), np.arange(1, 21) / 20)
    many = curve_rates(30_000)
    assert many[0] == 1 / 30_000
    assert many[-1] == 1
    assert len(many) <= 200
    assert (np.diff(many) > 0).all()


def test_large_samples_are_judged_in_parts(monkeypatch):
    from paramscope.evaluation import roc

    generator = np.random.default_rng(0)
    members, nonmembers = generator.normal(1, 1, 60), generator.normal(0, 1, 70)
    drawn = resamples(60, 70, 50, seed=0)
    whole = judge(members, nonmembers, drawn)
    monkeypatch.setattr(roc, "HELD", 400)
    parts = judge(members, nonmembers, drawn)
    assert (whole.auc, whole.tpr_5) == (parts.auc, parts.tpr_5)
    np.testing.assert_array_equal(whole.curve.low, parts.curve.low)


def make_scores(members=30, nonmembers=25, probes=0):
    generator = np.random.default_rng(0)
    member = np.arange(members + nonmembers) < members
    frame = pd.DataFrame({name: generator.normal(size=len(member)) + member for name in SCORES})
    first = np.concatenate([np.arange(members), np.arange(nonmembers)]) < probes
    return frame.assign(member=member, probe=first)


def test_probes_do_not_judge():
    scores = make_scores(probes=12)
    spoilt = scores.copy()
    spoilt.loc[spoilt["probe"], list(SCORES)] = 1e6
    left = membership_summary(scores, 100, seed=0)
    assert left == membership_summary(spoilt, 100, seed=0)
    assert (left["n_members"], left["n_nonmembers"], left["n_probes"]) == (18, 13, 24)
    judging = scores[~scores["probe"]]
    for name in SCORES:
        expected = metrics.roc_auc_score(judging["member"], judging[name])
        assert left["scores"][name]["auc"] == pytest.approx(expected)
    means = judging.groupby("member")["loss"].mean()
    assert left["loss_gap"]["value"] == pytest.approx(means[True] - means[False])


def test_the_summary_says_what_its_numbers_rest_on():
    scores = make_scores().assign(lira=np.nan)
    scores["calibrated"] += 100 * scores["member"]
    summary = membership_summary(scores, 100, seed=0)
    assert set(summary["scores"]) == set(summary["curves"]) == set(SCORES) - {LIRA}
    numbers = summary["scores"]["loss"]
    assert numbers["tpr_1"] is None
    assert numbers["tpr_1_low"] is None
    assert numbers["auc_low"] < numbers["auc"] < numbers["auc_high"]
    notes = " ".join(summary["notes"])
    for told in ("tpr_1 is null", "tpr_5 is coarse: it rests on 1 of 25", "calibrated parts all"):
        assert told in notes
    same = membership_summary(scores.assign(zlib=scores["loss"]), 100, seed=0)["scores"]
    assert same["zlib"] == same["loss"]  # one resample for all scores


def test_the_stage_scores_every_document_and_judges_the_rest(tmp_path, monkeypatch):
    from paramscope.artifacts.tables import read_table_provenance
    from paramscope.cli.membership import membership
    from paramscope.corpus.splits import DOCUMENTS
    from paramscope.models.load import Architecture, new_opt

    monkeypatch.chdir(tmp_path)
    by = provenance("models.losses", {})
    texts = [f"{word} number {i} of {word}s" for word in ("apple", "pear") for i in range(16)]
    tokenizer = train_tokenizer(texts, 280)
    for name, seed in (("target", 0), ("base", 1)):
        new_opt(Architecture(8, 1, 2, 16, 32), 280, seed).save_pretrained(tmp_path / name)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    paths = []
    for name, part in (("member", texts[:16]), ("nonmember", texts[16:])):
        frame = pd.DataFrame({"doc_id": [f"{name}-{i}" for i in range(16)], "text": part})
        paths.append(tmp_path / f"{name}.parquet")
        write_table(paths[-1], frame, DOCUMENTS, by)
    folders = tmp_path / "target", tmp_path / "base"
    out, record = tmp_path / "scores.parquet", tmp_path / "summary.json"
    options = {"device": "cpu", "threads": 1, "bootstrap": 50, "probe": 4}
    membership(*folders, *paths, out, record, **options)
    scores = read_table(out)
    assert list(scores) == DOCUMENT_SCORES.names
    assert scores["member"].sum() == 16
    assert scores["probe"].sum() == 8
    assert scores[LIRA].isna().all()
    distinct = scores[[n for n in SCORES if n != LIRA]].nunique()
    assert distinct.min() > 10
    assert distinct["loss"] == 32
    summary = read_record(record)
    assert summary["n_members"] == summary["n_nonmembers"] == 12
    judging = scores[~scores["probe"]]
    expected = metrics.roc_auc_score(judging["member"], judging["calibrated"])
    assert summary["scores"]["calibrated"]["auc"] == pytest.approx(expected)
    assert str(paths[0]) in read_table_provenance(out)["inputs"]
    with pytest.raises(RequestError, match="fewer probes"):
        membership(*folders, *paths, out, record, **(options | {"probe": 10}))
    (tmp_path / "base" / "tokenizer.json").write_text(
        train_tokenizer(TEXT * 3, 280).to_str(), encoding="utf-8"
    )
    with pytest.raises(RequestError, match="another tokenizer"):
        membership(*folders, *paths, out, record, **options)


def test_a_resample_of_everything_once_is_the_sample():
    members, nonmembers = np.array([3.0, 1.0]), np.array([2.0, 0.0])
    fpr, tpr = resampled_curves(members, nonmembers, Resamples(np.ones((1, 2)), np.ones((1, 2))))
    assert fpr.tolist() == [[0, 0, 0.5, 0.5, 1]]
    assert tpr.tolist() == [[0, 0.5, 0.5, 1, 1]]
