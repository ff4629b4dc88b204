"""Whole models: exact counts, nothing else touched, and what each layer is pruned by."""

import pandas as pd
import pyarrow as pa
import pytest
import torch

from paramscope.compression.gradual import stages
from paramscope.compression.layers import density_of, prunable, weight_of
from paramscope.compression.methods import NAMES, Options, prune
from paramscope.compression.one_layer import Ask
from paramscope.compression.schemas import LAYERS
from paramscope.compression.sparsegpt import sparsegpt
from paramscope.compression.statistics import SecondMoments
from paramscope.errors import RequestError
from paramscope.models.losses import mean_loss
from paramscope.models.sequences import padded
from tests.unit.conftest import make_tiny
from tests.unit.test_compression_stream import KINDS, inputs_of

CPU = torch.device("cpu")


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", NAMES)
def test_the_count_is_exact_and_nothing_else_is_touched(kind, method, sequences):
    model = make_tiny(kind).train()
    before = state(model)
    pruned = prune(model, sequences, method=method, density=0.3, batch_size=4)
    weights = {f"{name}.weight": module for name, module in prunable(model).items()}
    assert list(pruned.masks) == list(weights) == pruned.layers["tensor"].tolist()
    for row in pruned.layers.itertuples():
        mask, weight = pruned.masks[row.tensor], weights[row.tensor].weight
        p, d = weight_of(weights[row.tensor]).shape
        kept = p * round(0.3 * d) if method == "wanda" else round(0.3 * p * d)
        assert mask.shape == weight.shape
        assert int(mask.sum()) == row.n_kept == kept
        assert row.density == kept / row.n_weights
        assert torch.equal(weight != 0, mask)
        assert not weight[~mask].signbit().any()
        if method in ("magnitude", "wanda"):
            assert torch.equal(weight, before[row.tensor] * mask)
        else:
            assert 0 < row.loss < 1
    for name, value in model.state_dict().items():
        if name not in weights:
            assert torch.equal(value, before[name])
    assert model.training
    table = pa.Table.from_pandas(pruned.layers, schema=LAYERS, preserve_index=False)
    assert table["layer"].to_pylist() == sorted(table["layer"].to_pylist())
    assert set(table["layer"].to_pylist()) == {0, 1}
    assert (table["wall_s"].to_numpy() > 0).all()
    damped = method in ("sparsegpt", "gradual", "admm")
    assert pruned.layers["damping"].tolist() == pytest.approx(
        [0.01 if damped else float("nan")] * len(weights), nan_ok=True
    )


@pytest.mark.parametrize("method", NAMES)
def test_at_density_one_every_bit_stays(method, sequences):
    model = make_tiny("gpt2")
    before = state(model)
    pruned = prune(model, sequences, method=method, density=1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value.view(torch.int64), before[name].view(torch.int64))
    assert density_of(pruned.masks) == 1
    assert (pruned.layers["loss"] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("within_block", [True, False])
def test_a_layer_is_pruned_by_its_inputs_behind_what_is_pruned(kind, within_block, sequences):
    model = make_tiny(kind)
    dense = make_tiny(kind)
    options = Options(within_block=within_block)
    pruned = prune(model, sequences, method="sparsegpt", density=0.4, options=options, batch_size=4)
    mixed, layers = make_tiny(kind), prunable(model)
    for name, module in prunable(mixed).items():
        own = f"{name}.weight"
        number = pruned.layers.set_index("tensor")["layer"]
        state_of = dense.state_dict()
        earlier = list(layers)[: list(layers).index(name)]
        for other in earlier:
            if within_block or number[f"{other}.weight"] < number[own]:
                state_of[f"{other}.weight"] = layers[other].weight
        mixed.load_state_dict(state_of)
        (rows,) = inputs_of(mixed, {name: module}, sequences, 4).values()
        statistic = SecondMoments(rows.shape[1], CPU, torch.float64)
        statistic.add(rows)
        answer = sparsegpt(weight_of(module), statistic, Ask(0.4, "unstructured", None, options))
        torch.testing.assert_close(weight_of(layers[name]), answer.weight, rtol=1e-6, atol=1e-9)
        new = weight_of(layers[name])
        old = weight_of(prunable(dense)[name])
        lost = ((old - new) @ rows.T).square().sum() / (old @ rows.T).square().sum()
        told = pruned.layers.set_index("tensor")["loss"][own]
        assert told == pytest.approx(float(lost), rel=1e-8)


def test_losses_fall_with_what_a_method_knows(sequences):
    means = []
    for method in ("magnitude", "wanda", "sparsegpt", "admm"):
        model, options = make_tiny("opt", seed=3), Options(losses=True, within_block=False)
        layers = prune(
            model, sequences, method=method, density=0.5, options=options, batch_size=4
        ).layers
        means.append(layers["loss"][layers["layer"] == 0].mean())
    assert means == sorted(means, reverse=True)
    assert means[2] < 0.8 * means[0]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm"])
def test_two_of_four_along_the_inputs(method, sequences):
    model = make_tiny("gpt2")
    masks = prune(model, sequences, method=method, density=0.5, pattern="2:4").masks
    for mask in masks.values():
        assert (mask.T.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_stages_go_down_inside_each_other_with_recovery_between(sequences):
    assert stages(0.5) == [0.5]
    assert stages(0.7) == [0.7]
    assert stages(0.07) == [0.5, 0.3, 0.2, 0.1, 0.07]
    seen = []

    def recover(model, masks):
        seen.append({name: mask.clone() for name, mask in masks.items()})
        with torch.no_grad():
            for name, mask in masks.items():
                weight = model.get_parameter(name)
                weight.add_(0.05 * torch.randn_like(weight) * mask)

    torch.manual_seed(0)
    model = make_tiny("llama")
    pruned = prune(model, sequences, method="gradual", density=0.2, recover=recover)
    assert [density_of(masks) for masks in seen] == pytest.approx([0.5, 0.3], abs=0.005)
    for name, mask in pruned.masks.items():
        assert not (mask & ~seen[1][name]).any()
        assert not (seen[1][name] & ~seen[0][name]).any()
        assert int(mask.sum()) == round(0.2 * mask.numel())
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert (pruned.layers["density_asked"] == 0.2).all()


def test_calibration_text_is_drawn_by_the_seed(sequences):
    def weights(seed, samples):
        model = make_tiny("opt")
        options = Options(samples=samples)
        masks = prune(
            model, sequences, method="sparsegpt", density=0.3, options=options, seed=seed
        ).masks
        return torch.cat([model.get_parameter(name).flatten() for name in masks])

    assert torch.equal(weights(1, 3), weights(1, 3))
    assert not torch.equal(weights(1, 3), weights(2, 3))
    assert torch.equal(weights(1, None), weights(2, None))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "gradual", "admm"])
def test_a_single_short_text_and_half_precision_do(method):
    text = padded([[5, 9, 6]], ["short"])
    model = make_tiny("opt").to(torch.bfloat16)
    prune(model, text, method=method, density=0.5)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert mean_loss(model, text).isfinite()


def test_a_model_that_learned_something_loses_least_by_sparsegpt(sequences):
    from paramscope.models.training import Schedule, membership_judge, train

    losses = {}
    for method in ("magnitude", "sparsegpt"):
        model = make_tiny("opt", seed=1).float()
        schedule = Schedule(epochs=60, batch=6, learning_rate=1e-2, evaluate_every=60)
        train(model, sequences, schedule, membership_judge(sequences, sequences, 6), seed=0)
        dense = float(mean_loss(model, sequences).detach())
        prune(model, sequences, method=method, density=0.4)
        losses[method] = float(mean_loss(model, sequences).detach())
        assert losses[method] > dense
    assert losses["sparsegpt"] < losses["magnitude"]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"density": 0.0}, r"density 0: give the share of weights to keep, in \(0, 1\]"),
        ({"density": 1.5}, "density 1.5"),
        ({"density": float("nan")}, "density nan"),
        ({"method": "lottery"}, "no pruning method 'lottery'; known are magnitude, wanda"),
        ({"pattern": "1:4"}, "no pattern '1:4'; known are unstructured, 2:4"),
        ({"pattern": "2:4", "density": 0.3}, "2:4 keeps half of the weights"),
        ({"pattern": "2:4", "density": 0.5, "method": "gradual"}, "no stages"),
        (
            {"pattern": "2:4", "density": 0.5, "options": Options(blocksize=30)},
            "blocksize of whole fours, not 30",
        ),
        ({"options": Options(damping=0.0)}, "damping 0: each must be above 0"),
        ({"options": Options(samples=0)}, "0 calibration samples"),
    ],
)
def test_wrong_requests_are_refused_before_anything_changes(request_, told, sequences):
    model = make_tiny("opt")
    before = state(model)
    with pytest.raises(RequestError, match=told):
        prune(model, sequences, **{"method": "sparsegpt", "density": 0.5, **request_})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_that_cant_be_pruned_are_refused(sequences):
    with pytest.raises(RequestError, match="give one"):
        prune(make_tiny("opt"), None, method="wanda", density=0.5)
    assert len(prune(make_tiny("opt"), None, method="magnitude", density=0.5).masks) == 12
    model = make_tiny("opt")
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.weight[0, 3] = float("inf")
    with pytest.raises(RequestError, match=r"layers\.1\.fc2\.weight holds NaN or infinity"):
        prune(model, sequences, method="magnitude", density=0.5)
    model = make_tiny("opt")
    with torch.no_grad():
        model.model.decoder.layers[1].final_layer_norm.weight[0] = float("inf")
    with pytest.raises(RequestError, match=r"layers\.1\.fc1 gets inputs that are NaN"):
        prune(model, sequences, method="sparsegpt", density=0.5)
    model = make_tiny("llama")
    model.model.layers[0].mlp.down_proj = torch.nn.Linear(10, 8).double()
    with pytest.raises(RequestError, match="down_proj has 10 inputs"):
        prune(model, sequences, method="magnitude", density=0.5, pattern="2:4")


def test_the_table_has_a_row_a_weight(sequences):
    layers = prune(make_tiny("opt"), sequences, method="wanda", density=0.5).layers
    assert isinstance(layers, pd.DataFrame)
    assert layers["loss"].isna().all()
    assert layers["n_weights"].sum() == 2 * (4 * 64 + 2 * 128)
