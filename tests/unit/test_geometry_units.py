"""Sparsity against a count by hand; units against their definitions."""

import numpy as np
import pytest
import torch

from paramscope.geometry.sparsity import activation_sparsity, unit_layers
from paramscope.geometry.units import units_table
from paramscope.models.sequences import padded
from tests.unit.conftest import make_tiny


def opt_hidden(model, sequences):
    """Post-ReLU activations of each layer's MLP at the tokens of each text, one text at a time."""
    found = {i: [] for i in range(len(model.model.decoder.layers))}
    handles = [
        layer.fc2.register_forward_pre_hook(lambda m, args, i=i: found[i].append(args[0].detach()))
        for i, layer in enumerate(model.model.decoder.layers)
    ]
    for ids, n in zip(sequences.ids, sequences.lengths, strict=True):
        model(input_ids=ids[None, :n])
    for handle in handles:
        handle.remove()
    return {i: torch.cat([x.reshape(-1, x.shape[-1]) for x in parts]) for i, parts in found.items()}


def test_sparsity_is_counted_after_the_activation(sequences):
    model = make_tiny()
    table = activation_sparsity(model, sequences, threshold=1e-5, batch_size=4)
    assert table["n_tokens"].unique().tolist() == [int(sequences.lengths.sum())]
    for i, hidden in opt_hidden(model, sequences).items():
        rows = table[table["tensor"] == f"model.decoder.layers.{i}.fc1.weight"]
        assert rows["after_activation"].all()
        expected = (hidden.abs() <= 1e-5).double().mean(0).tolist()
        assert rows["sparsity"].tolist() == pytest.approx(expected)
        assert 0.2 < rows["sparsity"].mean() < 0.9  # a ReLU silences a good part
    others = table[~table["after_activation"]]
    assert (others["sparsity"] < 0.05).all()
    assert len(table) == sum(layer.weight.shape[0] for layer in unit_layers(model).values())


def test_a_dead_unit_has_sparsity_one(sequences):
    model = make_tiny()
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias[3] = -1e3
    table = activation_sparsity(model, sequences, threshold=1e-5, batch_size=6).set_index("unit")
    assert table.loc["model.decoder.layers.0.fc1.weight:3", "sparsity"] == 1


def test_sparsity_of_conv1d_and_gated_models(sequences):
    gpt2 = activation_sparsity(make_tiny("gpt2"), sequences, threshold=1e-5, batch_size=6)
    assert set(gpt2[gpt2["after_activation"]]["tensor"]) == {
        f"transformer.h.{i}.mlp.c_fc.weight" for i in range(2)
    }
    llama = activation_sparsity(make_tiny("llama", tied=False), sequences, 1e-5, 6)
    assert set(llama[llama["after_activation"]]["tensor"]) == {
        f"model.layers.{i}.mlp.gate_proj.weight" for i in range(2)
    }


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_units_are_their_rows(kind, sequences):
    model = make_tiny(kind)
    generator = torch.Generator().manual_seed(0)
    diagonal, error, vectors = {}, {}, {}
    for name, p in model.named_parameters():
        diagonal[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
        error[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
        vectors[name] = torch.randn(3, *p.shape, generator=generator, dtype=torch.float64)
    sparsity = activation_sparsity(model, sequences, 1e-5, 6)
    units = units_table(model, diagonal, error, sparsity, vectors).set_index("unit")
    tensor = (
        "model.decoder.layers.1.fc2.weight"
        if kind == "opt"
        else "transformer.h.1.mlp.c_proj.weight"
    )
    bias = tensor.replace("weight", "bias")

    def row(values):
        matrix = values[tensor] if kind == "opt" else values[tensor].T
        return np.append(matrix[5].numpy(), values[bias][5].item())

    weights = {n: p.detach() for n, p in model.named_parameters()}
    h, w = row(diagonal), row(weights)
    got = units.loc[f"{tensor}:5"]
    assert got["n_parameters"] == len(w)
    assert got["layer"] == 1
    assert got["kind"] == tensor.split(".")[-2]
    assert got["curvature_mean"] == pytest.approx(h.mean())
    assert got["curvature_sum"] == pytest.approx(h.sum())
    assert got["curvature_se"] == pytest.approx(np.sqrt((row(error) ** 2).sum()) / len(w))
    assert got["weight_rms"] == pytest.approx(np.sqrt((w**2).mean()))
    assert got["saliency"] == pytest.approx(0.5 * (h * w**2).sum())
    columns = np.stack([row({n: v[i] for n, v in vectors.items()}) for i in range(3)])
    assert got["alignment"] == pytest.approx(np.linalg.norm(columns @ w) / np.linalg.norm(w))
    assert units["alignment_percentile"].between(0, 1).all()


def test_an_eigenvector_made_of_one_unit_has_that_units_alignment(sequences):
    model = make_tiny()
    tensor = "model.decoder.layers.0.fc1.weight"
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    vectors = {n: torch.zeros(1, *p.shape, dtype=p.dtype) for n, p in model.named_parameters()}
    weight, bias = (
        model.get_parameter(n).detach()[2] for n in (tensor, tensor.replace("weight", "bias"))
    )
    length = (weight.square().sum() + bias.square()).sqrt()
    vectors[tensor][0, 2] = weight / length
    vectors[tensor.replace("weight", "bias")][0, 2] = bias / length
    sparsity = activation_sparsity(model, padded([[4, 5, 6]], ["x"]), 1e-5, 1)
    units = units_table(model, ones, ones, sparsity, vectors).set_index("unit")
    assert units.loc[f"{tensor}:2", "alignment"] == pytest.approx(1)
    assert units["alignment"].drop(f"{tensor}:2").max() < 1e-12
