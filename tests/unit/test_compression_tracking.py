"""Whoever follows a finetuning is told every step; a package that isn't there is named."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from paramscope.compression.finetune import Step
from paramscope.compression.tracking import SHOWN, tracker
from paramscope.errors import RequestError

STEPS = [Step(n, 1, 5 - 0.5 * n, 0.25 * n, 0.125 / n, 100.0 - n) for n in (1, 2, 3)]
EXPECTED = {name: [(s.step, getattr(s, name)) for s in STEPS] for name in SHOWN}


class Writer:
    """Notes what a SummaryWriter is told."""

    made: list["Writer"]

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.told, self.flushed = folder, purge_step, {}, 0
        type(self).made.append(self)

    def add_scalar(self, name, value, step):
        self.told.setdefault(name, []).append((step, value))

    def flush(self):
        self.flushed = sum(map(len, self.told.values()))


@pytest.fixture
def writers(monkeypatch):
    """All writers that are made, in place of TensorBoard's."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter, Writer.made = Writer, []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


@pytest.fixture
def logged(monkeypatch):
    """All that W&B is told, in place of its package: projects, then values by step."""
    told, module = [], ModuleType("wandb")

    def init(project):
        told.append(project)
        return module

    module.init = init
    module.log = lambda values, step: told.append((step, values))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_nobody_follows_unless_asked_to():
    assert tracker(None, None) is None


def test_each_is_told_every_step_and_keeps_it_at_once(writers, logged, tmp_path):
    tell = tracker(tmp_path / "board", "pruning")
    assert logged == ["pruning"]
    for n, step in enumerate(STEPS, start=1):
        tell(step)
        assert writers[0].flushed == n * len(SHOWN)  # so a killed run's curves are whole
    [writer] = writers
    assert writer.folder == str(tmp_path / "board")
    assert writer.told == EXPECTED
    assert logged[1:] == [(s.step, {name: getattr(s, name) for name in SHOWN}) for s in STEPS]


def test_a_run_that_goes_on_hides_the_steps_that_it_takes_again(writers, tmp_path):
    for first in (0, 1):
        tell = tracker(tmp_path, None)
        for step in STEPS[first:]:
            tell(step)
    assert [writer.purge_step for writer in writers] == [1, 2]


def test_tensorboard_reads_what_was_told(tmp_path):
    if find_spec("tensorboard") is None:
        with pytest.raises(RequestError, match="TensorBoard is not installed"):
            tracker(tmp_path, None)
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell = tracker(tmp_path, None)
    for step in STEPS:
        tell(step)
    tell = tracker(tmp_path, None)
    tell(STEPS[2])  # killed and gone on with: its last step once more
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(SHOWN)
    for name in SHOWN:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        # Kept in float32, whose rounding is 6e-8 of a value at most.
        assert read == [(step, pytest.approx(value, rel=1e-6)) for step, value in EXPECTED[name]]


@pytest.mark.parametrize(
    ("package", "name", "asked"),
    [
        ("torch.utils.tensorboard", "TensorBoard", ("board", None)),
        ("wandb", "Weights & Biases", (None, "pruning")),
    ],
)
def test_a_missing_package_is_named_with_how_to_have_it(package, name, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match=rf"{name}.*pip install 'paramscope\[tracking\]'"):
        tracker(*asked)


def test_a_folder_of_its_runs_is_not_taken_for_wandb(monkeypatch):
    """A folder `wandb`, where W&B keeps runs, is imported as a package of nothing."""
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(RequestError, match="Weights & Biases is not installed"):
        tracker(None, "pruning")
