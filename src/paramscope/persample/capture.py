"""Pairing each layer's input with the gradient of its output, by hooks.

The model's own parameters are frozen meanwhile: a backward makes output gradients alone and
never a weight's, which is what a draw of curvature costs. One forward can serve several
backwards (`retain_graph=True`).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Receive = Callable[[str, nn.Module, Tensor, Tensor], None]


@dataclass
class _Calls:
    """One module's calls in one forward: inputs, and output gradients as they arrive."""

    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def capture(model: nn.Module, shape: tuple[int, int], receive: Receive) -> Iterator[None]:
    """Within the block, run one forward on ids of `shape` [B, T] and any number of backwards.

    `receive(name, module, a, g)` is called in each backward for each module that owns
    parameters: a its input [B, T, d] (ids [B, T] for an embedding), g the gradient of its
    output [B, T, p]. A module that was called more than once is received once, when its last
    gradient is in, with its calls joined along T: its per-sample gradient is their sum. A
    parameter that several modules share is received for each of them.
    """
    owners = [(n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for parameter in trained:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        for name, module in owners:
            hook = _hook(name, shape, receive)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _hook(name: str, shape: tuple[int, int], receive: Receive) -> Callable[..., None]:
    calls = _Calls()

    def forward(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        call = len(calls.inputs)
        calls.inputs.append(_shaped(_input(module, args, kwargs), shape))
        if not output.requires_grad:
            output.requires_grad_()  # an embedding's output, its weight being frozen

        def backward(g: Tensor) -> None:
            calls.gradients[call] = _shaped(g, shape)
            if len(calls.gradients) == len(calls.inputs):
                ordered = [calls.gradients[i] for i in range(len(calls.inputs))]
                calls.gradients.clear()
                receive(name, module, _joined(calls.inputs), _joined(ordered))

        output.register_hook(backward)

    return forward


def _input(module: nn.Module, args: Any, kwargs: Any) -> Tensor:
    if type(module).__name__ == "OPTLearnedPositionalEmbedding":
        positions: Tensor = kwargs["position_ids"]
        offset: int = getattr(module, "offset")  # noqa: B009  # mypy takes it for a submodule
        return positions + offset
    source: Tensor = args[0] if args else next(iter(kwargs.values()))
    return source.detach()


def _shaped(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B·T, …] as [B, T, …]: some models flatten their tokens within a block."""
    B, T = shape
    if x.shape[:2] == (B, T):
        return x
    if len(x) == B * T:
        return x.reshape(B, T, *x.shape[1:])
    raise ValueError(f"a layer's tensor of shape {tuple(x.shape)} has no {B} × {T} tokens")


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
