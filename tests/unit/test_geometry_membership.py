"""Oracles: autograd in float64, finite differences, exact Hessian traces, and planted memory."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from paramscope.corpus.splits import FEWEST_JUDGES, judges, probes
from paramscope.curvature.products import hessian_entries
from paramscope.errors import RequestError
from paramscope.geometry.granularity import groups, indices, places
from paramscope.geometry.membership import (
    MEMBERSHIP,
    contrast,
    hessian_traces,
    known_groups,
    loss_gap,
    membership_table,
)
from paramscope.models.load import Architecture
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import padded
from tests.benchmarks.partition import (
    Text,
    choose,
    plant,
    roc_by_tensor,
    shuffled_chunks,
    trained_base,
)
from tests.unit.conftest import make_tiny


@pytest.fixture(scope="module")
def others():
    """Five more sequences, of other lengths: 3 to 9 tokens."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(4, 24, (n,), generator=generator).tolist() for n in (3, 9, 6, 8, 5)]
    return padded(rows, [f"other-{i}" for i in range(len(rows))])


def gap_of(model, members, nonmembers):
    return mean_loss(model, nonmembers) - mean_loss(model, members)


def table_of(model, members, nonmembers, **options):
    options = {"draws": 2, "seed": 0, "batch_size": 3} | options
    return membership_table(model, members, nonmembers, **options).set_index(
        ["granularity", "unit"]
    )


def test_gates_and_loss_gaps_are_autograds(tiny, sequences, others):
    model = tiny
    parameters = dict(model.named_parameters())
    gap = gap_of(model, sequences, others)
    found = torch.autograd.grad(gap, list(parameters.values()), materialize_grads=True)
    gradient = dict(zip(parameters, found, strict=True))
    table = table_of(model, sequences, others, draws=1)
    assert set(MEMBERSHIP.names) == {*table.columns, *table.index.names}
    for (_, unit), row in table.iterrows():
        entries = indices(model, unit)
        w = torch.cat([parameters[name].detach()[index].flatten() for name, index in entries])
        d = torch.cat([gradient[name][index].flatten() for name, index in entries])
        # float64 sums of some hundred terms in another order: 1e-10 is far above their rounding
        assert row["gate"] == pytest.approx(float(w @ d), rel=1e-8, abs=1e-10), unit
        assert row["loss_gap"] == pytest.approx(float(d.norm()), rel=1e-8, abs=1e-10), unit
        assert row["loss_gap"] >= 0
    assert table["contrast_se"].isna().all()  # one draw says nothing of its error


def test_a_gate_is_what_shrinking_the_unit_does_to_the_gap(sequences, others):
    model = make_tiny("gpt2")
    table = table_of(model, sequences, others)
    for unit in ("transformer.h.1.attn.c_proj.weight:3", "transformer.h.0.neuron:7",
                 "transformer.h.1.mlp.c_fc.weight"):  # fmt: skip
        gate = table.xs(unit, level="unit")["gate"].iloc[0]
        gaps = []
        for scale in (1 - 1e-5, 1 + 1e-5):
            with torch.no_grad():
                kept = [(n, i, model.get_parameter(n)[i].clone()) for n, i in indices(model, unit)]
                for name, index, value in kept:
                    model.get_parameter(name)[index] = scale * value
                gaps.append(float(gap_of(model, sequences, others)))
                for name, index, value in kept:
                    model.get_parameter(name)[index] = value
        # central differences in float64: an error of ε² and of 1e-16/ε
        assert (gaps[1] - gaps[0]) / 2e-5 == pytest.approx(gate, rel=1e-6, abs=1e-9)
        assert abs(gate) > 1e-4


def test_a_relu_neurons_gate_is_twice_its_rows(sequences, others):
    """ReLU is homogeneous: scaling what comes in or what goes out does the same to the gap."""
    table = table_of(make_tiny("opt"), sequences, others)
    rows = table.loc["row"].filter(like=".fc1.weight", axis=0)["gate"]
    neurons = table.loc["neuron"]["gate"]
    np.testing.assert_allclose(neurons, 2 * rows.to_numpy(), rtol=1e-8, atol=1e-12)
    assert neurons.abs().max() > 1e-3


def test_gates_do_not_hang_on_the_batch(sequences, others):
    model = make_tiny()
    one, all_at_once = (table_of(model, sequences, others, batch_size=b) for b in (1, 6))
    pd.testing.assert_frame_equal(one, all_at_once, rtol=1e-9)


def test_the_gates_error_is_the_jackknifes():
    """In samples of 40 documents a side, leave-one-out and linearised errors differ by O(1/40)."""
    model = make_tiny()
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(3, 12, (80,), generator=generator).tolist()
    rows = [torch.randint(4, 24, (n,), generator=generator).tolist() for n in lengths]
    members, nonmembers = (padded(part, map(str, range(40))) for part in (rows[:40], rows[40:]))
    group = groups(model, "row")[4]
    found = loss_gap(model, members, nonmembers, [group], 40).gate_se[group].numpy()
    variance = 0.0
    for text in (members, nonmembers):
        kept = [[j for j in range(40) if j != i] for i in range(40)]
        left_out = []
        for index in kept:
            part = padded(
                [text.ids[i, : text.lengths[i]].tolist() for i in index], [str(i) for i in index]
            )
            first = text[0:2]
            # the other side cancels in the spread
            left_out.append(loss_gap(model, part, first, [group], 39).gate[group].numpy())
        variance += (39 / 40) * ((left_out - np.mean(left_out, 0)) ** 2).sum(0)
    np.testing.assert_allclose(found, np.sqrt(variance), rtol=0.1)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_traces_are_unbiased_for_the_exact_hessians(kind, sequences):
    model = make_tiny(kind, tied=kind != "llama")
    known = known_groups(model)
    z = []
    for group, found in hessian_traces(model, sequences, known, range(32), seed=1).items():
        if group.granularity == "row":
            assert found.shape == (32,)
            continue
        names = [name for name, _ in group.parts]
        entries = [(n, i) for n in names for i in range(model.get_parameter(n).numel())]
        exact = sum(hessian_entries(model, sequences, entries))
        z.append((float(found.mean()) - exact) / (float(found.std()) / 32**0.5))
    # 10 to 16 dependent means of 32 draws: none beyond 4 errors, and their spread near 1
    assert np.abs(z).max() < 4
    assert 0.4 < np.sqrt(np.mean(np.square(z))) < 1.7


def test_a_contrasts_sign_and_error():
    m, n = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 3.0])
    assert contrast(m, n).value == 1
    # errors of both means are 1: √((1/2)² + (4·1/2²)²)
    assert contrast(m, n).error == pytest.approx(np.sqrt(0.25 + 1))
    assert contrast(m, -n).value == 3  # (4 + 2)/2: more curvature on members is higher
    assert contrast(0 * m, 0 * n).value == 0
    assert contrast(m[:1], n[:1]).error is None
    with pytest.raises(RequestError, match="no curvature"):
        contrast(m, 0 * n)


def test_a_contrasts_error_is_its_spread():
    rng = np.random.default_rng(0)
    found = [
        contrast(*(torch.from_numpy(rng.normal(mean, 1, 8)) for mean in (14, 9)))
        for _ in range(2000)
    ]
    # the mean error of 2,000 pairs of 8 draws: the deviation's own error is 1.6%, its bias as
    # great again, and the delta method leaves out terms of (1/(9·√8))² = .2%
    spread = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.08)


def test_contrasts_are_those_of_the_traces(sequences, others):
    model = make_tiny()
    table = table_of(model, sequences, others, draws=3, seed=4)
    known = known_groups(model)
    of_m, of_n = (hessian_traces(model, text, known, range(3), 4) for text in (sequences, others))
    for group in known:
        m, n = of_m[group], of_n[group]
        rows = table.loc[group.granularity]
        rows = rows[rows["tensor"] == group.name]
        assert rows["contrast"].tolist() == [contrast(m, n).value] * len(group.units)
        assert rows["contrast_se"].tolist() == [contrast(m, n).error] * len(group.units)


def test_probes_and_judges_share_nothing_and_leave_nothing_out():
    split = pd.DataFrame({"doc_id": [f"d{i}" for i in range(30)], "text": "x"})
    for n in (2, 13, 30 - FEWEST_JUDGES):
        first, rest = probes(split, n), judges(split, n)
        assert first["doc_id"].tolist() + rest["doc_id"].tolist() == split["doc_id"].tolist()
        assert len(first) == n
        assert not set(first["doc_id"]) & set(rest["doc_id"])
    assert judges(split, 0).equals(split)
    for function in (probes, judges):
        with pytest.raises(RequestError, match="leave 9 to judge"):
            function(split, 21)
    with pytest.raises(RequestError, match="2 or more"):
        probes(split, 1)
    with pytest.raises(RequestError, match="0 or more"):
        judges(split, -1)


def test_one_document_is_no_gap(sequences, others):
    with pytest.raises(RequestError, match="2 probe members"):
        membership_table(make_tiny(), sequences[0:1], others, draws=1, seed=0, batch_size=1)


@pytest.fixture(scope="module")
def planting(tmp_path_factory):
    """A base trained on a part of Python's documentation, and its text: made once a session."""
    folder = tmp_path_factory.mktemp("stdlib")
    for name in ("pydoc_data/topics.py", "argparse.py", "logging/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(Path(sysconfig.get_path("stdlib"), name), folder / name)
    chunks = shuffled_chunks(folder, seed=0, characters=200)
    text = Text.of(chunks[:1400], held_out=100, vocabulary=512, length=48)
    base = trained_base(text, Architecture(64, 2, 4, 256, 48), epochs=4, seed=0)
    return base, text, {name: p.detach().clone() for name, p in base.state_dict().items()}


def found_by_gate(model, text, units):
    """ROC of the gate in finding the units among their tensors' rows, and 400 of its null."""
    known = groups(model, "row")
    gap = loss_gap(model, text.members[:50], text.nonmembers[:50], known, 50)
    names = [(unit, group.name) for group in known for unit in group.units]
    table = pd.DataFrame(names, columns=["unit", "tensor"])
    values = pd.Series(torch.cat([gap.gate[group] for group in known]).numpy())
    return roc_by_tensor(values, table["tensor"], table["unit"].isin(units).to_numpy(), 400, 0)


def norms(model, units):
    return [
        float(torch.cat([model.get_parameter(n).detach()[i].flatten() for n, i in rows]).norm())
        for rows in (indices(model, unit) for unit in units)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_gate_finds_planted_memory(seed, planting):
    """Chosen rows alone were finetuned on 100 documents, at equal norms; the gate sees 50 of them.

    Measured over seeds 0 to 5: ROC .83 to .91 planted, .47 to .54 before (its null's deviation
    is .05).
    """
    model, text, weights = planting
    model.load_state_dict(weights)
    units = [unit for own in choose(model, 0.1, 0.5, seed).values() for unit in own]
    lengths = norms(model, units)
    before, _ = found_by_gate(model, text, units)
    plant(model, units, text.members, steps=80, learning_rate=3e-3, seed=seed)
    after, null = found_by_gate(model, text, units)
    assert null.mean() == pytest.approx(0.5, abs=0.03)  # 400 draws of deviation .05: error .0025
    assert abs(before - null.mean()) < 4 * null.std()  # without planting there is nothing to find
    assert after >= 0.7
    assert after > null.max()
    assert norms(model, units) == pytest.approx(lengths, rel=1e-5)  # float32
    touched = places(model, units)
    for name, parameter in model.state_dict().items():
        kept = torch.ones(parameter.shape, dtype=torch.bool)
        if name in touched:
            kept.index_fill_(*touched[name], False)
        assert torch.equal(parameter[kept], weights[name][kept])
