"""The table of units: what curvature, activations, eigenspace and weights say of each of them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.errors import ArtifactError
from paramscope.geometry.features import MEMBERSHIP_FEATURES, percentile
from paramscope.geometry.granularity import Granularity, Group, groups


def units_table(
    model: PreTrainedModel,
    diagonal: Mapping[str, Tensor],
    standard_error: Mapping[str, Tensor],
    sparsity: pd.DataFrame,
    eigenvectors: Mapping[str, Tensor],
    membership: pd.DataFrame | None = None,
    granularity: Granularity = "row",
) -> pd.DataFrame:
    """One row a unit, of the schema `UNITS`.

    Means and sums are over a unit's own entries. Its alignment is ‖V_kᵀ ŵ‖, with ŵ its own
    weights scaled to length 1 and 0 elsewhere, and V_k the leading eigenvectors of the Hessian;
    the errors of its entries are taken as independent in `curvature_se`. A tensor's sparsity is
    the mean of its rows'; a neuron's is that of the row that its activation function reads.

    Args:
        model: the model under study.
        diagonal: diag G by parameter name.
        standard_error: of the diagonal, likewise.
        sparsity: a table with the columns unit and sparsity, of rows.
        eigenvectors: by parameter name, each [k, *shape].
        membership: a table with the columns unit, granularity, gate, loss_gap and contrast;
            without it the last three are null.
        granularity: what a unit is.

    Raises:
        ArtifactError: an input was made from another model.
        RequestError: no such granularity, or neurons of a model whose MLPs are not known.
    """
    silent = sparsity.set_index("unit")["sparsity"]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    frames = []
    for group in groups(model, granularity):
        for name, _ in group.parts:
            if name not in diagonal or name not in eigenvectors:
                raise ArtifactError(
                    f"curvature of {name} is missing: it was made from another model"
                )
        w, h = group.gather(weights), group.gather(diagonal)
        error = group.gather(standard_error)
        n = w.shape[1]
        frames.append(
            pd.DataFrame(
                {
                    "unit": group.units,
                    "tensor": group.name,
                    "layer": group.layer,
                    "kind": group.kind,
                    "row": range(len(w)),
                    "n_parameters": n,
                    "curvature_mean": h.mean(1).tolist(),
                    "curvature_sum": h.sum(1).tolist(),
                    "curvature_se": (error.square().sum(1).sqrt() / n).tolist(),
                    "sparsity": _sparsity(group, silent),
                    "alignment": _alignment(group, w, eigenvectors).tolist(),
                    "weight_rms": w.square().mean(1).sqrt().tolist(),
                    "saliency": (0.5 * h * w.square()).sum(1).tolist(),
                }
            )
        )
    units = pd.concat(frames, ignore_index=True)
    units["alignment_percentile"] = percentile(units["alignment"])
    return _with_membership(units, membership, granularity)


def _sparsity(group: Group, of_rows: pd.Series) -> np.ndarray:
    first, _ = group.parts[0]  # of a neuron: the layer that its activation function reads
    found = of_rows.reindex([f"{first}:{row}" for row in range(group.size)]).to_numpy()
    if np.isnan(found).any():
        raise ArtifactError("the sparsity of some units is missing: it was made from another model")
    return found.mean(keepdims=True) if group.whole else found


def _alignment(group: Group, weights: Tensor, eigenvectors: Mapping[str, Tensor]) -> Tensor:
    k = len(eigenvectors[group.parts[0][0]])
    projections = torch.stack(
        [
            (group.gather({name: eigenvectors[name][i] for name, _ in group.parts}) * weights).sum(
                1
            )
            for i in range(k)
        ]
    )
    length = weights.square().sum(1).sqrt()
    return torch.where(length > 0, projections.square().sum(0).sqrt() / length, 0)


def _with_membership(
    units: pd.DataFrame, membership: pd.DataFrame | None, granularity: Granularity
) -> pd.DataFrame:
    columns = list(MEMBERSHIP_FEATURES)
    if membership is None:
        return units.assign(**dict.fromkeys(columns, np.nan))
    own = membership[membership["granularity"] == granularity].set_index("unit")
    joined = own[columns].reindex(units["unit"])
    if joined.isna().any(axis=None):
        raise ArtifactError(
            f"membership features of some units ({granularity}) are missing: they were made from "
            "another model"
        )
    return units.assign(**{name: joined[name].to_numpy() for name in columns})
