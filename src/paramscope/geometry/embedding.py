"""A picture of the units: standardised features, UMAP to a plane, and clusters found there.

Sources: McInnes, Healy and Melville 2018 (arXiv:1802.03426) for UMAP; Ester et al. 1996 for
DBSCAN; Campello, Moulavi and Sander 2013 (doi:10.1007/978-3-642-37456-2_14) for HDBSCAN.
"""

import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.cluster import DBSCAN, HDBSCAN

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.geometry.features import FEATURES, standardise
from paramscope.geometry.fidelity import (
    JUDGED,
    NOISE,
    neighbourhood_preservation,
    neighbours,
    silhouette,
    trustworthiness,
)

EMBEDDING = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("umap_x", pa.float64(), nullable=False),
        pa.field("umap_y", pa.float64(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
    ]
)
CLUSTERINGS = ("dbscan", "hdbscan")


@dataclass(frozen=True)
class Layout:
    """How the picture is made.

    `eps` is DBSCAN's alone; for HDBSCAN `min_samples` is the smallest cluster.

    Raises:
        RequestError: a value outside its range.
    """

    n_neighbors: int = 15
    min_dist: float = 0.1
    clustering: str = "dbscan"
    eps: float = 0.5
    min_samples: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            f"n_neighbors {self.n_neighbors}: take 2 or more": self.n_neighbors < 2,
            f"min_dist {self.min_dist}: take 0 to 1": not 0 <= self.min_dist <= 1,
            f"eps {self.eps}: take more than 0": not self.eps > 0,
            f"min_samples {self.min_samples}: take 2 or more": self.min_samples < 2,
            f"clustering {self.clustering}: take {' or '.join(CLUSTERINGS)}": (
                self.clustering not in CLUSTERINGS
            ),
        }
        for message, holds in wrong.items():
            if holds:
                raise RequestError(message)


@dataclass(frozen=True)
class Quality:
    """How far the picture can be believed; None where there are fewer than two clusters.

    `silhouette` is taken in the plane, `silhouette_features` of the same clusters in the space
    of standardised features. `n_judged` units at most carry the silhouettes and trustworthiness.
    """

    n_units: int
    features: tuple[str, ...]
    n_clusters: int
    noise_share: float
    silhouette: float | None
    silhouette_features: float | None
    trustworthiness: float
    neighbourhood_preservation: float
    n_judged: int
    method: str
    parameters: dict[str, Any]
    notes: tuple[str, ...]


def embed(
    units: pd.DataFrame, layout: Layout | None = None, features: Sequence[str] = FEATURES
) -> tuple[pd.DataFrame, Quality]:
    """Lay the units out on a plane and cluster them there.

    Returns a table of the schema `EMBEDDING` in the order of `units`, and the picture's quality.
    Clusters are numbered from the largest; -1 is noise. The same units, layout and versions give
    the same bytes.

    Raises:
        RequestError: no more than 2·n_neighbors units, or features that can't be standardised.
    """
    layout = layout or Layout()
    k = layout.n_neighbors
    if len(units) <= 2 * k:
        raise RequestError(
            f"{len(units)} units can't be embedded with n_neighbors {k}, which needs more than "
            f"{2 * k}; lower n_neighbors"
        )
    standard = standardise(units, features)
    plane = umap_plane(standard.values, layout)
    clusters = cluster(plane, layout)
    frame = pd.DataFrame(
        {
            "unit": units["unit"].to_numpy(),
            "umap_x": plane[:, 0],
            "umap_y": plane[:, 1],
            "cluster": clusters.astype(np.int32),
        }
    )
    quality = Quality(
        n_units=len(units),
        features=standard.features,
        n_clusters=int(clusters.max()) + 1,
        noise_share=float((clusters == NOISE).mean()),
        silhouette=silhouette(plane, clusters),
        silhouette_features=silhouette(standard.values, clusters),
        trustworthiness=trustworthiness(standard.values, plane, k),
        neighbourhood_preservation=neighbourhood_preservation(standard.values, plane, k),
        n_judged=min(len(units), JUDGED),
        method=f"umap + {layout.clustering}",
        parameters=asdict(layout),
        notes=standard.notes,
    )
    return frame, quality


def umap_plane(values: np.ndarray, layout: Layout) -> np.ndarray:
    """UMAP coordinates [n, 2] in float64 of standardised features [n, d], the same for a seed.

    The nearest neighbours are exact: UMAP's own approximate search differs from n = 4,096 on,
    and compiling it takes longer than finding them.
    """
    _compile_umap()
    from umap import UMAP

    distances, indices = neighbours(values, layout.n_neighbors - 1)
    itself = np.arange(len(values))[:, None]  # UMAP counts a point as its own first neighbour
    model = UMAP(
        n_neighbors=layout.n_neighbors,
        min_dist=layout.min_dist,
        random_state=seed_of(layout.seed, "embedding") % 2**32,
        n_jobs=1,
        precomputed_knn=(
            np.concatenate([itself, indices], axis=1),
            np.concatenate([np.zeros(itself.shape), distances], axis=1).astype(np.float32),
        ),
        tqdm_kwds={"desc": "umap", "disable": False, "leave": False},
    )
    with warnings.catch_warnings():  # new points are never placed, so no search index is needed
        warnings.filterwarnings("ignore", message="precomputed_knn", category=UserWarning)
        plane = model.fit_transform(values.astype(np.float32))
    return np.asarray(plane, dtype=np.float64)


def cluster(plane: np.ndarray, layout: Layout) -> np.ndarray:
    """Cluster of each point [n, 2], numbered from the largest; -1 is noise."""
    if layout.clustering == "dbscan":
        method = DBSCAN(eps=layout.eps, min_samples=layout.min_samples)
    else:
        method = HDBSCAN(min_cluster_size=layout.min_samples, copy=True)
    found = method.fit_predict(plane)
    names, sizes = np.unique(found[found != NOISE], return_counts=True)
    rank = {name: place for place, name in enumerate(names[np.argsort(-sizes, kind="stable")])}
    return np.array([rank.get(name, NOISE) for name in found])


def _compile_umap() -> None:
    """Have umap's numba code compiled once an installation, in a process of its own.

    The compiler leaves 100 MB resident that loading compiled code doesn't need.
    """
    found = find_spec("pynndescent")
    if found is None or found.origin is None:
        raise RequestError("pynndescent is not installed; install umap-learn")
    if not any((Path(found.origin).parent / "__pycache__").glob("*.nbi")):
        print("compiling umap, once an installation", file=sys.stderr)
        subprocess.run([sys.executable, "-W", "ignore", "-c", "import umap"], check=True)
