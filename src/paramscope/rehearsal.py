"""Loops whose rounds are alike, which a rehearsal cuts short.

A plan runs a stage's own code on fake tensors, where a loop over tiles, columns or chunks costs
as much time as on real ones, and shows nothing after its first rounds and its last. Such a loop
goes through `rounds(...)`: all of them in a real run, a few in a rehearsal. Nothing may be
gathered over it whose memory grows with the rounds, and no size may hang on earlier ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """A block in which `rounds` gives the ends of a loop alone."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def rounds(items: Sequence[T], ends: int = 2) -> Sequence[T]:
    """The rounds of a loop: all of them; in a rehearsal `ends` at its begin and at its end.

    Two, where what is made rises or falls in size from round to round: the largest is at an end,
    beside what one almost as large left behind. One, where all rounds make the same. None, where
    they make nothing.
    """
    if not _rehearsing.get() or len(items) <= 2 * ends:
        return items
    return [*items[:ends], *items[len(items) - ends :]]
