"""LiRA against worlds whose likelihood ratio is known, and its shadow models' halves."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
from paramscope.errors import ArtifactError, RequestError
from paramscope.evaluation.lira import (
    OWN_VARIANCE,
    SHADOW,
    Variant,
    confidence,
    lira,
    stack,
    trained_half,
)

IDS = [f"doc-{i}" for i in range(41)]


@cache
def halves(models, documents, seed=0):
    ids = [f"doc-{i}" for i in range(documents)]
    return np.stack([trained_half(ids, number, seed) for number in range(models)])


def test_halves_are_half_of_the_models_and_of_the_documents():
    trained_on = halves(12, 41)
    assert set(trained_on.sum(1)) == {20, 21}
    assert (trained_on.sum(0) == 6).all()
    assert len({row.tobytes() for row in trained_on}) == 12
    assert abs(np.corrcoef(trained_on[0], trained_on[2])[0, 1]) < 0.5  # 3 / √41
    order = np.random.default_rng(0).permutation(41)  # by the ids, whatever their order
    again = trained_half([IDS[i] for i in order], 3, seed=0)
    np.testing.assert_array_equal(again, trained_on[3][order])
    assert (trained_half(IDS, 3, seed=1) != trained_on[3]).any()


def test_confidence_is_the_logit_of_the_probability():
    p = np.array([0.001, 0.3, 0.5, 0.999])
    np.testing.assert_allclose(confidence(-np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    assert confidence(np.array([1e-9]))[0] == pytest.approx(np.log(1e9), rel=1e-6)
    assert np.isfinite(confidence(np.array([0.0, 800.0]))).all()


def make_world(models, documents=400, seed=0, own_spread=False):
    """Confidences that are Gaussian by document, and the true log likelihood ratio.

    How hard a document is varies far more than what training on it gains, so that only a score
    that knows each document's own level can tell.
    """
    generator = np.random.default_rng(seed)
    level = generator.normal(0, 2, documents)
    gain = generator.uniform(0.3, 1.2, documents)
    low = 0.1 if own_spread else 0.4
    spread_in, spread_out = (generator.uniform(low, 0.5, documents) for _ in range(2))
    if not own_spread:
        spread_in, spread_out = np.full(documents, 0.3), np.full(documents, 0.45)
    trained_on = halves(models, documents)
    noise = generator.normal(size=trained_on.shape)
    shadows = np.where(trained_on, level + gain + spread_in * noise, level + spread_out * noise)
    member = np.arange(documents) < documents // 2
    noise = generator.normal(size=documents)
    target = np.where(member, level + gain + spread_in * noise, level + spread_out * noise)
    out = norm.logpdf(target, level, spread_out)
    truth = {
        Variant.online: norm.logpdf(target, level + gain, spread_in) - out,
        Variant.offline: (target - level) / spread_out,
    }
    return target, shadows, trained_on, member, truth


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("own_spread", [False, True])
def test_many_shadow_models_find_the_true_ratio(variant, own_spread):
    """The mean of 500 draws is off by σ/√500, some 4% of σ, and so, at one σ, is the ratio."""
    target, shadows, trained_on, member, truth = make_world(1000, own_spread=own_spread)
    found = lira(target, shadows, trained_on, variant)
    near = np.abs(truth[variant]) < 3
    assert near.sum() > 100
    assert np.abs(found - truth[variant])[near].mean() < 0.12
    assert np.corrcoef(found, truth[variant])[0, 1] > 0.99
    best = roc_auc_score(member, truth[variant])
    assert roc_auc_score(member, found) == pytest.approx(best, abs=0.005)


def test_few_shadow_models_beat_the_confidence_alone():
    target, shadows, trained_on, member, truth = make_world(8)
    best = roc_auc_score(member, truth[Variant.online])
    alone = roc_auc_score(member, target)
    online, offline = (
        roc_auc_score(member, lira(target, shadows, trained_on, variant)) for variant in Variant
    )
    assert alone < 0.65
    assert alone + 0.15 < offline <= online < best + 0.01


@pytest.mark.parametrize("models", [6, 2 * OWN_VARIANCE])
def test_scores_are_the_gaussian_densities_written_out(models):
    """Variances pooled over documents with few models, a document's own with many."""
    target, shadows, trained_on, *_ = make_world(models, documents=20)
    sides = {}
    for kind in (True, False):
        mine = [shadows[trained_on[:, i] == kind, i] for i in range(20)]
        own = np.array([values.var(ddof=1) for values in mine])
        pooled = sum((len(v) - 1) * v.var(ddof=1) for v in mine) / sum(len(v) - 1 for v in mine)
        variance = own if models == 2 * OWN_VARIANCE else np.full(20, pooled)
        sides[kind] = [v.mean() for v in mine], np.sqrt(variance)
    expected = norm.logpdf(target, *sides[True]) - norm.logpdf(target, *sides[False])
    np.testing.assert_allclose(lira(target, shadows, trained_on, Variant.online), expected)
    offline = lira(target, shadows, trained_on, Variant.offline)
    np.testing.assert_allclose(norm.cdf(offline), norm.cdf(target, *sides[False]))


def test_too_few_shadow_models_are_refused():
    target, shadows, trained_on, *_ = make_world(2)
    with pytest.raises(RequestError, match="4 or more"):
        lira(target, shadows, trained_on, Variant.online)
    target, shadows, trained_on, *_ = make_world(6)
    with pytest.raises(RequestError, match="with 0 trained on it"):
        lira(target, shadows, trained_on & (np.arange(400) > 0), Variant.online)
    with pytest.raises(RequestError, match="agree to the last bit"):
        lira(target, shadows * 0, trained_on, Variant.online)


def test_tables_are_joined_by_document():
    frame = pd.DataFrame(
        {"doc_id": ["a", "b", "c"], "trained_on": [True, False, True], "confidence": [1.0, 2, 3]}
    )
    confidences, trained_on = stack([frame, frame[::-1]], ["c", "a"])
    assert confidences.tolist() == [[3, 1], [3, 1]]
    assert trained_on.all()
    with pytest.raises(ArtifactError, match="shadow table 1 lacks 1 of"):
        stack([frame, frame[:2]], ["a", "c"])
    with pytest.raises(ArtifactError, match="twice"):
        stack([pd.concat([frame, frame])], ["a"])


def test_the_stages_train_shadow_models_and_merge_them(tmp_path):
    """Shadow models fit their own halves, again to the last bit, and the score is from them."""
    from paramscope.cli.membership import membership
    from paramscope.cli.shadow import shadow
    from paramscope.corpus.splits import DOCUMENTS
    from paramscope.evaluation.scores import LIRA
    from paramscope.models.load import Architecture, new_opt
    from paramscope.models.tokenizer import train_tokenizer

    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]
    texts = [" ".join(generator.choice(words, 8)) for _ in range(48)]
    base = tmp_path / "base"
    new_opt(Architecture(64, 1, 2, 128, 64), 280, 0).save_pretrained(base)
    train_tokenizer(texts, 280).save(str(base / "tokenizer.json"))
    by = provenance("models.losses", {})
    paths = []
    for name, part in (("member", texts[:24]), ("nonmember", texts[24:])):
        frame = pd.DataFrame({"doc_id": [f"{name}-{i}" for i in range(24)], "text": part})
        paths.append(tmp_path / f"{name}.parquet")
        write_table(paths[-1], frame, DOCUMENTS, by)
    options = {"device": "cpu", "threads": 1, "learning_rate": 2e-2, "max_epochs": 25, "batch": 12}
    outputs = [tmp_path / f"{i}.parquet" for i in range(4)]
    for i, output in enumerate(outputs):
        shadow(base, *paths, output, number=i, count=4, target_auc=0.9, **options)
    tables = [read_table(path) for path in outputs]
    assert list(tables[0]) == SHADOW.names
    for table in tables:
        assert table["trained_on"].sum() == 24
        np.testing.assert_allclose(table["confidence"], confidence(table["loss"].to_numpy()))
        assert roc_auc_score(table["trained_on"], table["confidence"]) > 0.7  # .8 and more seen
    assert (tables[0]["trained_on"] != tables[1]["trained_on"]).all()
    assert read_table_provenance(outputs[1])["parameters"]["number"] == 1
    again = tmp_path / "again.parquet"
    shadow(base, *paths, again, number=1, count=4, target_auc=0.9, **options)
    pd.testing.assert_frame_equal(read_table(again), tables[1])

    target = tmp_path / "target"
    new_opt(Architecture(64, 1, 2, 128, 64), 280, 1).save_pretrained(target)
    (target / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    for variant in Variant:
        out, record = tmp_path / "scores.parquet", tmp_path / "summary.json"
        membership(
            target,
            base,
            *paths,
            out,
            record,
            shadow=outputs,
            lira_variant=variant,
            bootstrap=50,
            device="cpu",
            threads=1,
            probe=0,
        )
        scores = read_table(out)
        own = confidence(-scores["loss"].to_numpy())
        expected = lira(own, *stack(tables, scores["doc_id"].tolist()), variant)
        np.testing.assert_array_equal(scores[LIRA], expected)
        summary = read_record(record)
        assert (summary["shadows"], summary["lira_variant"]) == (4, variant)
        auc = roc_auc_score(scores["member"], expected)
        assert summary["scores"][LIRA]["auc"] == pytest.approx(auc)
    with pytest.raises(RequestError, match="numbers go from 0 to 3"):
        shadow(base, *paths, again, number=4, count=4)
