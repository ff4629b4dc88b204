"""Ways to hold a model's graph: whole, from block to block, or one block at a time.

All three give `receive` the same pairs. A `whole` graph costs one forward; a `checkpointed`
one keeps the blocks' inputs and runs each block again in every backward; `layerwise` runs each
block again once, with its graph alone in memory, and takes all backwards through it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import RequestError
from paramscope.models.blocks import blocks, checkpointed
from paramscope.models.heads import last_hidden
from paramscope.persample.capture import Captured

Graph = Literal["whole", "checkpointed", "layerwise"]
Begin = Callable[[int], None]


class Forward(Protocol):
    """A forward that can be gone back through.

    Attributes:
        hidden: the last hidden state, [B, T, d].
    """

    hidden: Tensor

    def back(self, cotangents: Sequence[Tensor], begin: Begin) -> None:
        """Go back once a cotangent of `hidden`; `begin(k)` is told before the k-th is used."""


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

    def back(self, cotangents: Sequence[Tensor], begin: Begin) -> None:
        _back(self.captured, self.hidden, cotangents, begin)


def _back(captured: Captured, y: Tensor, cotangents: Sequence[Tensor], begin: Begin) -> None:
    for k, cotangent in enumerate(cotangents):
        begin(k)
        captured.backward(y, cotangent, retain_graph=k + 1 < len(cotangents))


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

    def back(self, cotangents: Sequence[Tensor], begin: Begin) -> None:
        borders = self._through(self.end, self.hidden, cotangents, begin)
        for place, call in reversed(list(enumerate(self.calls))):
            start = call.x.detach().requires_grad_()
            borders = self._through(start, call.again(start), borders, begin)
            if place == 0:
                _back(self.captured, call.x, borders, begin)

    def _through(
        self, start: Tensor, y: Tensor, cotangents: Sequence[Tensor], begin: Begin
    ) -> list[Tensor]:
        """The gradient at the leaf `start` for each cotangent of `y`."""
        borders: list[Tensor] = []

        def then(k: int) -> None:
            self._collect(start, borders)
            begin(k)

        _back(self.captured, y, cotangents, then)
        self._collect(start, borders)
        return borders

    @staticmethod
    def _collect(start: Tensor, borders: list[Tensor]) -> None:
        if start.grad is not None:
            borders.append(start.grad)
            start.grad = None


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
