"""Oracles: scikit-learn's trustworthiness, brute force, planted clusters, equal bytes."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness as trustworthiness_of_sklearn
from sklearn.metrics import adjusted_rand_score, silhouette_score

from paramscope.errors import RequestError
from paramscope.geometry.embedding import EMBEDDING, Layout, cluster, embed
from paramscope.geometry.features import FEATURES, FLOOR, standardise
from paramscope.geometry.fidelity import (
    neighbourhood_preservation,
    neighbours,
    silhouette,
    trustworthiness,
)
from paramscope.geometry.planted import plant


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 4))
    plane = features[:, :2] + 0.5 * rng.normal(size=(600, 2))
    return features, plane


def test_standardised_features_are_logs_with_mean_0_and_deviation_1():
    units = plant(300)
    found = standardise(units)
    assert found.features == FEATURES
    assert found.notes == ()
    logs = np.log10(units["saliency"].to_numpy())
    np.testing.assert_allclose(
        found.values[:, FEATURES.index("saliency")], (logs - logs.mean()) / logs.std(), atol=1e-12
    )
    np.testing.assert_allclose(found.values.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.values.std(axis=0), 1, rtol=1e-12)
    # the unit of measure of curvature says nothing
    scaled = units.assign(curvature_mean=units["curvature_mean"] * 1e9)
    np.testing.assert_allclose(standardise(scaled).values, found.values, atol=1e-12)


def test_zeros_are_raised_to_the_floor_and_constants_left_out_and_both_noted():
    units = plant(300)
    units.loc[:9, "curvature_mean"] = 0.0
    units["sparsity"] = 0.25
    found = standardise(units)
    assert found.features == tuple(name for name in FEATURES if name != "sparsity")
    floored, left_out = found.notes
    floor = FLOOR * units["curvature_mean"][10:].median()
    assert floored == f"curvature_mean: 10 of 300 values were raised to {floor:.3g}"
    assert left_out == "sparsity is constant and was left out"
    logs = np.log10(units["curvature_mean"].clip(lower=floor))
    np.testing.assert_allclose(found.values[:, 0], (logs - logs.mean()) / logs.std(ddof=0))


def test_negative_curvature_of_a_noisy_estimate_is_raised_to_the_floor():
    units = plant(300)
    units.loc[:9, "curvature_mean"] *= -1
    found = standardise(units)
    assert found.notes[0].startswith("curvature_mean: 10 of 300 values were raised to ")
    lowest = found.values[:, found.features.index("curvature_mean")]
    assert (lowest[:10] == lowest.min()).all()
    assert np.ptp(lowest[:10]) == 0


def test_features_that_cannot_be_standardised_are_named():
    units = plant(300)
    with pytest.raises(RequestError, match="lack the feature height"):
        standardise(units, ["height"])
    for wrong in (np.nan, np.inf):
        broken = units.copy()
        broken.loc[3, "weight_rms"] = wrong
        with pytest.raises(RequestError, match=rf"weight_rms: 1 of 300 .*{units['unit'][3]}"):
            standardise(broken)
    with pytest.raises(RequestError, match="nothing to embed"):
        standardise(units.assign(sparsity=0.0, saliency=0.0), ["sparsity", "saliency"])


@pytest.mark.parametrize("k", [2, 15])
def test_trustworthiness_is_scikit_learns(points, k):
    expected = trustworthiness_of_sklearn(*points, n_neighbors=k)
    assert trustworthiness(*points, k) == pytest.approx(expected, rel=1e-12)  # integers, one ratio
    assert trustworthiness(points[0], points[0], k) == 1


def test_trustworthiness_of_a_sample_is_near_that_of_all(points):
    # per-point penalties have deviation about .1 here, so 300 of 600 err by about .005
    assert trustworthiness(*points, 15, judged=300) == pytest.approx(
        trustworthiness(*points, 15), abs=0.02
    )


def test_neighbourhood_preservation_is_brute_forces(points):
    features, plane = points
    k = 10
    shares = []
    for i in range(len(features)):
        near = [
            set(sorted(range(len(x)), key=lambda j, d=d: (j == i, d[j]))[:k])
            for x in points
            for d in [cdist(x[i : i + 1], x)[0]]
        ]
        shares.append(len(near[0] & near[1]) / k)
    assert neighbourhood_preservation(features, plane, k) == pytest.approx(np.mean(shares))
    assert neighbourhood_preservation(features, 3 * features, k) == 1


def test_a_point_is_not_its_own_neighbour_even_among_duplicates():
    points = np.repeat(np.arange(4.0)[:, None], 5, axis=0)
    distances, indices = neighbours(points, 4)
    assert (distances == 0).all()
    assert not (indices == np.arange(20)[:, None]).any()


def test_silhouette_leaves_noise_out_and_is_none_below_two_clusters(points):
    _, plane = points
    labels = (plane[:, 0] > 0).astype(int)
    labels[:50] = -1
    expected = silhouette_score(plane[50:], labels[50:])
    assert silhouette(plane, labels) == pytest.approx(expected)
    # 300 points' values of deviation about .3 err by .02 in the mean
    assert silhouette(plane, labels, judged=300) == pytest.approx(expected, abs=0.08)
    assert silhouette(plane, np.where(labels == 1, -1, labels)) is None
    assert silhouette(plane, np.full(600, -1)) is None


@pytest.mark.parametrize("clustering", ["dbscan", "hdbscan"])
def test_clusters_are_numbered_from_the_largest(clustering):
    rng = np.random.default_rng(0)
    sizes = (40, 120, 80)
    centres = np.repeat([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], sizes, axis=0)
    plane = np.concatenate([centres + 0.2 * rng.normal(size=(240, 2)), [[50.0, 50.0]]])
    found = cluster(plane, Layout(clustering=clustering, min_samples=10))
    assert found[-1] == -1
    for label, start, size in ((2, 0, 40), (0, 40, 120), (1, 160, 80)):
        share = (found[start : start + size] == label).mean()
        assert share > 0.9  # a straggler of a Gaussian blob may count as noise


@pytest.mark.parametrize("seed", range(3))
def test_clusters_recover_the_planted_classes(seed):
    units = plant(900, seed)
    frame, quality = embed(units, Layout(seed=seed))
    assert adjusted_rand_score(units["planted_label"], frame["cluster"]) >= 0.95
    assert quality.n_units == 900
    assert quality.features == FEATURES
    assert quality.n_clusters == frame["cluster"].max() + 1 >= 3
    assert quality.noise_share == (frame["cluster"] == -1).mean()
    assert quality.silhouette > quality.silhouette_features > 0.3
    assert quality.trustworthiness > 0.9
    # a random layout keeps 15 of 899
    assert quality.neighbourhood_preservation > 0.3


def test_the_same_units_give_the_same_bytes_and_another_seed_others():
    units = plant(300)
    first, quality = embed(units)
    second, again = embed(units)
    assert list(first.columns) == EMBEDDING.names
    assert first["unit"].tolist() == units["unit"].tolist()
    assert first["umap_x"].to_numpy().tobytes() == second["umap_x"].to_numpy().tobytes()
    assert first["umap_y"].to_numpy().tobytes() == second["umap_y"].to_numpy().tobytes()
    assert quality == again
    other, _ = embed(units, Layout(seed=1))
    assert (other["umap_x"] != first["umap_x"]).all()


def test_duplicates_are_embedded():
    units = plant(300)
    units.loc[:80, list(FEATURES)] = units.loc[0, list(FEATURES)].to_numpy()
    frame, quality = embed(units)
    assert np.isfinite(frame[["umap_x", "umap_y"]]).all(axis=None)
    assert quality.trustworthiness > 0.9


def test_too_few_units_for_the_neighbours_are_refused():
    with pytest.raises(RequestError, match=r"30 units .* n_neighbors 15, .* more than 30; lower"):
        embed(plant(300).iloc[:30])


@pytest.mark.parametrize(
    "wrong",
    [{"n_neighbors": 1}, {"min_dist": 1.5}, {"eps": 0}, {"min_samples": 1}, {"clustering": "k"}],
)
def test_a_layout_outside_its_ranges_is_refused(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Layout(**wrong)
