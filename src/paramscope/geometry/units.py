"""The table of units: what curvature, activations, eigenspace and weights say of each row."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import ArtifactError
from paramscope.geometry.features import percentile
from paramscope.geometry.sparsity import unit_layers, unit_names
from paramscope.models.blocks import block_number
from paramscope.persample.layers import is_conv1d


def rows_of(module: nn.Module, values: Tensor) -> Tensor:
    """A weight-shaped tensor with one row a unit, [rows, inputs]."""
    return values.T if is_conv1d(module) else values


def units_table(
    model: PreTrainedModel,
    diagonal: Mapping[str, Tensor],
    standard_error: Mapping[str, Tensor],
    sparsity: pd.DataFrame,
    eigenvectors: Mapping[str, Tensor],
) -> pd.DataFrame:
    """One row a unit, of the schema `UNITS`.

    A unit is an output row of a linear layer with its bias. Its alignment is ‖V_kᵀ ŵ‖, with ŵ
    its own weights scaled to length 1 and 0 elsewhere, and V_k the leading eigenvectors of the
    Hessian; the errors of its entries are taken as independent in `curvature_se`.

    Args:
        model: the model under study.
        diagonal: diag G by parameter name.
        standard_error: of the diagonal, likewise.
        sparsity: a table with the columns unit and sparsity.
        eigenvectors: by parameter name, each [k, *shape].

    Raises:
        ArtifactError: an input was made from another model.
    """
    frames = []
    for name, module in unit_layers(model).items():
        tensor = f"{name}.weight"
        if tensor not in diagonal or tensor not in eigenvectors:
            raise ArtifactError(f"curvature of {tensor} is missing: it was made from another model")
        parts = [tensor] + ([f"{name}.bias"] if module.bias is not None else [])
        weights = _joined(module, {p: model.get_parameter(p).detach() for p in parts})
        curvature = _joined(module, {p: diagonal[p] for p in parts})
        error = _joined(module, {p: standard_error[p] for p in parts})
        n = weights.shape[1]
        frames.append(
            pd.DataFrame(
                {
                    "unit": unit_names(tensor, len(weights)),
                    "tensor": tensor,
                    "layer": block_number(name),
                    "kind": name.rpartition(".")[2],
                    "row": range(len(weights)),
                    "n_parameters": n,
                    "curvature_mean": curvature.mean(1).tolist(),
                    "curvature_sum": curvature.sum(1).tolist(),
                    "curvature_se": (error.square().sum(1).sqrt() / n).tolist(),
                    "alignment": _alignment(module, parts, weights, eigenvectors).tolist(),
                    "weight_rms": weights.square().mean(1).sqrt().tolist(),
                    "saliency": (0.5 * curvature * weights.square()).sum(1).tolist(),
                }
            )
        )
    units = pd.concat(frames, ignore_index=True)
    measured = sparsity.set_index("unit")["sparsity"].reindex(units["unit"])
    if measured.isna().any():
        raise ArtifactError("the sparsity of some units is missing: it was made from another model")
    units["sparsity"] = measured.to_numpy()
    units["alignment_percentile"] = percentile(units["alignment"])
    return units


def _joined(module: nn.Module, parts: Mapping[str, Tensor]) -> Tensor:
    """Weight rows with the bias as a last column, [rows, inputs (+ 1)], float64."""
    columns = [
        rows_of(module, value) if value.dim() == 2 else value[:, None] for value in parts.values()
    ]
    return torch.cat([column.to("cpu", torch.float64) for column in columns], 1)


def _alignment(
    module: nn.Module, parts: list[str], weights: Tensor, eigenvectors: Mapping[str, Tensor]
) -> Tensor:
    k = len(eigenvectors[parts[0]])
    projections = torch.stack(
        [
            (_joined(module, {p: eigenvectors[p][i] for p in parts}) * weights).sum(1)
            for i in range(k)
        ]
    )
    length = weights.square().sum(1).sqrt()
    return torch.where(length > 0, projections.square().sum(0).sqrt() / length, 0)
