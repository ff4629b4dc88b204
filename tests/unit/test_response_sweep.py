"""Noise goes into the class's weights alone and comes out to the last bit."""

import pandas as pd
import pytest
import torch
from scipy.stats import binom

from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.sparsity import unit_layers
from paramscope.models.load import logits
from paramscope.models.sequences import padded
from paramscope.response.classes import UnitClasses
from paramscope.response.comparisons import sign_flip_p
from paramscope.response.noise import NoiseSource, UnitSet
from paramscope.response.sweep import Curvature, sweep
from tests.unit.conftest import make_tiny
from tests.unit.response_sweeps import random_judge

FC1 = "model.decoder.layers.0.fc1.weight"
OUT = "model.decoder.layers.1.self_attn.out_proj.weight"


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def judge():
    return random_judge()


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_noise_is_in_the_classes_rows_alone_and_leaves_no_trace(kind):
    model = make_tiny(kind, tied=kind != "llama").float()
    layers = list(unit_layers(model))
    tensor, other = f"{layers[1]}.weight", f"{layers[-1]}.weight"
    units = UnitSet(model, {tensor: [0, 3], other: [1]})
    before, source = state(model), NoiseSource(model, 0, 0)
    with pytest.raises(RuntimeError), units.perturbed(source, 0.5):
        inside = state(model)
        raise RuntimeError  # restored even then
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = {name for name in before if not torch.equal(before[name], inside[name])}
    assert changed == units.rows.keys()
    energy = 0.0
    for name, rows in units.rows.items():
        difference = (inside[name] - before[name]).double()
        by_row = difference.T if name in units.transposed else difference
        others = [i for i in range(len(by_row)) if i not in rows.tolist()]
        assert not by_row[others].any()
        energy += float(by_row.square().sum())
    # Float32 weights of order 1: their rounding, 6e-8 each, against noise of order .5.
    assert energy == pytest.approx(0.25 * units.energy(source), rel=1e-5)


def test_noise_is_scaled_by_its_tensors_rms_and_shared_by_classes():
    model = make_tiny()
    source = NoiseSource(model, 0, 4)
    whole, part = UnitSet(model, {FC1: range(16)}), UnitSet(model, {FC1: [2, 5]})
    assert torch.equal(whole.noise(source, FC1)[[2, 5]], part.noise(source, FC1))
    again = NoiseSource(model, 0, 4).unit_noise(FC1)
    assert torch.equal(source.unit_noise(FC1), again)
    assert not torch.equal(NoiseSource(model, 0, 5).unit_noise(FC1), again)
    big = make_tiny("opt")
    draws = torch.cat([NoiseSource(big, 0, s).unit_noise(FC1).flatten() for s in range(40)])
    rms = float(big.get_parameter(FC1).detach().square().mean().sqrt())
    # 5,120 normals: their deviation is known to 1 percent (1/√(2n)), three of those allowed.
    assert float(draws.std()) == pytest.approx(rms, rel=0.03)


def test_unknown_units_are_refused():
    model = make_tiny()
    with pytest.raises(ArtifactError, match=r"fc1\.weight:16 is not in this model"):
        UnitSet(model, {FC1: [16]})
    with pytest.raises(ArtifactError, match=r"nothing\.weight is not in this model"):
        UnitSet(model, {"nothing.weight": [0]})


def everywhere(sigmas):
    """The same scales for every class."""
    return dict.fromkeys(("W_func", "W_sens", "W_both"), sigmas)


def partition():
    rows = [(f"{FC1}:{i}", "W_func" if i < 8 else "W_sens", 0) for i in range(16)]
    rows += [(f"{OUT}:{i}", "W_both", 0) for i in range(8)]
    return pd.DataFrame(rows, columns=["unit", "label", "draw"])


def two_draws():
    """A partition, and the same labels in reverse."""
    drawn = pd.concat([partition().assign(draw=d) for d in range(2)], ignore_index=True)
    drawn.loc[drawn["draw"] == 1, "label"] = list(reversed(partition()["label"]))
    return drawn


def test_no_noise_changes_no_bit_and_no_score(judge):
    model = make_tiny()
    frame = sweep(
        model,
        judge,
        UnitClasses(model, partition()),
        sigmas=everywhere([0.0]),
        seeds=range(2),
        seed=0,
    )
    for column in frame.columns[frame.columns.str.startswith("delta")]:
        assert (frame[column] == 0).all(), column
    assert (frame["noise_energy"] == 0).all()


def test_a_response_is_that_of_a_model_perturbed_by_hand(judge):
    model = make_tiny()
    frame = sweep(
        model,
        judge,
        UnitClasses(model, partition()),
        sigmas=everywhere([0.3]),
        seeds=range(1, 3),
        seed=9,
    )
    assert len(frame) == 3 * 2 * 2
    baseline = judge(model)
    other = make_tiny()
    noise = NoiseSource(make_tiny(), 9, 2)
    with torch.no_grad():
        for name in (FC1, FC1.replace("weight", "bias")):
            other.get_parameter(name)[8:] -= 0.3 * noise.unit_noise(name)[8:]
    outcome = judge(other)
    row = frame[(frame["class"] == "W_sens") & (frame["seed"] == 2) & (frame["sign"] == -1)].iloc[0]
    assert row["delta_log_ppl"] == pytest.approx(outcome.log_ppl - baseline.log_ppl, abs=1e-12)
    assert row["auc"] == outcome.auc
    assert row["delta_loss_gap"] == pytest.approx(outcome.loss_gap - baseline.loss_gap, abs=1e-12)
    assert abs(row["delta_log_ppl"]) > 1e-4  # and there is a response at all


def test_sharding_changes_nothing(judge):
    model = make_tiny()
    whole = sweep(
        model,
        judge,
        UnitClasses(model, partition()),
        sigmas=everywhere([0.3, 0.6]),
        seeds=range(3),
        seed=0,
    )
    parts = [
        sweep(
            model,
            judge,
            UnitClasses(model, partition()),
            sigmas=everywhere([0.3, 0.6]),
            seeds=seeds,
            seed=0,
        )
        for seeds in (range(1), range(1, 3))
    ]
    pd.testing.assert_frame_equal(whole, pd.concat(parts, ignore_index=True))


def test_each_noise_seed_takes_its_own_draw_of_a_random_partition(judge):
    drawn, model = two_draws(), make_tiny()
    frame = sweep(
        model, judge, UnitClasses(model, drawn), sigmas=everywhere([0.5]), seeds=range(3), seed=0
    )
    assert frame.groupby("seed")["draw"].unique().str[0].tolist() == [0, 1, 0]
    counts = frame[frame["class"] == "W_both"].groupby("draw")["n_units"].first().tolist()
    assert counts == [8, 8]
    energies = frame[(frame["class"] == "W_both") & (frame["sign"] == 1)].set_index("seed")
    assert energies["noise_energy"].nunique() == 3


def func_and_sens_swapped():
    """A partition, and the same with two of its classes swapped."""
    other = {"W_func": "W_sens", "W_sens": "W_func", "W_both": "W_both"}
    swapped = partition().assign(draw=1, label=partition()["label"].map(other))
    return pd.concat([partition(), swapped], ignore_index=True)


def test_levelled_draws_are_foretold_what_the_first_is(judge):
    """Draws of other sizes and curvature get the σ at which they should cost the same."""
    drawn, model = two_draws(), make_tiny()
    generator = torch.Generator().manual_seed(1)
    h = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    curvature = Curvature(h, {n: 0.1 * x for n, x in h.items()})
    given = {"sigmas": everywhere([0.5]), "seeds": range(4), "seed": 0, "curvature": curvature}
    classes = UnitClasses(model, drawn)
    plain = sweep(model, judge, classes, **given)
    level = sweep(model, judge, classes, level=True, **given)
    for label, rows in level.groupby("class"):
        assert rows["predicted_delta_log_ppl"].to_numpy() == pytest.approx(
            rows["predicted_delta_log_ppl"].iloc[0], rel=1e-9
        )
        before = plain[plain["class"] == label]
        ratio = rows["predicted_delta_log_ppl"] / before["predicted_delta_log_ppl"]
        energy = rows["noise_energy"] / before["noise_energy"]
        assert energy.to_numpy() == pytest.approx(ratio.to_numpy(), rel=1e-9)
        assert (energy[rows["draw"] == 0] == 1).all()
    assert plain.groupby(["class", "draw"])["predicted_delta_log_ppl"].first().nunique() == 3
    with pytest.raises(RequestError, match="give the diagonal"):
        sweep(model, judge, classes, level=True, **(given | {"curvature": None}))


@pytest.mark.parametrize("wrong", [-1.0, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [slice(8), slice(8, 16)])  # W_func in the first draw, the second
def test_draws_without_a_rise_foretold_cannot_be_levelled(wrong, place, judge):
    model = make_tiny()
    h = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    for name in (FC1, FC1.replace("weight", "bias")):
        h[name][place] = wrong
    curvature = Curvature(h, h)
    given = {"sigmas": {"W_func": [0.5]}, "seed": 0, "curvature": curvature}
    classes = UnitClasses(model, func_and_sens_swapped())
    with pytest.raises(RequestError, match=r"draws of W_func can't be levelled.*method ggn"):
        sweep(model, judge, classes, seeds=range(1, 2), level=True, **given)
    assert len(sweep(model, judge, classes, seeds=range(1, 2), **given)) == 2


def test_small_noise_costs_what_the_hessian_says(sequences):
    """½σ²·Σ noise-weighted h predicts the mean of ±, to fourth order in σ."""
    from paramscope.curvature.products import HessianProduct
    from paramscope.models.losses import mean_loss

    model = make_tiny()
    units = UnitSet(model, {FC1: range(16), OUT: range(8)})
    product = HessianProduct(model, sequences, batch_size=6)
    source, sigma = NoiseSource(model, 0, 0), 1e-3
    noise = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for name, rows in units.rows.items():
        noise[name][rows] = units.noise(source, name)
    flat = torch.cat([value.flatten() for value in noise.values()])
    predicted = 0.5 * sigma**2 * float(flat @ product(flat))
    losses = []
    for sign in (1, -1, 0):
        with units.perturbed(source, sign * sigma), torch.no_grad():
            losses.append(float(mean_loss(model, sequences)))
    measured = (losses[0] + losses[1]) / 2 - losses[2]
    assert measured == pytest.approx(predicted, rel=1e-3)


def mean_responses(model, judge, partition, seed):
    """Δlog PPL of W_func and of W_sens, the mean of ± of each of 8 noise seeds."""
    frame = sweep(
        model,
        judge,
        UnitClasses(model, partition),
        sigmas=everywhere([0.3]),
        seeds=range(8),
        seed=seed,
    )
    means = frame.groupby(["class", "seed"])["delta_log_ppl"].mean()
    return means["W_func"].to_numpy(), means["W_sens"].to_numpy()


def test_random_partitions_stay_within_their_null(judge):
    """Studies of random halves find a difference as rarely as their level says.

    At 8 seeds the sign-flip test's attainable level below .05 is 6/128. Over 30 studies the
    count of findings is binomial; more than 6 has a probability under 1e-3.
    """
    assert binom.sf(6, 30, 6 / 128) < 1e-3
    model, generator = make_tiny(), torch.Generator().manual_seed(0)
    found = 0
    for study in range(30):
        halves = [torch.randperm(16, generator=generator) < 8 for _ in range(8)]
        rows = [
            (f"{FC1}:{row}", "W_func" if first[row] else "W_sens", draw)
            for draw, first in enumerate(halves)
            for row in range(16)
        ]
        drawn = pd.DataFrame(rows, columns=["unit", "label", "draw"])
        func, sens = mean_responses(model, judge, drawn, seed=study)
        found += sign_flip_p(func - sens, seed=0) < 0.05
    assert found <= 6


def test_a_class_that_hardly_counts_is_found(judge):
    model = make_tiny()
    with torch.no_grad():  # fc2 all but ignores the neurons of W_func
        model.get_parameter("model.decoder.layers.0.fc2.weight")[:, :8] *= 0.02
    func, sens = mean_responses(model, judge, partition(), seed=0)
    # At random weights the loss can curve either way, so it is the responses' sizes that differ.
    assert sign_flip_p(abs(func) - abs(sens), seed=0) == 2 / 2**8
    assert abs(func).max() < 0.1 * abs(sens).max()


def energy_of(frame, label):
    rows = frame[frame["class"] == label]
    return float(rows["noise_energy"].mean())


def test_kinds_of_noise_differ_in_their_deviation(judge):
    model = make_tiny()
    rms = float(model.get_parameter(FC1).detach().square().mean().sqrt())
    absolute, relative = (NoiseSource(model, 0, 3, kind) for kind in ("absolute", "relative"))
    torch.testing.assert_close(rms * absolute.unit_noise(FC1), relative.unit_noise(FC1))
    whole = UnitSet(model, {FC1: range(16)})
    # Σ z² of 16 · 9 normals: within 4 of its deviations, √(2 · 144).
    assert whole.expected_energy(absolute) == 144
    assert abs(whole.energy(absolute) - 144) < 4 * 288**0.5
    scales = everywhere([0.2])
    frames = {
        kind: sweep(
            model,
            judge,
            UnitClasses(model, partition()),
            sigmas=scales,
            seeds=range(6),
            seed=0,
            kind=kind,
        )
        for kind in ("relative", "equal_energy")
    }
    ratios = {
        kind: energy_of(frame, "W_both") / energy_of(frame, "W_func")
        for kind, frame in frames.items()
    }
    assert not 0.8 < ratios["relative"] < 1.25
    # Six seeds' means of Σ z² over 72 and more weights: to some 10 percent.
    assert ratios["equal_energy"] == pytest.approx(1, rel=0.2)
    assert set(frames["equal_energy"]["noise"]) == {"equal_energy"}


def test_curvature_foretells_the_mean_rise_of_the_loss():
    """½ σ² Σ h c² with the exact Hessian's diagonal, against the mean over antithetic noise."""
    from paramscope.curvature.exact import exact_diagonal
    from paramscope.models.losses import mean_loss
    from tests.unit.test_ggn import flat

    generator = torch.Generator().manual_seed(1)
    text = padded(
        [torch.randint(4, 24, (8,), generator=generator).tolist() for _ in range(4)], list("abcd")
    )
    model = make_tiny()
    (diagonal,) = exact_diagonal(model, text, range(1), batch_size=4)
    assert flat(diagonal).abs().sum() > 0
    error = {name: 0.1 * value.abs() for name, value in diagonal.items()}
    units = UnitSet(model, {OUT: range(8)})
    source = NoiseSource(model, 0, 0)
    change, se = units.predicted(source, diagonal, error)
    names = (OUT, OUT.replace("weight", "bias"))
    by_hand = sum(0.5 * source.deviation(n) ** 2 * float(diagonal[n].sum()) for n in names)
    assert change == pytest.approx(by_hand, rel=1e-12)
    parts = [0.5 * source.deviation(n) ** 2 * error[n] for n in names]
    assert se == pytest.approx(float(sum(p.square().sum() for p in parts)) ** 0.5, rel=1e-12)
    base, rises = float(mean_loss(model, text)), []
    scale = 0.02
    for number in range(150):
        noise = NoiseSource(model, 0, number)
        pair = []
        for sign in (-1, 1):
            with torch.no_grad(), units.perturbed(noise, sign * scale):
                pair.append(float(mean_loss(model, text)) - base)
        rises.append(sum(pair) / 2)
    measured = torch.tensor(rises)
    error_of_mean = float(measured.std() / 150**0.5)
    assert abs(float(measured.mean()) - scale**2 * change) < 4 * error_of_mean
    assert error_of_mean < 0.25 * abs(scale**2 * change)  # and that says something


def test_directions_are_swept_like_units(judge):
    """The same stages take eigen-directions: classes by curvature, in ranges and sweep alike."""
    from paramscope.curvature.kfac import eigen, kfac_factors
    from paramscope.geometry.directions import label_directions
    from paramscope.response.classes import DirectionClasses
    from paramscope.response.ranges import find_ranges

    model = make_tiny()
    text = padded([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]], ["a", "b"])
    factors = kfac_factors(model, text, range(1), seed=0, batch_size=2)
    labelled = label_directions({name: eigen(one) for name, one in factors.items()})
    classes = DirectionClasses(model, labelled)
    before = state(model)
    with torch.no_grad():
        z = logits(model, text.ids)

    def moved(perturbed):  # grows like σ², as a trained model's log perplexity does
        with torch.no_grad():
            return float((logits(perturbed, text.ids) - z).square().mean())

    found = find_ranges(model, moved, classes, kind="relative", seeds=range(1), seed=0)
    assert all(one.reached for one in found.values())
    assert set(found) == {"W_func", "W_sens", "W_both"}
    assert found["W_func"].sigma_low < found["W_sens"].sigma_low  # steep directions cost more
    frame = sweep(model, judge, classes, sigmas=everywhere([0.3]), seeds=range(2), seed=0)
    assert (frame.groupby("class")["delta_log_ppl"].mean().abs() > 0).all()
    sizes = frame.groupby("class")["n_parameters"].first()
    total = sum(
        value.numel() for n, value in before.items() if n.removesuffix(".weight") in labelled
    )
    assert sizes.sum() == total
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
