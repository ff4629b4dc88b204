"""The blind gate against sklearn's pipelines, under the null, and on shifted splits."""

import pydoc_data.topics
import zlib
from inspect import getdoc

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from statsmodels.stats.multitest import multipletests

from paramscope.corpus.chunks import cut
from paramscope.corpus.gate import FOLDS, _holm, blind_gate, cross_validated_aucs
from paramscope.errors import RequestError


def texts_from(generator, n, favour=0.0):
    """Random texts of 15 to 30 words; `favour` shifts words towards the vocabulary's start."""
    share = np.linspace(1 + favour, 1 - favour, 60)
    vocabulary = np.array([f"word{i}" for i in range(60)])
    lengths = generator.integers(15, 30, n)
    return [" ".join(generator.choice(vocabulary, k, p=share / share.sum())) for k in lengths]


def test_classifier_is_sklearns_pipeline_fit_in_each_fold():
    generator = np.random.default_rng(0)
    texts = texts_from(generator, 40, favour=0.6) + texts_from(generator, 40)
    folds = np.tile(np.arange(4), 20)
    observed = np.repeat([True, False], 40)
    # shuffled within folds: each fold balanced, so there is no mean label for us to subtract
    shuffled = observed.copy()
    for fold in range(4):
        shuffled[folds == fold] = generator.permutation(observed[folds == fold])
    ours = cross_validated_aucs(texts, np.stack([observed, shuffled], axis=1), folds)
    pipeline = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+"),
        RidgeClassifier(alpha=1.0, fit_intercept=False),
    )
    for labels, auc in zip([observed, shuffled], ours, strict=True):
        decisions = cross_val_predict(
            pipeline,
            np.array(texts, dtype=object),
            labels,
            cv=PredefinedSplit(folds),
            method="decision_function",
        )
        aucs = [roc_auc_score(labels[folds == f], decisions[folds == f]) for f in range(4)]
        # ranks of 20 decisions: an AUC moves by .01 or not at all, so only rounding is left
        assert auc == pytest.approx(np.mean(aucs), abs=1e-12)
    assert ours[0] > 0.6


def test_zlib_auc_is_sklearns_in_either_direction():
    generator = np.random.default_rng(1)
    shorter = [text[:90] for text in texts_from(generator, 30)]
    longer = texts_from(generator, 30)
    sizes = [len(zlib.compress(text.encode())) for text in [*shorter, *longer]]
    expected = roc_auc_score([1] * 30 + [0] * 30, sizes)
    score = blind_gate(shorter, longer, permutations=99, alpha=0.05, seed=0).scores[0]
    assert score.name == "zlib_length"
    assert score.auc == pytest.approx(expected, abs=1e-12)
    assert score.auc < 0.4
    assert score.auc_either_way == pytest.approx(1 - expected, abs=1e-12)
    assert score.p == pytest.approx(0.01)
    mirrored = blind_gate(longer, shorter, permutations=99, alpha=0.05, seed=0).scores[0]
    assert mirrored.auc == pytest.approx(1 - expected, abs=1e-12)
    assert mirrored.p == pytest.approx(0.01)


def test_p_is_uniform_when_members_are_dealt_at_random():
    generator = np.random.default_rng(2)
    gates = []
    for seed in range(120):
        texts = texts_from(generator, 40)
        gates.append(blind_gate(texts[:20], texts[20:], permutations=99, alpha=0.05, seed=seed))
    for i in range(2):
        # 99 permutations make p a multiple of .01: a step that 120 draws can't resolve
        assert kstest([gate.scores[i].p for gate in gates], "uniform").pvalue > 0.01
    # fails in 5% at most: 12 of 120 would be 2.5 standard deviations above
    assert sum(not gate.passed for gate in gates) <= 12


def test_fires_on_members_from_another_source():
    chunks = {
        "topics": [c for t in pydoc_data.topics.topics.values() for c in cut(t, 280)],
        "numpy": [c for name in dir(np) for c in cut(getdoc(getattr(np, name)) or "", 280)],
    }
    generator = np.random.default_rng(3)
    members = list(generator.choice(chunks["topics"], 100, replace=False))
    others = list(generator.choice(chunks["numpy"], 100, replace=False))
    shifted = blind_gate(members, others, permutations=200, alpha=0.05, seed=0)
    assert not shifted.passed
    assert shifted.scores[1].auc > 0.8
    assert "bag_of_words AUC 0." in shifted.verdict()
    mixed = list(generator.permutation(np.array(members + others, dtype=object)))
    assert blind_gate(mixed[:100], mixed[100:], permutations=200, alpha=0.05, seed=0).passed


def test_fires_on_a_shift_of_words_that_lengths_do_not_show():
    generator = np.random.default_rng(4)
    gate = blind_gate(
        texts_from(generator, 100, favour=0.5),
        texts_from(generator, 100),
        permutations=200,
        alpha=0.05,
        seed=0,
    )
    assert not gate.passed
    assert gate.scores[1].p == pytest.approx(1 / 201)
    assert gate.scores[0].p > 0.05


def test_same_seed_same_verdict():
    generator = np.random.default_rng(5)
    texts = texts_from(generator, 31)
    arguments = {"permutations": 50, "alpha": 0.05}
    first = blind_gate(texts[:17], texts[17:], seed=7, **arguments)
    assert first == blind_gate(texts[:17], texts[17:], seed=7, **arguments)
    assert (first.n_member, first.n_nonmember) == (17, 14)


def test_a_gate_that_cannot_fire_is_refused():
    texts = texts_from(np.random.default_rng(6), 20)
    with pytest.raises(RequestError, match="at least 39"):
        blind_gate(texts[:10], texts[10:], permutations=38, alpha=0.05, seed=0)
    assert (
        blind_gate(texts[:10], texts[10:], permutations=39, alpha=0.05, seed=0).permutations == 39
    )
    with pytest.raises(RequestError, match=f"{FOLDS} members"):
        blind_gate(texts[:4], texts[10:], permutations=39, alpha=0.05, seed=0)


def test_holm_is_statsmodels():
    p = np.array([0.04, 0.01, 0.03, 0.9, 0.01])
    np.testing.assert_allclose(_holm(p), multipletests(p, method="holm")[1])
