"""How far a picture of points can be believed: what a projection keeps and what it invents.

Every measure takes points [n, d] and holds no n × n matrix. Past `JUDGED` points it is the
mean over a random sample of them, drawn by a fixed seed.
"""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn import config_context
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

JUDGED = 5000
ROWS = 256  # rows of the distance matrix at a time: 10 MB each for 5,000 points
WORKING_MB = 32
NOISE = -1


def neighbours(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other points of each point, nearest first: distances and indices, [n, k]."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    return distances, indices


def trustworthiness(features: np.ndarray, plane: np.ndarray, k: int, judged: int = JUDGED) -> float:
    """How few of the plane's k nearest neighbours are far off in feature space, in [0, 1].

    1 − 2/(nk(2n − 3k − 1)) Σ_i Σ_{j near i in the plane} max(0, rank(i, j) − k), where rank is
    j's place among i's neighbours in feature space; equally far points share the best place.
    Needs n > 2k. Source: Venna and Kaski 2001, "Neighborhood preservation in nonlinear
    projection methods".
    """
    n = len(features)
    _, near = neighbours(plane, k)
    sample = _sample(n, judged)
    penalty = 0
    for start in tqdm(range(0, len(sample), ROWS), desc="trustworthiness", leave=False):
        rows = sample[start : start + ROWS]
        distances = cdist(features[rows], features)
        distances[np.arange(len(rows)), rows] = np.inf  # a point is not its own neighbour
        for column in near[rows].T:
            reach = distances[np.arange(len(rows)), column]
            nearer = (distances < reach[:, None]).sum(axis=1)
            penalty += int(np.maximum(0, nearer + 1 - k).sum())
    return 1 - 2 * penalty / (len(sample) * k * (2 * n - 3 * k - 1))


def neighbourhood_preservation(features: np.ndarray, plane: np.ndarray, k: int) -> float:
    """Share of the k nearest neighbours in feature space that are among the plane's, in [0, 1].

    A random layout gives about k/(n − 1).
    """
    _, before = neighbours(features, k)
    _, after = neighbours(plane, k)
    kept = sum(len(np.intersect1d(b, a)) for b, a in zip(before, after, strict=True))
    return kept / before.size


def silhouette(points: np.ndarray, clusters: np.ndarray, judged: int = JUDGED) -> float | None:
    """Mean silhouette of the clusters, in [−1, 1], noise left out; None for fewer than two.

    Source: Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7.
    """
    inside = np.flatnonzero(clusters != NOISE)
    inside = inside[_sample(len(inside), judged)]
    labels = clusters[inside]
    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    with config_context(working_memory=WORKING_MB):
        return float(silhouette_score(points[inside], labels))


def _sample(n: int, size: int) -> np.ndarray:
    """At most `size` of n indices, in order, the same for the same n."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(n).choice(n, size, replace=False))
