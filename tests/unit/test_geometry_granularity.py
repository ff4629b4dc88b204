"""Units against the parameters they are said to be."""

import pytest
import torch

from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.granularity import GRANULARITIES, groups, indices, places
from paramscope.geometry.sparsity import unit_layers
from tests.unit.conftest import make_tiny

MLPS = {  # by hand: a block's name, its MLP's layers, and whether weights are stored [in, out]
    "opt": ("model.decoder.layers.1", ["fc1"], "fc2", False),
    "gpt2": ("transformer.h.1", ["mlp.c_fc"], "mlp.c_proj", True),
    "llama": ("model.layers.1", ["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj", False),
}


def counted(model, units):
    """How often each parameter's entries are in the units, by adding 1 at their indices."""
    counts = {name: torch.zeros(p.shape, dtype=torch.int64) for name, p in model.named_parameters()}
    for unit in units:
        for name, index in indices(model, unit):
            counts[name][index] += 1
    return counts


@pytest.mark.parametrize("kind", MLPS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_entry_is_in_exactly_one_unit_of_a_granularity(kind, granularity):
    model = make_tiny(kind, tied=kind != "llama")
    units = [unit for group in groups(model, granularity) for unit in group.units]
    assert len(set(units)) == len(units)
    mlp = {f"{block[:-1]}{i}.{n}" for block, up, down, _ in [MLPS[kind]] for i in range(2)
           for n in (*up, down)}  # fmt: skip
    inside = mlp if granularity == "neuron" else set(unit_layers(model))
    writers = {f"{name}.bias" for name in mlp if name.endswith(MLPS[kind][2])}
    for name, count in counted(model, units).items():
        layer = name.rpartition(".")[0]
        covered = layer in inside and not (granularity == "neuron" and name in writers)
        assert (count == int(covered)).all(), name


@pytest.mark.parametrize("kind", MLPS)
def test_units_are_what_their_names_say(kind):
    model = make_tiny(kind, tied=kind != "llama")
    block, readers, writer, transposed = MLPS[kind]
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def by_row(name):
        return weights[name].T if transposed else weights[name]

    def entries(unit):
        return torch.cat([weights[name][index].flatten() for name, index in indices(model, unit)])

    expected = []
    for name in readers:
        expected.append(by_row(f"{block}.{name}.weight")[5])
        if f"{block}.{name}.bias" in weights:
            expected.append(weights[f"{block}.{name}.bias"][5][None])
    tensor = f"{block}.{readers[0]}.weight"
    row = torch.cat(expected[: 1 + (kind != "llama")])
    assert torch.equal(entries(f"{tensor}:5"), row)
    expected.append(by_row(f"{block}.{writer}.weight")[:, 5])
    assert torch.equal(entries(f"{block}.neuron:5"), torch.cat(expected))
    assert len(entries(tensor)) == len(row) * len(by_row(tensor))

    group = next(group for group in groups(model, "neuron") if group.layer == 1)
    assert torch.equal(group.gather(weights)[5], torch.cat(expected))
    assert group.units[5] == f"{block}.neuron:5"


@pytest.mark.parametrize("kind", MLPS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_places_are_the_indices_of_many_units_at_once(kind, granularity):
    model = make_tiny(kind, tied=kind != "llama")
    units = [unit for group in groups(model, granularity) for unit in group.units][1::3]
    found = counted(model, units)
    for name, (axis, where) in places(model, units[::-1]).items():
        assert torch.equal(where, where.sort().values)
        again = torch.zeros_like(found[name]).index_add_(
            axis, where, torch.ones_like(found[name]).index_select(axis, where)
        )
        assert torch.equal(again, found.pop(name))
    assert not any(count.any() for count in found.values())


def test_an_index_is_a_view_of_the_models_own_entries():
    model = make_tiny("gpt2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, index in indices(model, "transformer.h.0.neuron:3"):
            model.get_parameter(name)[index].add_(1.0)
    changed = sum(int((p != before[name]).sum()) for name, p in model.named_parameters())
    assert changed == 8 + 1 + 8  # a column of [8, 32], its bias, a row of [32, 8]


def test_units_that_are_not_there_or_overlap_are_refused():
    model = make_tiny()
    tensor = "model.decoder.layers.0.fc1.weight"
    for unit in (f"{tensor}:16", f"{tensor}:-1", f"{tensor}:x", "fc9.weight", "fc9.weight:0",
                 "model.decoder.layers.0.neuron", "model.decoder.layers.2.neuron:0",
                 "lm_head.weight:0"):  # fmt: skip
        with pytest.raises(ArtifactError, match="not in this model"):
            indices(model, unit)
    for units in ([tensor, f"{tensor}:1"], [f"{tensor}:1"] * 2,
                  [f"{tensor}:1", "model.decoder.layers.0.neuron:1"]):  # fmt: skip
        with pytest.raises(ArtifactError, match="more than one"):
            places(model, units)
    with pytest.raises(RequestError, match="one granularity"):
        places(model, ["model.decoder.layers.0.fc2.weight:1", "model.decoder.layers.0.neuron:1"])
    with pytest.raises(RequestError, match="take row, tensor, neuron"):
        groups(model, "head")


def test_neurons_of_an_unknown_mlp_are_refused():
    model = make_tiny()
    layer = model.model.decoder.layers[0]
    layer.first, layer.fc1 = layer.fc1, None
    with pytest.raises(RequestError, match=r"layers\.0 .* 0 MLPs"):
        groups(model, "neuron")
    assert groups(model, "row")
