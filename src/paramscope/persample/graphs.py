"""Ways to hold a model's graph: whole, from block to block, or one block at a time.

All three give the same pairs. A `whole` graph costs one forward; a `checkpointed`
one keeps the blocks' inputs and runs each block again in every backward; `layerwise` runs each
block again once, with its graph alone in memory, and takes all backwards through it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.blocks import blocks, checkpointed
from paramscope.models.heads import last_hidden
from paramscope.persample.capture import Captured

Graph = Literal["whole", "checkpointed", "layerwise"]
Take = Callable[[int, str, nn.Module, Tensor, Tensor], None]


class Forward(Protocol):
    """A forward that can be gone back through.

    Attributes:
        hidden: the last hidden state, [B, T, d].
    """

    hidden: Tensor

    def back(self, cotangents: Sequence[Tensor], take: Take) -> None:
        """Go back once a cotangent of `hidden`: `take(k, name, module, a, g)` for the k-th's pairs.

        The pairs are those of `Captured.backward`.
        """


def forward(model: PreTrainedModel, ids: Tensor, captured: Captured, graph: Graph) -> Forward:
    """Run the model, in a block of `without_head` and `capture`, on ids [B, T].

    Raises:
        RequestError: `layerwise`, and the blocks do not simply follow one another.
    """
    if graph == "layerwise":
        return _Layerwise(model, ids, captured)
    if graph == "checkpointed":
        with checkpointed(model):
            return _Whole(last_hidden(model, ids), captured)
    return _Whole(last_hidden(model, ids), captured)


@dataclass
class _Whole:
    hidden: Tensor
    captured: Captured

    def back(self, cotangents: Sequence[Tensor], take: Take) -> None:
        _back(self.captured, self.hidden, cotangents, take)


def _back(captured: Captured, y: Tensor, cotangents: Sequence[Tensor], take: Take) -> None:
    for k, cotangent in enumerate(cotangents):
        retain = k + 1 < len(cotangents)
        captured.backward(y, cotangent, partial(take, k), retain_graph=retain)


@dataclass
class _Call:
    """One block's call: what runs it, its input and its other arguments."""

    run: Callable[..., Any]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self, x: Tensor) -> Tensor:
        return _state(self.run(x, *self.args, **self.kwargs))


class _Layerwise:
    def __init__(self, model: PreTrainedModel, ids: Tensor, captured: Captured) -> None:
        self.captured = captured
        self.calls: list[_Call] = []
        self.end = torch.empty(0)
        inside = blocks(model)
        _check_apart(inside)
        with self._without_graph([block for _, block in inside]):
            self.hidden = last_hidden(model, ids)

    @contextmanager
    def _without_graph(self, inside: Sequence[nn.Module]) -> Iterator[None]:
        with ExitStack() as stack:
            for block in inside:
                block.forward = self._outer(block.forward)
                stack.callback(block.__dict__.pop, "forward")
            yield

    def _outer(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that makes no graph and lets the next begin its own."""

        def outer(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.calls and x is not self.end:
                raise RequestError(
                    "the model does more between its blocks than hand on the hidden state; "
                    "give --graph checkpointed"
                )
            with torch.no_grad(), self.captured.unheard():
                output = run(x, *args, **kwargs)
            self.calls.append(_Call(run, x, args, kwargs))
            self.end = _state(output).detach().requires_grad_()
            return self.end if isinstance(output, Tensor) else (self.end, *output[1:])

        return outer

    def back(self, cotangents: Sequence[Tensor], take: Take) -> None:
        borders = self._through(self.end, self.hidden, cotangents, take)
        for call in reversed(self.calls):
            start = call.x.detach().requires_grad_()
            borders = self._through(start, call.again(start), borders, take)
        _back(self.captured, self.calls[0].x, borders, take)

    def _through(
        self, start: Tensor, y: Tensor, cotangents: Sequence[Tensor], take: Take
    ) -> list[Tensor]:
        """The gradient at the leaf `start` for each cotangent of `y`."""
        borders: list[Tensor] = []
        for k, cotangent in enumerate(cotangents):
            retain = k + 1 < len(cotangents)
            self.captured.backward(y, cotangent, partial(take, k), retain_graph=retain)
            borders.append(_taken(start))
        return borders


def _taken(leaf: Tensor) -> Tensor:
    """A leaf's gradient, which it loses; zeros where nothing came back to it."""
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    leaf.grad = None
    return gradient


def _state(output: Any) -> Tensor:
    """The hidden state among what a block returns."""
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state


def _check_apart(inside: Sequence[tuple[str, nn.Module]]) -> None:
    seen: dict[int, str] = {}
    for name, block in inside:
        for module in block.modules():
            other = seen.setdefault(id(module), name)
            if other != name:
                raise RequestError(f"{other} and {name} share a layer; give --graph checkpointed")
