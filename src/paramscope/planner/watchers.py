"""What a strategy tells of its tensors, and trackers that listen to it together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from paramscope.planner.dispatch import Uncompiled
from paramscope.tracker import MemoryTracker
from paramscope.tracker.mode import counted


class Watcher(Protocol):
    """As `MemoryTracker` has them: who is told what tensors are for."""

    def register(self, tensors: Iterable[Tensor], category: str | None = None) -> object:
        """Count tensors that exist already."""

    def watch(self, model: nn.Module, *optimizers: Optimizer) -> object:
        """Know a model's tensors and optimizers' states as such."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """A block whose new tensors are of a category."""


class Together(Uncompiled):
    """Trackers of one run, each with a way of its own to count; a context that they count in."""

    def __init__(self, trackers: Sequence[MemoryTracker]) -> None:
        super().__init__()
        self.trackers = trackers

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and count it."""
        return counted(self.trackers, func, args, kwargs or {})

    def register(self, tensors: Iterable[Tensor], category: str | None = None) -> None:
        """Count tensors that exist already."""
        given = list(tensors)
        for tracker in self.trackers:
            tracker.register(given, category)

    def watch(self, model: nn.Module, *optimizers: Optimizer) -> None:
        """Know a model's tensors and optimizers' states as such."""
        for tracker in self.trackers:
            tracker.watch(model, *optimizers)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """A block whose new tensors are of a category."""
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.enter_context(tracker.scope(name))
            yield

    def mark(self, phase: str) -> None:
        """Begin a phase."""
        for tracker in self.trackers:
            tracker.mark(phase)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A block whose operations are counted."""
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.enter_context(tracker.listening())
            stack.enter_context(self)
            yield
