"""A method on a workload, made ready to take steps."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from paramscope.dpsgd.methods import Method, Options, Step, make_method, make_step
from paramscope.dpsgd.privacy import Privacy
from paramscope.dpsgd.workloads import Workload, new_batch, new_model
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.tracker import BUFFERS, MemoryTracker


@dataclass(frozen=True)
class Case:
    """What is profiled.

    Attributes:
        workload: model and batch.
        method: name of the clipping method.
        options: its options.
        privacy: C and σ; the workload's batch is the logical one.
        dtype: the weights' format.
        trainable: regular expression of the names of parameters that are trained.
        seed: of weights, tokens and noise.
    """

    workload: Workload
    method: str
    options: Options
    privacy: Privacy
    dtype: torch.dtype
    trainable: str
    seed: int


@dataclass
class Training:
    """All that takes steps.

    Attributes:
        model: the workload's model.
        method: what runs it forward and back.
        optimizer: AdamW on the trained parameters.
        step: what ends a logical step.
        batch: the workload's.
    """

    model: PreTrainedModel
    method: Method
    optimizer: torch.optim.Optimizer
    step: Step
    batch: Sequences


def _silent(name: str) -> None:
    """Tell nobody."""


def build(
    case: Case,
    device: torch.device,
    told: Callable[[str], None] = _silent,
    tracker: MemoryTracker | None = None,
) -> Training:
    """Model, method and optimizer of a case; `told` is told of each as it is there.

    Raises:
        RequestError: the method can't do the workload, or nothing would be trained.
    """
    model = new_model(case.workload, case.dtype, device, case.seed)
    _choose_trained(model, case.trainable)
    batch = new_batch(case.workload, device, case.seed)
    if tracker is not None:
        tracker.register(model.parameters()).register(model.buffers(), BUFFERS)
        tracker.register([batch.ids, batch.lengths])
    told("0_model_loaded")
    method = make_method(case.method, model, case.privacy, case.options, tracker)
    told("1_wrapped_with_dp")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    step = make_step(method, model, optimizer, case.privacy, case.seed)
    if tracker is not None:
        tracker.watch(model, optimizer)
    told("2_optimizer_created")
    return Training(model, method, optimizer, step, batch)


def iterate(training: Training, told: Callable[[str], None] = _silent) -> None:
    """One logical step on the workload's batch; `told` is told of each phase's begin and end."""
    told("before_forward")
    training.method.forward(training.batch)
    told("after_forward")
    training.method.backward()
    told("after_backward")
    training.step.step()
    training.step.zero_grad()
    told("after_step")


def _choose_trained(model: PreTrainedModel, pattern: str) -> None:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise RequestError(f"trainable '{pattern}' is no regular expression: {error}") from error
    names = [name for name, _ in model.named_parameters()]
    if not any(wanted.search(name) for name in names):
        raise RequestError(f"trainable '{pattern}' names no parameter; one is {names[0]}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(wanted.search(name)))
