"""A calibration text on its way through a model's blocks, one group of layers at a time.

What is held is the hidden state of all tokens once, overwritten as a block is passed, and the
statistic of one group of layers that read the same input. A group's inputs are made by running
its block up to it, batch by batch, so the block may have been changed in the meantime.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.compression.statistics import Statistic
from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences

NewStatistic = Callable[[int, torch.device, torch.dtype], Statistic]


class _ReachedError(Exception):
    """Ends a forward where what was wanted of it is known; no failure."""


@dataclass(frozen=True)
class Call:
    """A batch's way into a block.

    Attributes:
        hidden: the block's input, [B, T, d]: a view of the one buffer of all sequences.
        text: which tokens are no padding, [B, T] bool; None where all are text.
        args: the block's further arguments, by position.
        kwargs: those by name: positions, masks, rotary embeddings.
    """

    hidden: Tensor
    text: Tensor | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, block: nn.Module) -> Tensor:
        """The block's output, [B, T, d]."""
        output = block(self.hidden, *self.args, **self.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


class Stream:
    """The hidden states of a text before a block of a model, and what its layers get of them.

    The first block's inputs are taken from the model's own forward, with all that it hands its
    blocks; arguments that are the same for two batches are held once.

    Raises:
        RequestError: sequences longer than the model's positions, or blocks of several types of
            attention, which get different arguments.
    """

    def __init__(self, model: PreTrainedModel, text: Sequences, batch_size: int) -> None:
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if len(kinds) > 1:
            raise RequestError(
                f"{type(model).__name__} has blocks of several types ({', '.join(sorted(kinds))}): "
                "calibration can't run through them one by one; prune by magnitude"
            )
        self.calls: list[Call] = []
        _, first = blocks(model)[0]
        buffer: Tensor | None = None
        done = 0
        for batch in text.batches(batch_size):
            args, kwargs = _arguments(model, first, batch.ids)
            hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
            if buffer is None:
                buffer = hidden.new_zeros(*text.ids.shape, hidden.shape[-1])
            place = buffer[done : done + len(batch), : hidden.shape[1]]
            place.copy_(hidden)
            done += len(batch)
            for earlier in self.calls:
                if _same((earlier.args, earlier.kwargs), (tuple(rest), kwargs)):
                    rest, kwargs = list(earlier.args), dict(earlier.kwargs)
                    break
            tokens = torch.arange(hidden.shape[1], device=text.ids.device)
            real = tokens < batch.lengths[:, None]
            mask = None if bool(real.all()) else real
            self.calls.append(Call(place, mask, tuple(rest), kwargs))

    def groups(self, block: nn.Module, layers: Mapping[str, nn.Module]) -> list[list[str]]:
        """The names of the block's layers in the order of their calls, by the input they share.

        Raises:
            RequestError: a layer is called more than once a forward, or not at all.
        """
        found: list[list[str]] = []
        called: list[str] = []
        latest: list[Tensor] = []

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                called.append(name)
                if latest and _one_place(latest[0], args[0]):
                    found[-1].append(name)
                else:
                    found.append([name])
                latest[:] = [args[0]]  # held, so that no other tensor gets its place in memory

            return hook

        handles = [m.register_forward_pre_hook(note(name)) for name, m in layers.items()]
        try:
            self.calls[0].run(block)
        finally:
            for handle in handles:
                handle.remove()
        for name in layers:
            if called.count(name) != 1:
                raise RequestError(
                    f"{name} is called {called.count(name)} times a forward of the calibration "
                    "text, where pruning by its inputs needs one; prune by magnitude"
                )
        return found

    def count(self, block: nn.Module, name: str, layer: nn.Module, statistic: Statistic) -> None:
        """Add to `statistic` the inputs that `layer` gets at the tokens of the text.

        Raises:
            RequestError: the layer sees other tokens than the text's, or inputs not finite.
        """
        for call in self.calls:
            tokens = call.hidden.shape[:2].numel()

            def take(
                module: nn.Module,
                args: tuple[Tensor, ...],
                tokens: int = tokens,
                text: Tensor | None = call.text,
            ) -> None:
                rows = args[0].flatten(0, -2)
                if len(rows) != tokens:
                    raise RequestError(
                        f"{name} gets {len(rows)} of {tokens} tokens: its inputs can't be told "
                        "from padding; prune by magnitude"
                    )
                statistic.add(rows if text is None else rows[text.flatten()])
                raise _ReachedError

            with _hook(layer, take):
                call.run(block)
        if not bool(statistic.squares.isfinite().all()):
            raise RequestError(
                f"{name} gets inputs that are NaN, infinite or too large to square; mend the "
                "weights before it, or compute in float32"
            )

    def advance(self, block: nn.Module) -> None:
        """Pass the block: its outputs take the place of its inputs."""
        for call in self.calls:
            call.hidden.copy_(call.run(block))


def _arguments(
    model: PreTrainedModel, block: nn.Module, ids: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a forward of the model hands to its first block."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, dict(kwargs)))
        raise _ReachedError

    with _hook(block, take, with_kwargs=True):
        logits(model, ids)
    return seen[0]


@contextmanager
def _hook(
    module: nn.Module, take: Callable[..., None], with_kwargs: bool = False
) -> Iterator[None]:
    """Within the block, `take` is told of the module's inputs and may end the forward."""
    handle = module.register_forward_pre_hook(take, with_kwargs=with_kwargs)
    try:
        yield
    except _ReachedError:
        pass
    finally:
        handle.remove()


def _one_place(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same rows of memory, whatever their leading axes."""
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:  # fake ones have no address
        return False
    places = [(x.storage_offset(), x.numel(), x.shape[-1]) for x in (a, b)]
    return places[0] == places[1]


def _same(a: Any, b: Any) -> bool:
    """Whether two nests of arguments hold the same values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)
