"""Classes of directions, noise in them, and their removal."""

import numpy as np
import pandas as pd
import pytest
import torch

from paramscope.cli.directions import directions as directions_stage
from paramscope.cli.kfac import kfac as kfac_stage
from paramscope.curvature.kfac import Directions, corrected, eigen, factored_layers, kfac_factors
from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.directions import (
    CODES,
    Labelled,
    class_shares,
    from_content,
    label_directions,
    labelled_from_content,
    labelled_to_content,
    random_labels,
)
from paramscope.persample.layers import is_conv1d
from paramscope.response.directions import DirectionSet
from paramscope.response.noise import NoiseSource
from tests.unit.conftest import make_tiny

KINDS = ["opt", "gpt2", "llama"]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def orthogonal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def random_directions(model, seed=0):
    """Bases of every layer that have nothing to do with it, and a curvature."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in factored_layers(model).items():
        p, d = by_row(module).shape
        curvature = torch.rand(p, d, generator=generator, dtype=torch.float64)
        found[name] = Directions(orthogonal(d, generator), orthogonal(p, generator), curvature)
    return found


def by_row(module, weight=None):
    weight = module.weight.detach() if weight is None else weight
    return weight.T if is_conv1d(module) else weight


def coefficients(model, found, weights):
    """U_Sᵀ W U_A of each layer, in float64."""
    return {
        name: found[name].U_S.T
        @ by_row(module, weights[f"{name}.weight"]).double()
        @ found[name].U_A
        for name, module in factored_layers(model).items()
    }


@pytest.fixture(params=KINDS)
def model(request):
    return make_tiny(request.param, tied=request.param != "llama")


def one_layer(curvature):
    p, d = curvature.shape
    return {"layer": Directions(torch.eye(d).double(), torch.eye(p).double(), curvature)}


def test_quarters_are_the_ends_of_the_curvatures_order():
    curvature = torch.from_numpy(np.random.default_rng(0).permutation(35.0 + np.arange(35)))
    labels = label_directions(one_layer(curvature.reshape(5, 7)))["layer"].labels.flatten()
    assert labels.dtype == torch.int8
    order = np.argsort(curvature.numpy())
    expected = np.array([CODES["W_sens"]] * 8 + [CODES["W_both"]] * 19 + [CODES["W_func"]] * 8)
    np.testing.assert_array_equal(labels.numpy()[order], expected)


def test_mass_keeps_the_fewest_that_hold_it():
    curvature = torch.tensor([[8.0, 1.0, 4.0], [0.5, 2.0, 0.5]], dtype=torch.float64)  # 16 in all
    kept = {0.4: {8}, 0.5: {8}, 0.51: {8, 4}, 0.75: {8, 4}, 0.8: {8, 4, 2}, 1.0: {8, 4, 2, 1, 0.5}}
    for share, values in kept.items():
        labels = label_directions(one_layer(curvature), by="mass", share=share)["layer"].labels
        assert set(curvature[labels == CODES["W_func"]].tolist()) == values
        assert not (labels == CODES["W_both"]).any()
        shares = class_shares(label_directions(one_layer(curvature), by="mass", share=share))
        mass = shares.set_index("class")["mass"]
        assert mass["W_func"] >= share
        assert mass["W_func"] + mass["W_sens"] == pytest.approx(1)


def test_ties_favour_no_place():
    """All equal: a class is a random quarter, so its mean place is the middle."""
    found = one_layer(torch.ones(40, 40, dtype=torch.float64))
    labels = label_directions(found)["layer"].labels
    again, other = label_directions(found), label_directions(found, seed=1)
    assert torch.equal(again["layer"].labels, labels)
    assert not torch.equal(other["layer"].labels, labels)
    for code in (CODES["W_func"], CODES["W_sens"]):
        places = (labels.flatten() == code).nonzero().double()
        assert len(places) == 400
        # The mean of 400 of 1,600 places has a deviation of 462·√(3/4)/20 = 20.
        assert float(places.mean()) == pytest.approx(799.5, abs=4 * 20)


def test_wrong_classes_are_refused():
    flat = one_layer(torch.zeros(4, 4, dtype=torch.float64))
    for options in ({"share": 0.6}, {"share": 0.0}, {"by": "mass", "share": 1.1}, {"by": "energy"}):
        with pytest.raises(RequestError):
            label_directions(flat, **options)
    with pytest.raises(RequestError, match="no curvature at all"):
        label_directions(flat, by="mass", share=0.5)
    for wrong in (float("nan"), -1.0, float("inf")):
        with pytest.raises(RequestError, match="negative or not finite"):
            label_directions(one_layer(torch.full((4, 4), wrong)))


def test_random_classes_have_the_same_sizes_and_no_curvature():
    labels = label_directions(one_layer(torch.rand(40, 40).double()))["layer"].labels
    drawn = [random_labels("layer", labels, draw, 0) for draw in range(40)]
    assert torch.equal(drawn[3], random_labels("layer", labels, 3, 0))
    for other in (random_labels("layer", labels, 3, 1), random_labels("else", labels, 3, 0)):
        assert not torch.equal(drawn[3], other)
    for x in drawn:
        assert torch.equal(x.flatten().bincount(), labels.flatten().bincount())
    shared = [float((x[labels == 1] == 1).double().mean()) for x in drawn]
    # Chance is a quarter; of 400 places the mean over 40 draws is known to .019/√40.
    assert np.mean(shared) == pytest.approx(0.25, abs=4 * 0.019 / 40**0.5)


def test_classes_come_back_from_a_files_content(model):
    labelled = label_directions(random_directions(model))
    again = labelled_from_content(labelled_to_content(labelled))
    assert again.keys() == labelled.keys()
    for name, x in labelled.items():
        assert torch.equal(again[name].labels, x.labels)
        assert again[name].directions.curvature.dtype == torch.float32
        torch.testing.assert_close(again[name].directions.U_A, x.directions.U_A.float())
        torch.testing.assert_close(again[name].directions.U_S, x.directions.U_S.float())
    with pytest.raises(ArtifactError, match="labelled directions"):
        labelled_from_content({"A/x": torch.zeros(1)})


def test_noise_is_in_the_classes_directions_alone_and_leaves_no_trace(model):
    found = random_directions(model)
    labelled = label_directions(found)
    chosen = DirectionSet(model, labelled, "W_sens")
    before, source = state(model), NoiseSource(model, 0, 0)
    with pytest.raises(RuntimeError), chosen.perturbed(source, 0.5):
        inside = state(model)
        raise RuntimeError  # restored even then
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    weights = {f"{name}.weight" for name in found}
    changed = {name for name in before if not torch.equal(before[name], inside[name])}
    assert changed == weights
    difference = {name: inside[name] - before[name] for name in weights}
    energy, count = 0.0, 0
    for name, C in coefficients(model, found, difference).items():
        mask = labelled[name].labels == CODES["W_sens"]
        torch.testing.assert_close(C[~mask], torch.zeros_like(C[~mask]), rtol=0, atol=1e-12)
        z = by_row(factored_layers(model)[name], source.unit_noise(f"{name}.weight"))
        torch.testing.assert_close(C[mask], 0.5 * z[mask].double(), rtol=0, atol=1e-12)
        energy += float(difference[f"{name}.weight"].square().sum())
        count += int(mask.sum())
    assert energy == pytest.approx(0.25 * chosen.energy(source), rel=1e-12)
    assert chosen.n_parameters == count == sum(x.labels.numel() // 4 for x in labelled.values())


def test_classes_share_their_noise_and_split_its_energy(model):
    labelled = label_directions(random_directions(model))
    sets = [DirectionSet(model, labelled, label) for label in CODES]
    source = NoiseSource(model, 0, 3)
    whole = sum(source.unit_noise(f"{n}.weight").square().sum() for n in labelled)
    assert sum(x.energy(source) for x in sets) == pytest.approx(float(whole))
    assert sum(x.n_parameters for x in sets) == sum(x.labels.numel() for x in labelled.values())
    others = [NoiseSource(model, 0, number) for number in range(20)]
    for x in sets:  # χ² of 20 × some hundred degrees or more: known to a few percent
        mean = np.mean([x.energy(one) for one in others])
        assert mean == pytest.approx(x.expected_energy(source), rel=0.1)
    other = NoiseSource(model, 0, 4)
    made = []
    for one in (source, source, other, source):
        with sets[0].perturbed(one, 1.0):
            made.append(state(model))
    name = f"{next(iter(labelled))}.weight"
    assert torch.equal(made[0][name], made[1][name])
    assert torch.equal(made[0][name], made[3][name])
    assert not torch.allclose(made[0][name], made[2][name])


def test_noise_is_not_kept_beyond_its_source(model):
    chosen = DirectionSet(model, label_directions(random_directions(model)), "W_func")
    source = NoiseSource(model, 0, 0)
    with chosen.perturbed(source, 1.0):
        pass
    assert chosen._noise
    del source
    assert not chosen._noise


def test_no_noise_changes_no_bit(model):
    before = state(model)
    chosen = DirectionSet(model, label_directions(random_directions(model)), "W_func")
    with chosen.perturbed(NoiseSource(model, 0, 0), 0.0):
        inside = state(model)
    with chosen.removed(0.0):
        shrunk = state(model)
    for name in before:
        assert torch.equal(before[name], inside[name])
        assert torch.equal(before[name], shrunk[name])


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_removal_shrinks_the_classes_coefficients_and_no_others(model, share):
    found = random_directions(model)
    labelled = label_directions(found)
    before = state(model)
    with DirectionSet(model, labelled, "W_func").removed(share):
        inside = state(model)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (coefficients(model, found, x) for x in (before, inside))
    for name in found:
        mask = labelled[name].labels == CODES["W_func"]
        torch.testing.assert_close(new[name][~mask], old[name][~mask], rtol=0, atol=1e-12)
        expected = (1 - share) * old[name][mask]
        torch.testing.assert_close(new[name][mask], expected, rtol=0, atol=1e-12)
        assert old[name][mask].abs().max() > 0.01
    untouched = before.keys() - {f"{name}.weight" for name in found}
    assert all(torch.equal(before[name], inside[name]) for name in untouched)


@pytest.mark.parametrize("draw", [None, 2])
def test_with_every_class_removed_nothing_is_left(model, draw):
    labelled = label_directions(random_directions(model))
    sets = [DirectionSet(model, labelled, label, draw=draw) for label in CODES]
    with sets[0].removed(), sets[1].removed(), sets[2].removed():
        for name in labelled:
            weight = model.get_parameter(f"{name}.weight").detach()
            torch.testing.assert_close(weight, torch.zeros_like(weight), rtol=0, atol=1e-12)


def test_a_random_class_is_another_of_the_same_size(model):
    labelled = label_directions(random_directions(model))
    own = DirectionSet(model, labelled, "W_sens")
    drawn = [DirectionSet(model, labelled, "W_sens", draw=d, seed=5) for d in (0, 0, 1)]
    for name in own.masks:
        sizes = {int(x.masks[name].sum()) for x in [own, *drawn]}
        assert len(sizes) == 1
        assert torch.equal(drawn[0].masks[name], drawn[1].masks[name])
        assert not torch.equal(drawn[0].masks[name], own.masks[name])
        assert not torch.equal(drawn[0].masks[name], drawn[2].masks[name])


def test_a_float32_or_bfloat16_model_is_restored_to_the_bit(model):
    labelled = label_directions(random_directions(model))
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):  # of weights of order 1
        model = model.to(dtype)
        before = state(model)
        chosen = [DirectionSet(model, labelled, label) for label in CODES]
        with chosen[0].removed(), chosen[1].removed(), chosen[2].removed():
            name = f"{next(iter(labelled))}.weight"
            left = model.get_parameter(name).detach()
            torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=atol)
        with chosen[0].perturbed(NoiseSource(model, 0, 0), 0.5):
            pass
        after = state(model)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_directions_of_another_model_are_refused(tiny_opt):
    labelled = label_directions(random_directions(tiny_opt))
    with pytest.raises(RequestError, match="no class W_none"):
        DirectionSet(tiny_opt, labelled, "W_none")
    name, x = next(iter(labelled.items()))
    with pytest.raises(ArtifactError, match="elsewhere of the directions is not in this model"):
        DirectionSet(tiny_opt, {"elsewhere": x}, "W_func")
    wrong = Labelled(x.directions, x.labels[:, :-1])
    with pytest.raises(ArtifactError, match=r"\(8, 7\), but the model's is \(8, 8\)"):
        DirectionSet(tiny_opt, {name: wrong}, "W_func")


def test_small_noise_costs_what_the_corrected_curvature_says(sequences):
    """½σ² Σ h E[noise²] over a class is its mean cost, where the Hessian is G.

    The directions are of one layer after the last mixing of tokens, at a model whose labels
    are its own guesses: there the residual has mean 0. So the expected loss under the model's
    own distribution, D(p ‖ p'), is what is measured: its Hessian is G exactly.
    """
    from paramscope.models.load import logits

    model = make_tiny()
    factors = kfac_factors(model, sequences, range(8), seed=0, batch_size=6)
    name = "model.decoder.layers.1.fc1"
    basis = {name: eigen(factors[name])}
    measured = corrected(model, sequences, basis, range(8, 400), seed=0, batch_size=6)
    labelled = label_directions(measured)
    mask = sequences.predicted
    with torch.no_grad():
        log_p = logits(model, sequences.ids)[:, :-1].log_softmax(-1)[mask]
    for label, code in CODES.items():
        chosen, sigma = DirectionSet(model, labelled, label), 1e-4
        of_class = labelled[name].labels == code
        predicted, cost = [], []
        for seed in range(30):
            source = NoiseSource(model, 0, seed)
            noise = chosen.noise(source, f"{name}.weight").square()
            predicted.append(
                float(0.5 * (noise[of_class] * measured[name].curvature[of_class]).sum())
            )
            both = []
            for sign in (1, -1):
                with chosen.perturbed(source, sign * sigma), torch.no_grad():
                    log_q = logits(model, sequences.ids)[:, :-1].log_softmax(-1)[mask]
                both.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
            cost.append(sum(both) / 2 / sigma**2)
        foretold, error = chosen.predicted(source)
        assert np.mean(predicted) == pytest.approx(foretold, rel=0.15)
        assert np.isnan(error)  # of a product of factors none is known
        # 30 seeds leave off-diagonal curvature some 5 percent; 392 draws a few more.
        assert np.mean(cost) == pytest.approx(np.mean(predicted), rel=0.15), label
        assert np.mean(cost) > 0


def test_the_stages_write_what_the_functions_give(tmp_path, monkeypatch, sequences):
    import paramscope.cli.inputs as inputs
    from paramscope.artifacts.tensors import read_tensors

    model = make_tiny()
    found = (model, sequences, torch.device("cpu"))
    monkeypatch.setattr(inputs, "model_and_text", lambda *args, **options: found)
    text = tmp_path / "calibration.parquet"
    pd.DataFrame({"doc_id": [], "text": []}).to_parquet(text)
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    plain, better, output = (tmp_path / f"{name}.pt" for name in ("plain", "better", "output"))
    kfac_stage(model_folder, text, plain, draws=2)
    stored = read_tensors(plain)
    factors = kfac_factors(model, sequences, range(2), seed=0, batch_size=16)
    for name, x in factors.items():
        torch.testing.assert_close(stored[f"A/{name}"], x.A, rtol=1e-12, atol=0)
        torch.testing.assert_close(stored[f"S/{name}"], x.S, rtol=1e-12, atol=0)
    assert stored["tokens"] == sequences.n_predicted
    assert not from_content(stored)
    directions_stage(plain, output)
    expected = label_directions({name: eigen(x) for name, x in factors.items()})
    for name, x in labelled_from_content(read_tensors(output)).items():
        torch.testing.assert_close(
            x.directions.curvature, expected[name].directions.curvature.float()
        )
        assert torch.equal(x.labels, expected[name].labels)
    kfac_stage(model_folder, text, better, draws=2, corrected=True)
    directions_stage(better, output, by="mass", share=0.6)
    along = corrected(
        model, sequences, {n: eigen(x) for n, x in factors.items()}, range(2, 4), seed=0,
        batch_size=16,
    )  # fmt: skip
    for name, x in labelled_from_content(read_tensors(output)).items():
        torch.testing.assert_close(
            x.directions.curvature, along[name].curvature.float(), rtol=1e-4, atol=1e-9
        )
        assert not (x.labels == CODES["W_both"]).any()
    with pytest.raises(ArtifactError, match="no Kronecker factors"):
        directions_stage(output, tmp_path / "none.pt")
