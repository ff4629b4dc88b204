"""Sparsity against a count by hand; units against their definitions."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import read_table, write_table
from paramscope.artifacts.tensors import write_tensors
from paramscope.cli.membership_features import membership_features
from paramscope.cli.units import Granularity
from paramscope.cli.units import units as units_stage
from paramscope.corpus.splits import DOCUMENTS
from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.features import MEMBERSHIP_FEATURES, UNITS
from paramscope.geometry.granularity import GRANULARITIES, indices
from paramscope.geometry.membership import MEMBERSHIP, membership_table
from paramscope.geometry.sparsity import SPARSITY, activation_sparsity, unit_layers
from paramscope.geometry.units import units_table
from paramscope.models.sequences import documents, padded
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


@pytest.fixture(scope="module", params=["opt", "gpt2", "llama"])
def measured(request, sequences):
    """A model, invented curvature and eigenvectors, its sparsity, and membership features."""
    model = make_tiny(request.param, tied=request.param != "llama")
    generator = torch.Generator().manual_seed(3)
    diagonal, error, vectors = {}, {}, {}
    for name, p in model.named_parameters():
        diagonal[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
        error[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
        vectors[name] = torch.randn(2, *p.shape, generator=generator, dtype=torch.float64)
    sparsity = activation_sparsity(model, sequences, 1e-5, 6)
    membership = membership_table(
        model, sequences[0:3], sequences[3:6], draws=1, seed=0, batch_size=3
    )
    return model, (diagonal, error, sparsity, vectors), membership


@pytest.mark.parametrize("granularity", ["row", "tensor", "neuron"])
def test_units_of_any_granularity_are_their_entries(granularity, measured):
    model, inputs, membership = measured
    diagonal, error, sparsity, vectors = inputs
    units = units_table(model, *inputs, membership, granularity)
    silent = sparsity.set_index("unit")["sparsity"]
    assert units["unit"].is_unique
    for _, got in units.iloc[::7].iterrows():
        entries = indices(model, got["unit"])

        def of(values, entries=entries):
            return torch.cat([values[name][index].flatten() for name, index in entries])

        w = of({name: p.detach() for name, p in model.named_parameters()})
        h = of(diagonal)
        assert got["n_parameters"] == len(w)
        assert got["layer"] in (0, 1)
        assert got["curvature_mean"] == pytest.approx(float(h.mean()))
        assert got["curvature_sum"] == pytest.approx(float(h.sum()))
        assert got["curvature_se"] == pytest.approx(float(of(error).norm()) / len(w))
        assert got["weight_rms"] == pytest.approx(float(w.square().mean().sqrt()))
        assert got["saliency"] == pytest.approx(float((h * w * w).sum() / 2))
        along = torch.stack([of({n: v[i] for n, v in vectors.items()}) @ w for i in range(2)])
        assert got["alignment"] == pytest.approx(float(along.norm() / w.norm()))
        first = entries[0][0]
        rows = silent[silent.index.str.startswith(f"{first}:")]
        expected = rows.mean() if granularity == "tensor" else rows[f"{first}:{got['row']}"]
        assert got["sparsity"] == pytest.approx(expected)
        member = membership.set_index(["granularity", "unit"]).loc[(granularity, got["unit"])]
        for name in ("gate", "loss_gap", "contrast"):
            assert got[name] == member[name]
    assert len(units) == (membership["granularity"] == granularity).sum()


def test_tensors_are_sums_and_means_of_their_rows(measured):
    model, inputs, membership = measured
    rows = units_table(model, *inputs, membership)
    found = units_table(model, *inputs, membership, "tensor").set_index("unit")
    assert (found["tensor"] == found.index).all()
    by_tensor = rows.groupby("tensor")
    for name in ("n_parameters", "curvature_sum", "saliency", "gate"):
        expected = by_tensor[name].sum()
        np.testing.assert_allclose(found[name], expected[found.index], rtol=1e-9, atol=1e-12)
    squares = (rows["weight_rms"] ** 2 * rows["n_parameters"]).groupby(rows["tensor"]).sum()
    expected = np.sqrt(squares / by_tensor["n_parameters"].sum())[found.index]
    np.testing.assert_allclose(found["weight_rms"], expected)
    expected = np.sqrt((rows["loss_gap"] ** 2).groupby(rows["tensor"]).sum())[found.index]
    np.testing.assert_allclose(found["loss_gap"], expected)
    np.testing.assert_allclose(found["contrast"], by_tensor["contrast"].mean()[found.index])


def test_a_neuron_takes_its_activations_row_and_its_blocks_name(measured):
    model, inputs, membership = measured
    units = units_table(model, *inputs, membership, "neuron")
    silent = inputs[2].set_index("unit")
    for _, group in units.groupby("tensor"):
        layer = group["layer"].iloc[0]
        assert group["tensor"].iloc[0].endswith(f".{layer}.neuron")
        assert group["row"].tolist() == list(range(len(group)))
    activated = silent[silent["after_activation"]]["sparsity"]
    assert sorted(units["sparsity"]) == pytest.approx(sorted(activated))


def test_without_membership_its_columns_are_null_and_a_foreign_one_is_refused(measured, tmp_path):
    model, inputs, membership = measured
    units = units_table(model, *inputs)
    assert units[list(MEMBERSHIP_FEATURES)].isna().all(axis=None)
    made_by = provenance("geometry.units", {})
    write_table(tmp_path / "units.parquet", units, UNITS, made_by)
    stored = pq.read_table(tmp_path / "units.parquet")
    assert [stored[name].null_count for name in MEMBERSHIP_FEATURES] == [len(units)] * 3
    with pytest.raises(ArtifactError, match=r"\(row\) are missing"):
        units_table(model, *inputs, membership[membership["granularity"] != "row"])
    with pytest.raises(ArtifactError, match="sparsity of some units"):
        units_table(model, *inputs[:2], inputs[2].iloc[1:], inputs[3], granularity="tensor")
    with pytest.raises(ArtifactError, match=r"curvature of .* is missing"):
        units_table(model, {}, *inputs[1:])


def test_the_stages_hand_their_tables_on(tmp_path, sequences):
    """membership-features and units as commands: what they write is what the functions give."""
    model = make_tiny().float()
    texts = [" ".join(f"w{i}" for i in ids[:n]) for ids, n in
             zip(sequences.ids.tolist(), sequences.lengths.tolist(), strict=True)]  # fmt: skip
    splits = pd.DataFrame({"doc_id": [f"d{i}" for i in range(18)], "text": texts * 3})
    made_by = provenance("geometry.units", {})
    for name, part in (("member", splits), ("nonmember", splits[::-1])):
        write_table(tmp_path / f"{name}.parquet", part, DOCUMENTS, made_by)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    vocabulary = {f"w{i}": i for i in range(24)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    found = tmp_path / "membership.parquet"
    membership_features(
        folder, tmp_path / "member.parquet", tmp_path / "nonmember.parquet", found, probe=4,
        draws=2, length=12, device="cpu",
    )  # fmt: skip
    table = read_table(found, MEMBERSHIP.names)
    parts = [documents(tokenizer, part["text"][:4], part["doc_id"][:4], 12)
             for part in (splits, splits[::-1])]  # fmt: skip
    expected = membership_table(model.eval(), *parts, draws=2, seed=0, batch_size=16)
    # the same work in the same order and format
    pd.testing.assert_frame_equal(table, expected, rtol=1e-5, check_dtype=False)
    with pytest.raises(RequestError, match="fewer probes"):
        membership_features(
            folder, tmp_path / "member.parquet", tmp_path / "nonmember.parquet", found, probe=9
        )
    diagonal = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    errors = {f"standard_error/{n}": x for n, x in diagonal.items()}
    write_tensors(tmp_path / "diagonal.pt", diagonal | errors, made_by)
    vectors = {f"vector/{n}": x[None] for n, x in diagonal.items()}
    write_tensors(tmp_path / "eigenspace.pt", vectors, made_by)
    write_table(
        tmp_path / "sparsity.parquet", activation_sparsity(model, parts[0], 1e-5, 4), SPARSITY,
        made_by,
    )  # fmt: skip
    inputs = [tmp_path / name for name in ("diagonal.pt", "sparsity.parquet", "eigenspace.pt")]
    for granularity in GRANULARITIES:
        units_stage(folder, *inputs, tmp_path / "units.parquet", found, Granularity(granularity))
        joined = read_table(tmp_path / "units.parquet", UNITS.names).set_index("unit")
        own = table[table["granularity"] == granularity].set_index("unit")
        assert joined["gate"].equals(own["gate"].reindex(joined.index))
        assert len(joined) == len(own)
