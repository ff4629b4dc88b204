"""The curvature stages on input that is wrong: a clear error, or the right answer anyway."""

import pytest
import torch
from torch import nn

from paramscope.artifacts.tensors import read_tensors
from paramscope.cli.curvature import curvature
from paramscope.cli.curvature_blocks import curvature_blocks
from paramscope.cli.curvature_draws import curvature_draws
from paramscope.errors import ArtifactError, DeviceError, RequestError
from tests.faults.conftest import TEXT, broken, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "calibration.parquet", TEXT[:6])


def test_weights_that_are_not_finite_are_named(folder, text, tmp_path):
    def spoil(model):
        model.model.decoder.layers[1].fc2.weight[3, 5] = torch.inf

    with pytest.raises(ArtifactError, match=r"layers\.1\.fc2\.weight holds NaN or infinity"):
        curvature_draws(broken(folder, tmp_path, spoil), text, tmp_path / "draws.pt")


def test_activations_that_overflow_are_told(folder, text, tmp_path):
    """Finite weights whose logits are not: no NaN gets into a result."""

    def inflate(model):
        model.model.decoder.final_layer_norm.weight.fill_(3e38)

    with pytest.raises(ArtifactError, match=r"not finite"):
        curvature_draws(broken(folder, tmp_path, inflate), text, tmp_path / "draws.pt")


def test_an_empty_calibration_set_is_told(folder, tmp_path):
    empty = write_text(tmp_path / "empty.parquet", [])
    with pytest.raises(RequestError, match="the split is empty"):
        curvature_draws(folder, empty, tmp_path / "draws.pt")


def test_a_window_longer_than_the_models_positions_is_told(folder, tmp_path):
    long = write_text(tmp_path / "long.parquet", [" ".join(TEXT)] * 3)
    with pytest.raises(
        RequestError, match="sequences of 20 tokens, but the model has 16 positions"
    ):
        curvature_draws(folder, long, tmp_path / "draws.pt", length=20)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"method": "hessian"}, "known are ggn, hutchinson, xdiag, exact, finite_difference"),
        ({"method": "finite_difference"}, "float64"),
        ({"method": "xdiag", "probes": 5}, "even"),
        ({"method": "hutchinson", "graph": "layerwise"}, "of method ggn"),
        ({"memory_gb": 0.01}, "hold .* GB before any work"),
    ],
)
def test_requests_that_can_not_be_met_say_why(folder, text, tmp_path, request_, words):
    from paramscope.cli.options import Graph

    if "graph" in request_:
        request_ = request_ | {"graph": Graph(request_["graph"])}
    kind = DeviceError if "memory_gb" in request_ else RequestError
    with pytest.raises(kind, match=words):
        curvature_draws(folder, text, tmp_path / "draws.pt", **request_)
    assert not (tmp_path / "draws.pt").exists()


def test_blocks_of_no_unit_are_refused(folder, text, tmp_path):
    with pytest.raises(RequestError, match="no unit to make a block of"):
        curvature_blocks(folder, text, tmp_path / "blocks.pt")


def test_blocks_state_their_size_first(folder, text, tmp_path, capsys):
    unit = "model.decoder.layers.0.fc1.weight:7"
    curvature_blocks(folder, text, tmp_path / "blocks.pt", unit=[unit], draws=2)
    said = capsys.readouterr().out
    assert said.startswith("1 blocks of up to 17 x 17, 2 draws: 0.0 MB\n")
    block = read_tensors(tmp_path / "blocks.pt")[f"block/{unit}"]
    assert block.shape == (17, 17)
    # A sum of outer products has no negative eigenvalue but for float32's rounding.
    assert torch.linalg.eigvalsh(block.double()).min() > -1e-6 * block.diagonal().max()
    assert block.diagonal().min() > 0


def test_a_shard_draws_nothing_once_the_error_is_small(folder, text, tmp_path, capsys):
    shards = [tmp_path / f"{first}.pt" for first in (0, 2, 4)]
    for first, shard in zip((0, 2), shards, strict=False):
        curvature_draws(folder, text, shard, first=first, draws=2)
    error = merged_error(shards[:2])
    for tolerance, drawn in ((0.99 * error, 6), (1.01 * error, 4)):
        curvature_draws(
            folder, text, shards[2], first=4, draws=2, previous=shards[:2], tolerance=tolerance
        )
        curvature(tmp_path / "d.pt", shard=shards, output_summary=tmp_path / "summary.parquet")
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{drawn} draws of ")


def merged_error(shards):
    """The worst tensor's mean standard error over mean, from the files, by hand."""
    from paramscope.curvature.moments import from_content

    parts = [from_content(read_tensors(shard)) for shard in shards]
    (a, b) = parts
    worst = 0.0
    largest = max(float((a.mean[n] + b.mean[n]).mean() / 2) for n in a.mean)
    for name in a.mean:
        mean = (a.mean[name] + b.mean[name]) / 2
        squares = a.squares[name] + b.squares[name] + (a.mean[name] - b.mean[name]) ** 2
        error = (squares / (4 * 3)).sqrt().mean()
        if float(mean.mean()) > 1e-10 * largest:
            worst = max(worst, float(error / mean.mean()))
    return worst


def test_a_head_with_a_bias_goes_through_the_stages(folder, text, tmp_path, monkeypatch):
    import paramscope.models.load as load

    made = load.load_model

    def biased(*arguments):
        model = made(*arguments)
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, len(model.lm_head.weight)))
        return model

    monkeypatch.setattr(load, "load_model", biased)
    curvature_draws(folder, text, tmp_path / "draws.pt", draws=2)
    curvature(
        tmp_path / "d.pt", shard=[tmp_path / "draws.pt"], output_summary=tmp_path / "s.parquet"
    )
    diagonal = read_tensors(tmp_path / "d.pt")
    bias = diagonal["lm_head.bias"]
    # Σ_t p(1 − p) / W over the vocabulary: between 0 and 1 − 1/V, and no chance in it.
    assert 0.9 < float(bias.sum()) < 1 - 1 / 290
    assert float(diagonal["standard_error/lm_head.bias"].max()) < 1e-7
