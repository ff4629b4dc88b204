"""Optimizer steps on pruned weights: MaskedAdamW beside AdamW on whole, masked tensors.

The dense one is torch's own: gradients times the mask, a step, weights times the mask. Each of
its implementations ("for_loop", "foreach", and "fused", one kernel a weight) takes its turn on
the same state. All contenders step in turn, so that the machine's other work falls on all alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from tqdm import trange
from transformers import PreTrainedModel

from paramscope.compression.layers import Masks
from paramscope.compression.masked_adamw import MaskedAdamW
from paramscope.compression.methods import prune
from paramscope.compression.signed_zeros import apply_masks
from paramscope.tracker import MemoryTracker
from tests.benchmarks.goals import quartiles

IMPLEMENTATIONS = {
    "for_loop": {"foreach": False, "fused": None},
    "foreach": {"foreach": True, "fused": None},
    "fused": {"foreach": False, "fused": True},
}
SETTINGS = {"lr": 1e-3, "weight_decay": 0.01}


class Dense:
    """AdamW on whole tensors whose pruned values stay 0."""

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Masks) -> None:
        self.weights = {name: nn.Parameter(w.detach().clone()) for name, w in weights.items()}
        self.masks = masks
        self.optimizer = torch.optim.AdamW(self.weights.values(), **SETTINGS)
        for name, weight in weights.items():
            self.weights[name].grad = weight.grad  # masking it twice changes nothing

    @torch.no_grad()
    def step(self, implementation: str) -> None:
        """A masked step."""
        self.optimizer.param_groups[0].update(IMPLEMENTATIONS[implementation])
        for name, mask in self.masks.items():
            self.weights[name].grad.mul_(mask)
        self.optimizer.step()
        for name, mask in self.masks.items():
            self.weights[name].mul_(mask)

    @property
    def state_bytes(self) -> int:
        """What the state of all parameters holds."""
        states = self.optimizer.state.values()
        return sum(value.nbytes for state in states for value in state.values())


class Masked:
    """`MaskedAdamW` on the same weights."""

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Masks) -> None:
        self.weights = weights
        self.optimizer = MaskedAdamW(weights.items(), masks, **SETTINGS)

    def step(self) -> None:
        """A step, with its gradients masked as clipping needs them."""
        self.optimizer.mask_gradients()
        self.optimizer.step()


def compare(
    model: PreTrainedModel,
    density: float,
    scopes: Sequence[str],
    threads: Sequence[int],
    repeats: int,
) -> list[dict]:
    """A row a scope, "pruned" for the pruned weights alone or "all", and count of threads.

    The model, which is pruned by magnitude, gets random gradients.
    """
    masks = prune(model, None, method="magnitude", density=density).masks
    apply_masks(model, masks)
    torch.manual_seed(0)
    rows = []
    for scope in scopes:
        named = model.named_parameters()
        weights = {name: w for name, w in named if scope == "all" or name in masks}
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        ours, dense = Masked(weights, masks), Dense(weights, masks)
        about = {"scope": scope, "values": sum(w.numel() for w in weights.values())}
        about["identical"] = _identical(ours, dense)
        about |= _memory(ours, dense)
        for count in threads:
            torch.set_num_threads(count)
            rows.append(about | {"threads": count} | _times(ours, dense, repeats))
    return rows


def _identical(ours: Masked, dense: Dense) -> bool:
    """Whether three steps of both end at the same weights, bit by bit but for a zero's sign."""
    for _ in range(3):
        ours.step()
        dense.step("for_loop")
    return all(torch.equal(weight, dense.weights[name]) for name, weight in ours.weights.items())


def _memory(ours: Masked, dense: Dense) -> dict:
    """Bytes of state, and the most that a step holds beside what lasts."""
    state = ours.optimizer.state_bytes
    found = {"state_bytes": state, "dense_state_bytes": dense.state_bytes}
    found["state_ratio"] = state / dense.state_bytes
    found["step_peak_bytes"] = _passing(ours.step)
    dense_peaks = {name: _passing(partial(dense.step, name)) for name in IMPLEMENTATIONS}
    return found | {"dense_step_peak_bytes": dense_peaks}


def _passing(step: Callable[[], object]) -> int:
    with MemoryTracker() as tracker:
        step()
    return tracker.peak_bytes


def _times(ours: Masked, dense: Dense, repeats: int) -> dict:
    """Seconds a step, and how ours compares: median and quartiles over the turns."""
    steps = {"masked": ours.step} | {n: partial(dense.step, n) for n in IMPLEMENTATIONS}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for turn in trange(repeats + 2, desc="steps"):  # the first two warm up
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            started = time.perf_counter()
            steps[name]()
            taken[name].append(time.perf_counter() - started)
    seconds = {name: np.array(found[2:]) for name, found in taken.items()}
    ratios = {name: quartiles(seconds["masked"] / seconds[name]) for name in IMPLEMENTATIONS}
    return {"step_s": {n: quartiles(s) for n, s in seconds.items()}, "step_ratio": ratios}
