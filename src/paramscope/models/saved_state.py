"""What a training that was cut off goes on from: its identity, and the states it hangs on."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def fingerprint(settings: Any, tensors: Iterable[Sequence[Tensor]]) -> str:
    """SHA-256 of all that decides a training: settings that JSON can hold, and tensors in groups.

    A group is told from its neighbours by the number of its tensors, so moving a tensor from
    one to the next gives another digest.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for group in tensors:
        digest.update(f"{len(group)} tensors".encode())
        for tensor in group:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named(part: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values under names that tell the part of a file that they are: "part.name"."""
    return {f"{part}.{name}": value for name, value in values.items()}


def part_of(content: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """What `named` put into a file, under its own names."""
    return {
        name.removeprefix(f"{part}."): value
        for name, value in content.items()
        if name.startswith(f"{part}.")
    }


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by "parameter.key", for `restore_optimizer`; numbers as tensors."""
    return {
        f"{i}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put an optimizer where `optimizer_state` found one; its groups stay as they are.

    A step that was counted in a whole number is one again; torch's own is a float's tensor.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        i, _, key = name.partition(".")
        counted = key == "step" and not value.is_floating_point()
        state.setdefault(int(i), {})[key] = int(value) if counted else value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state(*devices: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators, of the CPU and of those of `devices` on CUDA."""
    states = {"cpu": torch.get_rng_state()}
    return states | {str(d): torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}


def restore_random_state(states: Mapping[str, Tensor]) -> None:
    """Put the generators where `random_state` found them; a GPU's stays where there is none."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state.clone())
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state.clone(), device)
