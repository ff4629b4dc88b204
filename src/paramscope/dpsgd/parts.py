"""What the memory of a step is for: names of its parts, and how methods tell of them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

NORMS = "norm samples"
STASH = "temporary matrices"
LOGITS = "logits and loss"


class Accounts(Protocol):
    """Who is told what tensors are for; a MemoryTracker is one."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """A block whose new tensors are `name`."""

    def register(self, tensors: Iterable[Tensor], category: str | None = None) -> object:
        """These tensors are `category`."""


class NoAccounts:
    """Nobody is told."""

    def scope(self, name: str) -> AbstractContextManager[None]:
        """An empty block."""
        return nullcontext()

    def register(self, tensors: Iterable[Tensor], category: str | None = None) -> object:
        """Nothing."""
        return self
