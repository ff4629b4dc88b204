"""The compression stages on input that is wrong, and a finetuning that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table
from paramscope.cli.finetune import finetune
from paramscope.cli.prune import prune
from paramscope.compression.compact import FILE
from paramscope.errors import ArtifactError, RequestError
from tests.faults.conftest import TEXT, broken, write_text

WORDS = TEXT * 4


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.parquet", WORDS)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"density": 0.0}, "density 0"),
        ({"density": 1.5}, "density 1.5"),
        ({"method": "best"}, "no pruning method 'best'; known are magnitude, wanda"),
        ({"pattern": "1:4"}, "no pattern '1:4'"),
        ({"pattern": "2:4", "density": 0.1}, "2:4 keeps half"),
        ({"method": "gradual", "density": 0.1, "recovery_steps": 3}, "give --text"),
    ],
)
def test_requests_that_make_no_sense_are_refused(asked, told, folder, text, tmp_path):
    with pytest.raises(RequestError, match=told):
        prune(folder, tmp_path / "pruned", text, length=16, **asked)
    assert not (tmp_path / "pruned").exists()


def test_a_linear_layer_that_is_shared_is_refused(folder, text, tmp_path):
    """Stored once and tied again on loading, as transformers ties an embedding and a head."""
    from paramscope.compression.methods import prune as prune_layers
    from paramscope.models.load import load_model

    model = load_model(folder, torch.device("cpu"))
    first, second = model.model.decoder.layers
    second.fc1.weight = first.fc1.weight
    with pytest.raises(RequestError, match=r"fc1\.weight is also .*fc1\.weight: a shared weight"):
        prune_layers(model, None, method="magnitude", density=0.5)


def test_weights_and_activations_that_are_not_finite_are_told(folder, text, tmp_path):
    def spoil(model):
        model.model.decoder.layers[1].fc2.weight[3, 5] = torch.nan

    def inflate(model):
        model.model.decoder.layers[0].self_attn_layer_norm.weight.fill_(3e38)

    with pytest.raises(ArtifactError, match=r"layers\.1\.fc2\.weight holds NaN"):
        prune(broken(folder, tmp_path, spoil), tmp_path / "pruned", text, length=16)
    (tmp_path / "broken").rename(tmp_path / "before")
    with pytest.raises(RequestError, match="NaN, infinite or too large"):
        prune(broken(folder, tmp_path, inflate), tmp_path / "pruned", text, length=16)
    assert not (tmp_path / "pruned").exists()


def test_calibration_text_of_too_low_a_rank_will_do(folder, tmp_path):
    """Two tokens' inputs for layers 32 wide: damping makes up for the rank, and says how much."""
    short = write_text(tmp_path / "short.parquet", ["the"])
    prune(folder, tmp_path / "pruned", short, density=0.5, length=3)
    layers = read_table(tmp_path / "pruned/layers.parquet")
    assert (layers["n_kept"] == layers["n_weights"] / 2).all()
    assert (layers["damping"] >= 0.01).all()
    assert layers["loss"].between(0, 1).all()


def test_density_one_leaves_every_bit(folder, text, tmp_path):
    from safetensors.torch import load_file

    from paramscope.cli.expand import expand

    prune(folder, tmp_path / "pruned", text, density=1.0, length=16)
    expand(tmp_path / "pruned", tmp_path / "plain")
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "plain", folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def trained(folder, text, output, **more):
    given = {"epochs": 2, "batch": 4, "max_steps": 40, "learning_rate": 1e-3, "length": 16}
    finetune(
        folder, output, output.with_suffix(".parquet"), text, text, text,
        save_every=2, **(given | more),
    )  # fmt: skip


def test_a_checkpoint_that_is_missing_or_dense_is_no_pruned_model(folder, text, tmp_path):
    """What made an older pipeline train the dense model in silence."""
    for wrong in (tmp_path / "nothing", folder):
        with pytest.raises(ArtifactError):
            trained(wrong, text, tmp_path / "finetuned")
        assert not (tmp_path / "finetuned").exists()


def test_more_recovery_than_steps_in_all_is_refused(folder, text, tmp_path):
    prune(
        folder, tmp_path / "pruned", text, method="gradual", density=0.1, recovery_steps=3,
        text=text, length=16,
    )  # fmt: skip
    assert read_record(tmp_path / "pruned/pruned.json")["recovery_steps"] == 9
    with pytest.raises(RequestError, match="9 steps were taken between"):
        trained(tmp_path / "pruned", text, tmp_path / "finetuned", max_steps=9)


def test_a_killed_finetuning_ends_as_if_it_never_was(folder, text, tmp_path):
    """SIGKILL in the middle of an epoch; the same bytes come of it as without."""
    prune(folder, tmp_path / "pruned", text, density=0.3, length=16)

    def command(output):
        return [
            sys.executable, "-m", "paramscope", "finetune", str(tmp_path / "pruned"), str(output),
            "--output-epochs", str(output.with_suffix(".parquet")), "--text", str(text),
            "--validation", str(text), "--evaluation", str(text), "--epochs", "2",
            "--batch", "4", "--max-steps", "40", "--learning-rate", "1e-3", "--length", "16",
            "--save-every", "2",
        ]  # fmt: skip

    # a process of its own, too: other tests may have chosen this one's attention kernel
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, env=os.environ)
    output = tmp_path / "killed"
    state = tmp_path / ".killed.state.pt"
    process = subprocess.Popen(command(output), stderr=subprocess.DEVNULL, env=os.environ)
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert state.exists()
    assert not output.exists()
    subprocess.run(command(output), check=True, capture_output=True, env=os.environ)
    assert (output / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert not state.exists()
    told = ["epoch", "step", "perplexity", "validation_perplexity", "training_loss", "best"]
    ours, theirs = (read_table(tmp_path / f"{n}.parquet") for n in ("killed", "whole"))
    assert ours[told].equals(theirs[told])
