"""Noise in one weight at a time: the scales, the table, and what is drawn of it."""

import math

import numpy as np
import pytest
import torch

from paramscope.curvature.exact import exact_diagonal
from paramscope.errors import ArtifactError
from paramscope.figures.layer_responses import layer_responses
from paramscope.geometry.sparsity import unit_layers
from paramscope.response.noise import NoiseSource
from paramscope.response.sweep import Curvature, sweep
from paramscope.response.tensors import (
    AIM,
    LARGEST,
    TensorClasses,
    foresight,
    foretold_scales,
    tensor_table,
)
from tests.unit.conftest import make_tiny
from tests.unit.figure_checks import check_type, laid_out
from tests.unit.response_sweeps import random_judge, random_text


@pytest.fixture(scope="module")
def measured():
    """A tiny model's table, its responses, and the curvature that set the scales."""
    generator = torch.Generator().manual_seed(0)
    model, judge = make_tiny(), random_judge(generator, bootstrap=2)
    text = random_text(6, "calibration", generator)
    (diagonal,) = exact_diagonal(model, text, range(1), batch_size=6)
    diagonal = {name: value.abs() for name, value in diagonal.items()}
    curvature = Curvature(diagonal, {name: 0.1 * value for name, value in diagonal.items()})
    classes = TensorClasses(model)
    scales = foretold_scales(classes, NoiseSource(model, 0, 0), curvature)
    responses = sweep(
        model, judge, classes, sigmas=scales, seeds=range(3), seed=0, curvature=curvature
    )
    return tensor_table(responses), responses, scales, model


def test_scales_are_where_the_aim_is_foretold(measured):
    table, _, scales, model = measured
    assert set(scales) == {f"{layer}.weight" for layer in unit_layers(model)}
    free = table["sigma"] < LARGEST
    assert free.any()
    np.testing.assert_allclose(table.loc[free, "predicted_delta_log_ppl"], AIM, rtol=1e-9)
    assert (table.loc[~free, "predicted_delta_log_ppl"] < AIM).all()


def test_a_row_is_the_mean_over_seeds_of_the_mean_of_both_signs(measured):
    table, responses, _, _ = measured
    row = table.iloc[3]
    own = responses[responses["class"] == row["tensor"]]
    by_seed = [own.loc[own["seed"] == seed, "delta_loss_gap"].mean() for seed in range(3)]
    assert row["delta_loss_gap"] == pytest.approx(np.mean(by_seed))
    assert row["delta_loss_gap_se"] == pytest.approx(np.std(by_seed, ddof=1) / math.sqrt(3))
    assert abs(row["delta_loss_gap"]) > 0
    assert (row["layer"], row["kind"]) == (0, row["tensor"].split(".")[-2])


def test_foresight_counts_what_is_within_a_quarter(measured):
    table, *_ = measured
    made = table.iloc[:4].assign(
        predicted_delta_log_ppl=0.01, delta_log_ppl=[0.01, 0.0081, 0.0079, 0.02]
    )
    found = foresight(made)  # ratios 1, 1.23, 1.27, .5
    assert (found.n, found.close) == (4, 0.5)
    assert found.median_ratio == pytest.approx((1 + 0.01 / 0.0081) / 2)


def test_the_figure_shows_every_weight_in_its_layer(measured):
    table, *_ = measured
    figure = layer_responses(table, "tiny")
    check_type(laid_out({"layers": figure})["layers"], least=11)
    axes = figure.axes[1]
    shown = np.concatenate([c.lines[0].get_ydata() for c in axes.containers]).astype(float)
    expected = -table["delta_loss_gap"] / table["delta_log_ppl"]
    np.testing.assert_allclose(np.sort(shown), np.sort(expected))
    with pytest.raises(ArtifactError, match="no responses of weights"):
        layer_responses(table.iloc[:0], "tiny")
