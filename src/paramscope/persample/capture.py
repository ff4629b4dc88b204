"""Pairing each layer's input with the gradient of its output.

A tap on a layer's output keeps the layer's input as autograd keeps its own tensors, so that
checkpointing drops it and recomputes it like the rest; in a backward the tap hands both over.
The model's own parameters are frozen meanwhile, unless a backward of their own is to follow: a
backward makes output gradients alone and never a weight's, which is what a draw of curvature
costs. One forward can serve several backwards (`retain_graph=True`).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paramscope.errors import UnsupportedModelError

Receive = Callable[[str, nn.Module, Tensor, Tensor], None]


class CaptureError(UnsupportedModelError):
    """A model whose layers' inputs and output gradients can't be paired."""


@dataclass
class Captured:
    """What a block of `capture` works with.

    Attributes:
        shape: samples and tokens of the ids, [B, T].
        called: names of the modules that a forward has reached.
        anchor: a leaf that all taps lead back to; it gets no gradient.
        frozen: the model's parameters are; else `backward` leaves them alone itself.
    """

    shape: tuple[int, int]
    called: set[str] = field(default_factory=set)
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    frozen: bool = True
    _listening: bool = True
    _handing_over: bool = True
    _receive: Receive | None = None
    _unfinished: dict[str, "_Calls"] = field(default_factory=dict)

    def backward(
        self, outputs: Tensor, cotangent: Tensor, receive: Receive, retain_graph: bool = False
    ) -> None:
        """Go back from `outputs` with `cotangent`, of their shape.

        `receive(name, module, a, g)` is told of each module that owns parameters: a its input
        [B, T, d] (ids [B, T] for an embedding), g the gradient of its output [B, T, p]. A module
        that was called more than once is told of once, when its last gradient is in, with its
        calls joined along T: its per-sample gradient is their sum. A parameter that several
        modules share is told of for each of them.
        """
        self._receive = receive  # for this while alone: the graph holds self, but no receiver
        try:
            with self.unheard():  # a call of a layer in here is a checkpoint's recomputation
                if self.frozen:
                    torch.autograd.backward([outputs], [cotangent], retain_graph=retain_graph)
                else:  # no further than the taps: a weight's gradient is not on the way
                    torch.autograd.grad(
                        [outputs],
                        [self.anchor],
                        [cotangent],
                        retain_graph=retain_graph,
                        allow_unused=True,
                    )
            for calls in list(self._unfinished.values()):
                calls.hand_over()  # the other calls have no part in `outputs`
        finally:
            self._receive = None

    def plain_backward(self, outputs: Tensor, cotangent: Tensor) -> None:
        """Go back for the parameters' gradients, where they are not frozen; nothing is told."""
        self._handing_over = False
        try:
            with self.unheard():
                torch.autograd.backward([outputs], [cotangent])
        finally:
            self._handing_over = True

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Within the block, calls of layers are not counted."""
        before, self._listening = self._listening, False
        try:
            yield
        finally:
            self._listening = before

    def hook(self, name: str) -> Callable[..., Any]:
        """The forward hook of the module of that name."""
        calls = _Calls()

        def tap(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                if self._listening:
                    raise CaptureError(
                        f"{name} was called without a graph: checkpoint with use_reentrant=False"
                    )
                return None
            if self._listening:
                self.called.add(name)
                calls.made += 1
            call = calls.made - 1

            def hand_over() -> None:
                del self._unfinished[name]
                calls.hand_over = _nothing  # or it and `calls` would hold each other
                pairs = [calls.pairs[i] for i in sorted(calls.pairs)]
                calls.pairs.clear()
                a, g = (_joined(part) for part in zip(*pairs, strict=True))
                if self._receive is None:
                    raise CaptureError(f"{name}: go back by the `backward` of what captures")
                self._receive(name, module, a, g)

            def deliver(a: Tensor, g: Tensor) -> None:
                if not self._handing_over:
                    return
                calls.pairs[call] = _shaped(a, self.shape), _shaped(g, self.shape)
                calls.hand_over = hand_over
                self._unfinished[name] = calls
                if len(calls.pairs) == calls.made:
                    hand_over()

            kept = _input(module, args, kwargs)
            # torch declares no types for a Function's `apply`
            tapped: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
                output, kept, self.anchor, deliver
            )
            return tapped

        return tap


def _nothing() -> None:
    """What there is to hand over before a backward."""


@dataclass
class _Calls:
    """One module's calls in a forward, and their pairs as a backward brings them."""

    made: int = 0
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    hand_over: Callable[[], None] = _nothing


class _Tap(torch.autograd.Function):
    """The identity, whose backward hands a kept tensor and the gradient to `deliver`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Tensor, anchor: Tensor, deliver: Any) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.deliver = deliver
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = gradients
        (kept,) = ctx.saved_tensors
        ctx.deliver(kept, g)
        return g, None, None, None


@contextmanager
def capture(
    model: nn.Module,
    shape: tuple[int, int],
    *,
    owners: Collection[str] | None = None,
    frozen: bool = True,
) -> Iterator[Captured]:
    """Within the block, run one forward on ids of `shape` [B, T] and any number of backwards.

    Backwards go by `Captured.backward`, which hands over the pairs.

    Args:
        model: the model.
        shape: samples and tokens of the ids.
        owners: names of the modules to hear of; by default all that own parameters.
        frozen: freeze the parameters meanwhile; else `Captured.plain_backward` can follow.

    Raises:
        CaptureError: in the forward, a layer called without a graph (reentrant checkpointing);
            at the block's end, a layer to hear of that the forward never called (it reads its
            parameters in another way, and its gradient can't be known).
    """
    heard = [
        (name, module)
        for name, module in model.named_modules()
        if (any(True for _ in module.parameters(False)) if owners is None else name in owners)
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    captured = Captured(shape, frozen=frozen)
    with ExitStack() as stack:
        for parameter in trained if frozen else ():
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        for name, module in heard:
            hook = captured.hook(name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield captured
    unseen = next((name for name, _ in heard if name not in captured.called), None)
    if unseen is not None:
        raise CaptureError(f"{unseen} was not called in the forward, so its gradient can't be seen")


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
    raise CaptureError(f"a layer's tensor of shape {tuple(x.shape)} has no {B} × {T} tokens")


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
