"""What probe members and non-members say of each unit: gate, loss gap, and Hessian contrast.

With L_mem and L_non the mean loss a predicted token over the probe members and non-members,
the gap L_non − L_mem is what a loss attack lives on. A unit's gate is γ = Σ_j w_j ∂(gap)/∂w_j:
shrinking the unit's parameters by 1 − ε changes the gap by −εγ to first order, so a unit of
high gate upholds the gap. Its loss-gap gradient is ‖∂(gap)/∂w‖₂ over the unit, which has no sign
and doesn't weigh entries by their size. The contrast of a tensor is (H_m − H_n)/H_n, with H_m and
H_n the traces of the loss's Hessian over it (weight and bias) for members and non-members.

Sources: Hu, Zhang and Wei 2024 (arXiv:2410.06814) for the loss-gap gradient; Michel et al. 2019
(arXiv:1905.10650) for gates, whose derivative at 1 a γ is; Hutchinson 1990
(doi:10.1080/03610919008812866) for traces.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.curvature.hutchinson import hutchinson_draws
from paramscope.errors import RequestError
from paramscope.geometry.granularity import Group, groups, row_axis
from paramscope.geometry.sparsity import unit_layers
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import Sequences
from paramscope.persample import linear
from paramscope.persample.answers import unit_gates, weighted_sums
from paramscope.persample.capture import capture
from paramscope.persample.precision import accumulator

MEMBERSHIP = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("granularity", pa.string(), nullable=False),
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("gate", pa.float64(), nullable=False),
        pa.field("gate_se", pa.float64()),
        pa.field("loss_gap", pa.float64(), nullable=False),
        pa.field("contrast", pa.float64(), nullable=False),
        pa.field("contrast_se", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Gap:
    """The loss gap's gradient, and the gates that follow from it.

    Attributes:
        gradient: ∂(L_non − L_mem) by parameter, for every parameter of a unit.
        gate: by group, [units], float64.
        gate_se: their standard errors from the spread over documents, likewise.
    """

    gradient: dict[str, Tensor]
    gate: dict[Group, Tensor]
    gate_se: dict[Group, Tensor]


@dataclass(frozen=True)
class Contrast:
    """(H_m − H_n)/|H_n| of a tensor, and its standard error from the draws, if there are two."""

    value: float
    error: float | None


def membership_table(
    model: PreTrainedModel,
    members: Sequences,
    nonmembers: Sequences,
    *,
    draws: int,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """A row a unit of every granularity, of the schema `MEMBERSHIP`.

    Neurons are left out of a model whose MLPs are not known. A contrast is its tensor's; a
    neuron's is that of all the neurons of its block.

    Raises:
        RequestError: fewer than two documents of either kind, or a tensor without curvature.
    """
    if min(len(members), len(nonmembers)) < 2:
        raise RequestError("a loss gap needs 2 probe members and 2 probe non-members or more")
    known = known_groups(model)
    gap = loss_gap(model, members, nonmembers, known, batch_size)
    traces = [
        hessian_traces(model, text, known, range(draws), seed) for text in (members, nonmembers)
    ]
    contrasts = {group: contrast(*(trace[group] for trace in traces)) for group in known}
    frames = [
        pd.DataFrame(
            {
                "unit": group.units,
                "granularity": group.granularity,
                "tensor": group.name,
                "gate": gap.gate[group].numpy(),
                "gate_se": gap.gate_se[group].numpy(),
                "loss_gap": group.gather(gap.gradient).square().sum(1).sqrt().numpy(),
                "contrast": contrasts[group].value,
                "contrast_se": contrasts[group].error,
            }
        )
        for group in known
    ]
    return pd.concat(frames, ignore_index=True)


def known_groups(model: PreTrainedModel) -> list[Group]:
    """Rows, tensors and, where the MLPs are known, neurons."""
    found = groups(model, "row") + groups(model, "tensor")
    try:
        return found + groups(model, "neuron")
    except RequestError:
        return found


def loss_gap(
    model: PreTrainedModel,
    members: Sequences,
    nonmembers: Sequences,
    known: Iterable[Group],
    batch_size: int,
) -> Gap:
    """The gradient of L_non − L_mem, and every unit's gate: one backward a microbatch.

    A gate is a difference of two ratios, Σ_s g_s/Σ_s n_s over the documents s of each set with
    n_s tokens to predict; its standard error is of their linear approximation in the documents
    (Cochran 1977, "Sampling Techniques", ch. 6).
    """
    known = list(known)
    layers = {f"{name}.weight": module for name, module in unit_layers(model).items()}
    columns = {  # weights whose units are columns
        name
        for group in known
        for name, axis in group.parts
        if name in layers and axis != row_axis(layers[name])
    }
    gradient = {
        f"{name.removesuffix('weight')}{suffix}": accumulator(p, *p.shape)
        for name, module in layers.items()
        for suffix, p in module.named_parameters(recurse=False)
    }
    gate = {group: torch.zeros(len(group.units), dtype=torch.float64) for group in known}
    variance = {group: torch.zeros_like(value) for group, value in gate.items()}
    for sign, text in ((1.0, nonmembers), (-1.0, members)):
        by_document: dict[Group, list[Tensor]] = {group: [] for group in known}
        bar = tqdm(text.batches(batch_size), total=-(-len(text) // batch_size), desc="loss gap")
        for batch in bar:
            share = sign * batch.n_predicted / text.n_predicted
            gates = _document_gates(model, batch, share, layers, columns, gradient)
            for group in known:
                by_document[group].append(_of_units(group, gates))
        for group, parts in by_document.items():
            each = torch.cat(parts)
            total = each.sum(0)
            tokens = (text.lengths - 1).to(each) / text.n_predicted
            residuals = each - tokens[:, None] * total
            gate[group] += total
            variance[group] += residuals.square().sum(0) * len(text) / (len(text) - 1)
    return Gap(gradient, gate, {group: value.sqrt() for group, value in variance.items()})


def hessian_traces(
    model: PreTrainedModel, text: Sequences, known: Iterable[Group], draws: range, seed: int
) -> dict[Group, Tensor]:
    """The trace of the loss's Hessian over each group's parameters, once a draw: [draws], float64.

    Unbiased, by Hutchinson's estimator; it can be negative, the Hessian's own trace as well.
    """
    made = hutchinson_draws(model, text, draws, seed=seed, batch_size=1)
    sums = [{n: float(x.sum(dtype=torch.float64)) for n, x in d.items()} for d in made]
    return {
        group: torch.tensor(
            [sum(draw[name] for name, _ in group.parts) for draw in sums], dtype=torch.float64
        )
        for group in known
    }


def contrast(members: Tensor, nonmembers: Tensor) -> Contrast:
    """(H_m − H_n)/|H_n| of the means of two sets of independent draws, [draws] each.

    With the magnitude below, a higher contrast is more curvature on members whatever the signs.
    It is 0 where both means are 0. The error is by the delta method from the spread over draws:
    it speaks of the probes and not of the choice of documents, and means something only where
    H_n is several errors from 0. With one draw there is none.

    Raises:
        RequestError: H_n is 0 and H_m is not.
    """
    m, n = float(members.mean()), float(nonmembers.mean())
    if n == 0 and m != 0:
        raise RequestError("a tensor has no curvature over the probe non-members; take more probes")
    value = (m - n) / abs(n) if m != n else 0.0
    if len(members) < 2 or n == 0:
        return Contrast(value, None)
    of_m, of_n = (float(x.std()) / math.sqrt(len(x)) for x in (members, nonmembers))
    return Contrast(value, math.hypot(of_m / n, m * of_n / n**2))


def _document_gates(
    model: PreTrainedModel,
    batch: Sequences,
    share: float,
    layers: Mapping[str, nn.Module],
    columns: set[str],
    gradient: Mapping[str, Tensor],
) -> dict[tuple[str, int], Tensor]:
    """By weight and axis the gates of `share` times the batch's loss, [B, units] each.

    Its gradient is added to `gradient`. A row's gate includes its bias.
    """
    found: dict[tuple[str, int], Tensor] = {}

    def receive(name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        weight = f"{name}.weight"
        if weight not in layers:
            return
        rows = row_axis(module)
        found[weight, rows] = unit_gates(name, module, a, g)
        if weight in columns:
            a, g = a.flatten(1, -2), g.flatten(1, -2)
            matrix = module.get_parameter("weight").detach().movedim(rows, 0)
            found[weight, 1 - rows] = linear.unit_gates(g, a, matrix.T, None)
        ones = torch.ones(len(a), device=a.device)
        for suffix, total in weighted_sums(name, module, a, g, ones).items():
            gradient[f"{name}.{suffix}"].add_(total)

    with capture(model, (batch.ids.shape[0], batch.ids.shape[1])) as captured:
        loss = mean_loss(model, batch) * share
        captured.backward(loss, torch.ones_like(loss), receive)
    return found


def _of_units(group: Group, gates: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """The gates of a group's units by document, [B, units], float64, on the CPU."""
    parts = [gates[part] for part in group.parts if part in gates]
    total = torch.stack(parts).sum(0).to("cpu", torch.float64)
    return total.sum(1, keepdim=True) if group.whole else total
