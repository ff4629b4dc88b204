"""The two ends of a score: a quarter of the units each.

An end is 1 for a unit among the highest scores, −1 among the lowest, 0 between. Ties are ordered
by a hash of the name, which favours no row.
"""

import pandas as pd

from paramscope.artifacts.digest import seed_of

LIKE_SIZES = 1.05  # tensors are of one size when the greater has this many times the parameters


def quarters(units: pd.DataFrame, scores: pd.Series) -> pd.Series:
    """The end of each unit among its tensor's: ⌊units/4⌋ at each.

    For neurons, those of a block stand together. Units that are tensors stand together with
    all others of the model; since they differ in size, a quarter of their parameters is taken
    at each end, as by `ends_by_size`.
    """
    if (units["unit"] == units["tensor"]).all():
        return ends_by_size(units["tensor"], scores, units["n_parameters"])
    ordered = _ordered(units["unit"], scores).assign(tensor=units["tensor"])
    place = ordered.groupby("tensor").cumcount()
    rows = ordered.groupby("tensor")["score"].transform("size")
    ends = pd.Series(0, index=ordered.index)
    ends[place < rows // 4] = 1
    ends[place >= rows - rows // 4] = -1
    return ends.reindex(units.index)


def ends_by_size(tensors: pd.Series, scores: pd.Series, n_parameters: pd.Series) -> pd.Series:
    """The end of each unit's tensor: whole tensors, a quarter of the parameters at each.

    From each end tensors are taken until a quarter is reached, so an end has a quarter or more.
    A tensor that both ends would take is at neither. A tensor's score is its units' mean.
    """
    score = scores.groupby(tensors).mean()
    ordered = _ordered(score.index.to_series(), score)
    sizes = n_parameters.groupby(tensors).sum()[ordered.index]
    before = sizes.cumsum() - sizes, sizes[::-1].cumsum()[::-1] - sizes  # from either end
    high, low = (taken < sizes.sum() / 4 for taken in before)
    return tensors.map(high.astype(int) - low.astype(int))


def like_sizes(sizes: pd.Series) -> list[list[str]]:
    """Names of tensors in groups of one size: from the smallest of a group on, `LIKE_SIZES`."""
    found: list[list[str]] = []
    smallest = 0.0
    named = zip(sizes.index.astype(str), sizes, strict=True)
    for name, size in sorted(named, key=lambda item: (item[1], item[0])):
        if not found or size > LIKE_SIZES * smallest:
            found.append([])
            smallest = size
        found[-1].append(name)
    return [sorted(names) for names in found]


def _ordered(names: pd.Series, scores: pd.Series) -> pd.DataFrame:
    """Scores from the highest, equal ones by a hash of their names."""
    ties = [seed_of("tie", name) for name in names]
    return pd.DataFrame({"score": scores, "tie": ties}, index=names.index).sort_values(
        ["score", "tie"], ascending=[False, True]
    )
