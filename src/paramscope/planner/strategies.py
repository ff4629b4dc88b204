"""What a plan can estimate: each stage's own code, ready to run on real or fake tensors.

Every stage's model is in eval mode, as the stages have it, and its text is whole: all sequences
have full length. What makes no use of an option refuses it.

These run on fake tensors: inference, a gradient, training, masked finetuning, the DP-SGD methods
but Opacus', whose hooks make real tensors of their own, the draws of GGN, of Hutchinson and of
XDiag, Kronecker factors with the curvature along their directions, and pruning by magnitude,
Wanda and SparseGPT. A full Hessian and its blocks are closed forms: the
matrices alone. What NumPy holds is not counted, fake or real: Hutchinson's signs (a byte a
parameter) and, on a CPU, a copy of the scores that pruning ranks. Where pruning asks whether
scores are tied at its threshold, fake ones are: that takes four bytes a score more than a run
whose scores all differ.

`local_layers` looks for zeros in real gradients. On fake tensors a real model of the same layers,
but of width 8, answers; for a family that `models.SMALL` has not, no layer counts as local, and
the estimate is of the dearer way.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PretrainedConfig, PreTrainedModel

from paramscope.compression.layers import prunable
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.masked_step import take_step
from paramscope.compression.methods import prune
from paramscope.compression.patterns import kept_of
from paramscope.compression.schedule import Schedule
from paramscope.compression.signed_zeros import apply_masks
from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.hutchinson import hutchinson_draws
from paramscope.curvature.kfac import corrected, eigen, kfac_factors
from paramscope.curvature.passes import local_layers
from paramscope.curvature.xdiag import xdiag_draws
from paramscope.dpsgd.cases import Training, iterate
from paramscope.dpsgd.methods import CHECKPOINTED, CHUNKED, make_method, make_step
from paramscope.dpsgd.methods import Options as PrivateOptions
from paramscope.dpsgd.privacy import Privacy
from paramscope.errors import RequestError
from paramscope.models.blocks import checkpointed
from paramscope.models.losses import mean_loss, token_statistics
from paramscope.models.sequences import Sequences
from paramscope.names import DPSGD_METHODS
from paramscope.planner.models import new_model, shrunk, with_layers
from paramscope.planner.options import Options, check_values
from paramscope.planner.watchers import Watcher
from paramscope.tracker import TEMPORARIES

RATE = 1e-4
SUMS = "sums"  # the category of what a strategy adds up, and ends with

Told = Callable[[str], None]
Run = Callable[[PreTrainedModel, Sequences, Options, Watcher, Told], None]
PRUNED = ("magnitude", "wanda", "sparsegpt")
COMMON = ("dtype", "batch", "length")


@dataclass(frozen=True)
class Strategy:
    """Something to do with a model.

    Attributes:
        name: what it is called by.
        run: what does it, all of its steps; tells of its phases.
        takes: the options that it has beside dtype, batch and length.
        backward: whether gradients are made.
        copies: what it holds at its peak, in sizes of the weights, at the least.
    """

    name: str
    run: Run
    takes: tuple[str, ...] = ()
    backward: bool = True
    copies: int = 1


def _inference(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    told("forward")
    token_statistics(model, text, options.batch, moments=True)


def _gradient(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    tracker.watch(model)
    _to_gradient(model, text, options, told)


def _to_gradient(model: PreTrainedModel, text: Sequences, options: Options, told: Told) -> None:
    with checkpointed(model) if options.checkpointing else nullcontext():
        told("forward")
        loss = mean_loss(model, text)
        told("backward")
        loss.backward()


def _training(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    optimizer = _adamw(model, options)
    tracker.watch(model, optimizer)
    _make_states(model, optimizer, told)
    _to_gradient(model, text, options, told)
    told("step")
    optimizer.step()
    optimizer.zero_grad()


def _adamw(model: PreTrainedModel, options: Options) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=RATE,
        foreach=options.optimizer == "foreach",
        fused=options.optimizer == "fused",
    )


def _make_states(model: PreTrainedModel, optimizer: Optimizer, told: Told) -> None:
    """Take a step on gradients of 0: it makes the states that every later one has all along."""
    told("step")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _masked_finetune(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    masks = {
        f"{name}.weight": _mask(layer.get_parameter("weight"), options.density)
        for name, layer in prunable(model).items()
    }
    tracker.register(masks.values(), "masks")
    told("masks")
    apply_masks(model, masks)
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=RATE)
    tracker.watch(model, optimizer)
    schedule = Schedule(
        1, options.batch, learning_rate=RATE, checkpoint_activations=options.checkpointing
    )
    _make_states(model, optimizer, told)
    told("step")
    take_step(model, optimizer, text, RATE, schedule, None)


def _mask(weight: Tensor, density: float) -> Tensor:
    """A mask of a weight's shape that keeps its first values."""
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    mask.view(-1)[: kept_of(density, weight.numel())] = True
    return mask


def _private(
    model: PreTrainedModel,
    text: Sequences,
    options: Options,
    tracker: Watcher,
    told: Told,
    *,
    method: str,
) -> None:
    privacy = Privacy(1.0, 1.0, options.batch)
    asked = PrivateOptions(options.chunk_tokens, options.checkpointing)
    made = make_method(method, model, privacy, asked, tracker)
    optimizer = _adamw(model, options)
    step = make_step(made, model, optimizer, privacy, 0)
    tracker.watch(model, optimizer)
    _make_states(model, optimizer, told)
    iterate(Training(model, made, optimizer, step, text), told)


def _ggn(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    told("draws")
    local = None
    if isinstance(next(model.parameters()), FakeTensor):
        local_layers(model, text.ids[0], options.graph)  # as the stage looks; it sees nothing
        local = _local_of(model.config)
    found = ggn_draws(
        model,
        text,
        range(options.draws),
        seed=0,
        batch_size=options.batch,
        graph=options.graph,
        local=local,
    )
    _sums(tracker, found)


def _sums(tracker: Watcher, found: Sequence[Mapping[str, Tensor]]) -> None:
    """Tell apart what was summed up, tensors by name, from what was held for its sake."""
    tracker.register((value for one in found for value in one.values()), SUMS)


def _local_of(config: PretrainedConfig) -> set[str]:
    """A model's local layers, by a look at a small real model of the same layers."""
    small = shrunk(config)
    if small is None:
        return set()
    with _disable_current_modes():
        torch.manual_seed(0)
        real = new_model(with_layers(small, 2), torch.float32)
        found = local_layers(real, torch.arange(8) % 7)
    return {_moved(name, 2, int(config.num_hidden_layers)) for name in found}


def _moved(name: str, few: int, layers: int) -> str:
    """A name in the last of `few` blocks as it is in the last of `layers`."""
    return name.replace(f".{few - 1}.", f".{layers - 1}.")


def _hutchinson(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    told("draws")
    text = text[:2]  # one at a time is taken: a third would be like the second
    found = hutchinson_draws(model, text, range(options.draws), seed=0, batch_size=options.batch)
    _sums(tracker, found)


def _xdiag(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    told("draws")
    found = xdiag_draws(model, text, range(options.draws), seed=0, batch_size=options.batch)
    _sums(tracker, found)


def _kfac(
    model: PreTrainedModel, text: Sequences, options: Options, tracker: Watcher, told: Told
) -> None:
    engine: dict[str, Any] = {"seed": 0, "batch_size": options.batch, "graph": options.graph}
    told("factors")
    factors = kfac_factors(model, text, range(options.draws), **engine)
    told("directions")
    directions = {name: eigen(own) for name, own in factors.items()}
    told("curvature along them")
    found = corrected(model, text, directions, range(options.draws, 2 * options.draws), **engine)
    _sums(tracker, [vars(own) for own in (*factors.values(), *found.values())])


def _pruning(
    model: PreTrainedModel,
    text: Sequences,
    options: Options,
    tracker: Watcher,
    told: Told,
    *,
    method: str,
) -> None:
    told("pruning")
    with tracker.scope(TEMPORARIES):  # nothing is saved for a backward
        found = prune(model, text, method=method, density=options.density, batch_size=options.batch)
    tracker.register(found.masks.values(), "masks")


def _private_takes(method: str) -> tuple[str, ...]:
    takes = ["optimizer"]
    if method in CHECKPOINTED:
        takes.append("checkpointing")
    if method in CHUNKED:
        takes.append("chunk_tokens")
    return tuple(takes)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            Strategy("inference", _inference, backward=False),
            Strategy("gradient", _gradient, ("checkpointing",), copies=2),
            Strategy("training", _training, ("checkpointing", "optimizer"), copies=4),
            Strategy("masked_finetune", _masked_finetune, ("checkpointing", "density"), copies=2),
            *(
                Strategy(
                    f"dpsgd-{method}",
                    partial(_private, method=method),
                    _private_takes(method),
                    copies=4,
                )
                for method in DPSGD_METHODS
                if not method.startswith("opacus")
            ),
            Strategy("ggn", _ggn, ("draws", "graph"), copies=2),
            Strategy("hutchinson", _hutchinson, ("draws",), copies=3),
            Strategy("xdiag", _xdiag, ("draws",), copies=3),
            Strategy("kfac", _kfac, ("draws", "graph")),
            *(
                Strategy(
                    f"prune-{method}",
                    partial(_pruning, method=method),
                    ("density",),
                    backward=False,
                )
                for method in PRUNED
            ),
        )
    }
)
CLOSED_FORMS = ("full_hessian", "block_hessian")
NAMES = (*STRATEGIES, *CLOSED_FORMS)


def check(name: str, options: Options) -> None:
    """Refuse a strategy that is not known, and options that it can't have.

    Raises:
        RequestError: which, and what to give instead.
    """
    if name not in NAMES:
        raise RequestError(f"strategy '{name}' is not known; known are {', '.join(NAMES)}")
    check_values(options)
    takes = (*COMMON, *(STRATEGIES[name].takes if name in STRATEGIES else ()))
    default = Options()
    for field in fields(options):
        key = field.name
        if key not in takes and getattr(options, key) != getattr(default, key):
            able = [n for n, strategy in STRATEGIES.items() if key in strategy.takes]
            raise RequestError(
                f"strategy {name} has no option {key}; leave it out, or take {', '.join(able)}"
            )
