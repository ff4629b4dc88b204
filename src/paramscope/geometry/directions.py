"""Classes of directions within a weight matrix, by the rank of their curvature.

A layer's weight is U_S C U_Aᵀ in the eigenbasis of its Kronecker-factored curvature, and each
coefficient of C is a unit. The rule `kfac` takes as W_sens the coefficients of lowest
curvature and as W_func those of highest, by one of two measures:

- count: `share` of the matrix's coefficients at each end, a quarter unless said otherwise, as
  the rule `curvature` does with rows; the rest is W_both.
- mass: W_func is the fewest coefficients, from the highest curvature down, that hold `share`
  of the matrix's summed curvature, and W_sens is all the rest. This is Merullo et al.'s own
  split: they zero the second part. Curvature falls so steeply that a small W_func holds most
  of it, and W_sens is most of the matrix.

Count is the default: classes of one size make a response a matter of which directions are in
a class, not of how many. What Merullo et al. report is the removal by mass.

Source: Merullo et al. 2025 (arXiv:2510.24256), section 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paramscope.artifacts.digest import seed_of
from paramscope.curvature.kfac import Directions
from paramscope.errors import ArtifactError, RequestError
from paramscope.names import BOTH, FUNC, SENS

MOST = {"count": 0.5, "mass": 1.0}  # what a share can be, by measure
CODES: Mapping[str, int] = {FUNC: 0, SENS: 1, BOTH: 2}  # in files, so they stay


@dataclass(frozen=True)
class Labelled:
    """A layer's directions with their classes.

    Attributes:
        directions: of the layer.
        labels: the class of each coefficient by its number in `CODES`, int8 [p, d].
    """

    directions: Directions
    labels: Tensor


def label_directions(
    directions: Mapping[str, Directions], *, by: str = "count", share: float = 0.25, seed: int = 0
) -> dict[str, Labelled]:
    """Label the coefficients of each layer's weight, by layer.

    Ties (eigenvalues that are 0 make many) are ordered by a permutation of `seed` and the
    layer's name.

    Raises:
        RequestError: a share out of range (count: 0 to .5; mass: 0 to 1), or curvature that
            is negative, not finite or, by mass, 0 all over.
    """
    if by not in MOST:
        raise RequestError(f"no classes of directions by {by}; take count or mass")
    if not 0 < share <= MOST[by]:
        raise RequestError(f"share {share:g} by {by}: take one above 0, up to {MOST[by]:g}")
    return {name: Labelled(x, _labels(name, x, by, share, seed)) for name, x in directions.items()}


def random_labels(layer: str, labels: Tensor, draw: int, seed: int) -> Tensor:
    """`labels` permuted over the matrix: the control, same sizes, no curvature.

    A draw hangs on the seed, its number and the layer's name alone.
    """
    order = _permutation(labels.numel(), seed, "random directions", draw, layer)
    return labels.flatten()[order].reshape(labels.shape)


def class_shares(labelled: Mapping[str, Labelled]) -> pd.DataFrame:
    """Each class of each layer: columns layer, class, n (coefficients), mass.

    Mass is the class's share of the layer's summed curvature.
    """
    rows = [
        {
            "layer": layer,
            "class": label,
            "n": int((x.labels == code).sum()),
            "mass": float(
                x.directions.curvature[x.labels == code].sum() / x.directions.curvature.sum()
            ),
        }
        for layer, x in labelled.items()
        for label, code in CODES.items()
    ]
    return pd.DataFrame(rows)


def to_content(directions: Mapping[str, Directions]) -> dict[str, Tensor]:
    """Directions as the flat content of a Torch file, in float32: `U_A/LAYER` and so on."""
    fields = ("U_A", "U_S", "curvature")
    return {
        f"{field}/{name}": getattr(x, field).float()
        for name, x in directions.items()
        for field in fields
    }


def labelled_to_content(labelled: Mapping[str, Labelled]) -> dict[str, Tensor]:
    """The same with `labels/LAYER`, int8."""
    labels = {f"labels/{name}": x.labels for name, x in labelled.items()}
    return to_content({name: x.directions for name, x in labelled.items()}) | labels


def from_content(content: Mapping[str, Any]) -> dict[str, Directions]:
    """The directions in a Torch file's content; empty where it has none."""
    names = [key.removeprefix("U_A/") for key in content if key.startswith("U_A/")]
    return {
        name: Directions(*(content[f"{field}/{name}"] for field in ("U_A", "U_S", "curvature")))
        for name in names
    }


def labelled_from_content(content: Mapping[str, Any]) -> dict[str, Labelled]:
    """The labelled directions in a Torch file's content.

    Raises:
        ArtifactError: it has none.
    """
    directions = from_content(content)
    if not directions or any(f"labels/{name}" not in content for name in directions):
        raise ArtifactError("not a file of labelled directions; make one by paramscope directions")
    return {name: Labelled(x, content[f"labels/{name}"]) for name, x in directions.items()}


def _labels(name: str, directions: Directions, by: str, share: float, seed: int) -> Tensor:
    curvature = directions.curvature.flatten().double()
    if not (torch.isfinite(curvature).all() and (curvature >= 0).all()):
        raise RequestError(f"{name}: curvature is negative or not finite; make the factors again")
    order = _permutation(len(curvature), seed, "tie", name).to(curvature.device)
    order = order[curvature[order].argsort(stable=True)]  # lowest curvature first
    if by == "count":
        low = high = int(share * len(curvature))
    else:
        high = _reaching(curvature[order].flip(0), share, name)
        low = len(curvature) - high
    labels = torch.full_like(order, CODES[BOTH], dtype=torch.int8)
    labels[order[:low]] = CODES[SENS]
    labels[order[len(order) - high :]] = CODES[FUNC]
    return labels.reshape(directions.curvature.shape)


def _reaching(falling: Tensor, share: float, name: str) -> int:
    """How many of the first values it takes to hold `share` of their sum."""
    total = falling.cumsum(0)
    if not total[-1] > 0:
        raise RequestError(f"{name} has no curvature at all, so no classes by mass; take count")
    return min(int((total < share * total[-1]).sum()) + 1, len(total))


def _permutation(n: int, *identity: object) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*identity)))
