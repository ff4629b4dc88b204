"""Rules that give every unit a class: W_func, W_sens, or W_both.

A rule on a score takes a quarter of the units at each end of it (`quarters`).
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.geometry.features import MEMBERSHIP_FEATURES, percentile
from paramscope.geometry.quarters import ends_by_size, like_sizes, quarters
from paramscope.names import BOTH, CONTROLS, FUNC, LABELS, SENS

OF_END = {1: SENS, 0: BOTH, -1: FUNC}
PARTITION = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("draw", pa.int16(), nullable=False),
    ]
)
DRAWS = 20
FEWEST_DRAWS = 5


def label_units(
    units: pd.DataFrame,
    rule: str,
    *,
    like: pd.DataFrame | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Label the units by one of `RULES`; a table of the schema `PARTITION` in their order.

    A control takes the partition `like` (one draw, the same units) and stacks `draws` of its
    own; the other rules ignore `draws` and `seed`.

    Raises:
        RequestError: no such rule, a feature that it needs is missing or not finite, or a
            partition that the control can't be drawn like.
    """
    if rule not in RULES:
        raise RequestError(f"no partition rule {rule}; take one of {', '.join(RULES)}")
    if rule not in CONTROLS:
        if like is not None:
            raise RequestError(
                f"rule {rule} is drawn like no other; only controls take a reference"
            )
        return _partition(units, RULES[rule](units))
    if like is None:
        raise RequestError(f"rule {rule} needs a partition to be drawn like; name one by --like")
    if not FEWEST_DRAWS <= draws <= np.iinfo(np.int16).max:
        raise RequestError(f"rule {rule} with {draws} draws: take {FEWEST_DRAWS} or more")
    reference = _reference(units, rule, like)
    drawn = [_partition(units, RULES[rule](units, reference, d, seed), d) for d in range(draws)]
    return pd.concat(drawn, ignore_index=True)


def origin(units: pd.DataFrame) -> pd.Series:
    """Label by fixed thresholds on alignment and sparsity.

    Alignment ≥ .7 and sparsity < .5 is W_func; alignment ≤ .3 and sparsity ≥ .9 is W_sens; the
    rest, nearly everything in a real model, is W_both. Source: the classes' first definition,
    kept to compare with.
    """
    return _by_thresholds(
        _feature(units, "origin", "alignment"), _feature(units, "origin", "sparsity")
    )


def origin_quantile(units: pd.DataFrame) -> pd.Series:
    """Label by the thresholds of `origin`, on percentiles within the model of both features.

    Ties share their average percentile, so units of one value get one label. Source: as
    `origin`.
    """
    alignment = _feature(units, "origin_quantile", "alignment")
    sparsity = _feature(units, "origin_quantile", "sparsity")
    return _by_thresholds(percentile(alignment), percentile(sparsity))


def curvature(units: pd.DataFrame) -> pd.Series:
    """Label by quarters: the lowest by curvature_mean W_sens, the highest W_func.

    Source: Merullo et al. 2025 (arXiv:2510.24256), who find memorised text in the directions
    of low curvature; here by units in place of eigen-directions.
    """
    return quarters(units, -_feature(units, "curvature", "curvature_mean")).map(OF_END)


def contrast(units: pd.DataFrame) -> pd.Series:
    """Label whole tensors: the highest by Hessian contrast W_sens, the lowest W_func.

    Tensors are taken until each end has a quarter of the units' parameters; for neurons, those
    of a block are together. Source: this project's; cf. Ravikumar et al. 2024
    (arXiv:2402.18726), who tie memorisation to curvature, there over inputs.
    """
    scores = _feature(units, "contrast", "contrast")
    return ends_by_size(units["tensor"], scores, units["n_parameters"]).map(OF_END)


def gate(units: pd.DataFrame) -> pd.Series:
    """Label by quarters: the highest signed gate gradient W_sens, the lowest W_func.

    Shrinking a unit of high gate closes the loss gap; shrinking one of negative gate opens it.
    Source: gates as in Michel et al. 2019 (arXiv:1905.10650), here with their sign and of the
    loss gap.
    """
    return quarters(units, _feature(units, "gate", "gate")).map(OF_END)


def loss_gap(units: pd.DataFrame) -> pd.Series:
    """Label by quarters: the greatest gradient norm of the loss gap W_sens, the least W_func.

    Source: Hu, Zhang and Wei 2024 (arXiv:2410.06814), privacy-aware sparsity tuning.
    """
    return quarters(units, _feature(units, "loss_gap", "loss_gap")).map(OF_END)


def random(units: pd.DataFrame, reference: pd.Series, draw: int, seed: int) -> pd.Series:
    """Permute a reference's labels within each tensor: the control, same sizes, no features.

    Where the reference gives every tensor one label, that would change nothing, and whole tensors
    are permuted (`random_tensor`). A draw hangs on the seed, its number, the names of what is
    permuted and the reference's labels, and on nothing else. Source: a permutation null, Good
    2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses".
    """
    if _by_tensor(units, reference):
        return random_tensor(units, reference, draw, seed)
    labels = pd.Series(index=units.index, dtype=reference.dtype)
    for tensor, rows in units.groupby("tensor"):
        ordered = rows.sort_values("row").index
        rng = np.random.default_rng(seed_of(seed, "random", draw, tensor))
        labels[ordered] = rng.permutation(reference[ordered].to_numpy())
    return labels


def random_tensor(units: pd.DataFrame, reference: pd.Series, draw: int, seed: int) -> pd.Series:
    """Permute whole tensors' labels among tensors alike in size: the control of `contrast`.

    Source: as `random`.

    Raises:
        RequestError: the reference labels units of one tensor differently.
    """
    if not _by_tensor(units, reference):
        raise RequestError(
            "rule random_tensor deals out whole tensors, but the reference splits them; "
            "draw it like contrast, or take rule random"
        )
    labels = reference.groupby(units["tensor"]).first()
    sizes = units.groupby("tensor")["n_parameters"].sum()
    for alike in like_sizes(sizes):
        rng = np.random.default_rng(seed_of(seed, "random", draw, *alike))
        labels[alike] = rng.permutation(labels[alike].to_numpy())
    return units["tensor"].map(labels)


Rule = Callable[..., pd.Series]
RULES: Mapping[str, Rule] = {
    "origin": origin,
    "origin_quantile": origin_quantile,
    "curvature": curvature,
    "contrast": contrast,
    "gate": gate,
    "loss_gap": loss_gap,
    "random": random,
    "random_tensor": random_tensor,
}


def counts(partition: pd.DataFrame) -> dict[str, int]:
    """Units of each label in the first draw; others differ only where tensors alike in size do."""
    first = partition.loc[partition["draw"] == partition["draw"].min(), "label"]
    return {label: int((first == label).sum()) for label in LABELS}


def _by_thresholds(alignment: pd.Series, sparsity: pd.Series) -> pd.Series:
    labels = pd.Series(BOTH, index=alignment.index)
    labels[(alignment >= 0.7) & (sparsity < 0.5)] = FUNC
    labels[(alignment <= 0.3) & (sparsity >= 0.9)] = SENS
    return labels


def _feature(units: pd.DataFrame, rule: str, name: str) -> pd.Series:
    optional = name in MEMBERSHIP_FEATURES
    if name not in units.columns or (optional and units[name].isna().all()):
        stage = "membership-features, given to units by --membership," if optional else "units"
        raise RequestError(
            f"rule {rule} needs the column {name}, which the units lack; the stage {stage} makes it"
        )
    if not np.isfinite(units[name]).all():
        raise RequestError(f"rule {rule}: column {name} has values that are not finite")
    return units[name]


def _by_tensor(units: pd.DataFrame, labels: pd.Series) -> bool:
    return bool(labels.groupby(units["tensor"]).nunique().max() == 1)


def _reference(units: pd.DataFrame, rule: str, like: pd.DataFrame) -> pd.Series:
    """The labels of `like` in the order of `units`."""
    if like["unit"].duplicated().any():
        raise RequestError(f"rule {rule}: the reference has several draws; name one that has one")
    if set(like["unit"]) != set(units["unit"]):
        raise RequestError(f"rule {rule}: the reference labels other units; make it from these")
    labels = like.set_index("unit")["label"].reindex(units["unit"])
    return pd.Series(labels.to_numpy(), index=units.index)


def _partition(units: pd.DataFrame, labels: pd.Series, draw: int = 0) -> pd.DataFrame:
    partition = pd.DataFrame({"unit": units["unit"].to_numpy(), "label": labels.to_numpy()})
    return partition.assign(draw=np.int16(draw))
