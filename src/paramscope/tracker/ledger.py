"""A ledger of bytes by category: what is held, what was at most held, and when.

Its rows are events: moments after which something had changed. A row is never closed for
good: `move` gives bytes another category from an earlier event on, since what a tensor is
for (a gradient, an optimizer's state) shows only after it was made.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramscope.errors import RequestError

Counts = NDArray[np.int64]

NO_PEAK = (0, -1, "", 0, "")  # bytes, event, operation, its index, phase


@dataclass(frozen=True)
class Mark:
    """The begin of a phase, and what was held then.

    Attributes:
        phase: the name of what follows.
        event: number of the mark's own event; the phase's events come after it.
        by_category: bytes held at the mark.
    """

    phase: str
    event: int
    by_category: Mapping[str, int]


@dataclass(frozen=True)
class Peak:
    """The most bytes that were held at once.

    Attributes:
        bytes: how many; the sum of `by_category`.
        by_category: what they were; categories with none are left out.
        operation: what made the peak, as in `MemoryTracker.peak_operation`.
        operation_index: how many operations had run then, that one included.
        phase: the phase that it fell in, "" before the first mark.
    """

    bytes: int
    by_category: Mapping[str, int]
    operation: str
    operation_index: int
    phase: str


@dataclass(frozen=True)
class Timeline:
    """Bytes held after each event, in order; arrays have one entry an event, [n].

    Attributes:
        operation_index: how many operations had run by then; not all of them change anything.
        operation: place of the event's operation in `operations`.
        operations: the names that occur.
        live_bytes: bytes held.
        by_category: what they were; the arrays add up to `live_bytes`.
        marks: the begin of each phase.
    """

    operation_index: Counts
    operation: NDArray[np.int32]
    operations: tuple[str, ...]
    live_bytes: Counts
    by_category: Mapping[str, Counts]
    marks: tuple[Mark, ...]


class Ledger:
    """Bytes held, by category; categories come into being when they are first named.

    Attributes:
        live_bytes: bytes held, kept apart from their categories.
        events: number of events so far, and so the number of the next.
    """

    def __init__(self, timeline: bool) -> None:
        self.live_bytes = 0
        self.events = 0
        self._timeline = timeline
        self._held: dict[str, int] = {}
        self._changed = False
        self._marks: list[tuple[str, int, dict[str, int]]] = []  # phase, event, held
        self._peak: tuple[int, int, object, int, str] = NO_PEAK
        self._peak_held: dict[str, int] = {}
        self._total, self._index, self._name = array("q"), array("q"), array("i")
        self._columns: dict[str, array[int]] = {}
        self._names: dict[object, int] = {}

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes held now; categories with none are left out."""
        return _some(self._held)

    @property
    def peak(self) -> Peak:
        """The most that was held at an event since the start or `reset_peak`."""
        size, _, operation, index, phase = self._peak
        return Peak(size, _some(self._peak_held), str(operation), index, phase)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The phases begun so far."""
        return tuple(Mark(phase, event, _some(held)) for phase, event, held in self._marks)

    def add(self, category: str, change: int) -> None:
        """Hold `change` bytes more, or less if negative, from the next event on."""
        self.live_bytes += change
        self._held[category] = self._held.get(category, 0) + change
        self._changed = True

    def move(self, size: int, source: str, target: str, since: int) -> None:
        """Let `size` bytes have been `target` and not `source` from event `since` on."""
        if not size:
            return  # `source` may not have come into being
        self._held[source] -= size
        self._held[target] = self._held.get(target, 0) + size
        if since <= self._peak[1]:
            self._peak_held[source] -= size
            self._peak_held[target] = self._peak_held.get(target, 0) + size
        for _, event, held in reversed(self._marks):
            if event < since:
                break
            held[source] -= size
            held[target] = held.get(target, 0) + size
        if since >= self.events:
            self._changed = True
        elif self._timeline:
            self._column(source)[since:] -= size
            self._column(target)[since:] += size

    def event(self, operation: object, index: int, always: bool = False) -> None:
        """Close an event if anything has changed since the last one, or `always`.

        `operation` is named by its `str`, which is taken only when it is asked for.
        """
        if not (self._changed or always):
            return
        self._changed = False
        if self.live_bytes > self._peak[0]:
            phase = self._marks[-1][0] if self._marks else ""
            self._peak = (self.live_bytes, self.events, operation, index, phase)
            self._peak_held = self._held.copy()
        if self._timeline:
            self._record(operation, index)
        self.events += 1

    def mark(self, phase: str, index: int) -> None:
        """Begin a phase, with an event of its own that still belongs to the one before."""
        self.event("mark", index, always=True)
        self._marks.append((phase, self.events - 1, self._held.copy()))

    def reset_peak(self, index: int) -> None:
        """Start a new peak from what is held now."""
        self._peak, self._peak_held = NO_PEAK, {}
        self.event("reset", index, always=True)

    def timeline(self) -> Timeline:
        """A copy of the events so far.

        Raises:
            RequestError: they were not kept.
        """
        if not self._timeline:
            raise RequestError("no timeline was kept; make the tracker with timeline=True")
        return Timeline(
            np.array(self._index, np.int64),
            np.array(self._name, np.int32),
            tuple(map(str, self._names)),
            np.array(self._total, np.int64),
            {category: self._column(category).copy() for category in self._columns},
            self.marks,
        )

    def _record(self, operation: object, index: int) -> None:
        self._total.append(self.live_bytes)
        self._index.append(index)
        self._name.append(self._names.setdefault(operation, len(self._names)))
        for category, size in self._held.items():
            column = self._columns.get(category)
            if column is None:
                column = self._columns[category] = array("q", bytes(8 * self.events))
            column.append(size)

    def _column(self, category: str) -> Counts:
        """A category's column as an array on the same memory; gone before the next append."""
        if category not in self._columns:
            self._columns[category] = array("q", bytes(8 * self.events))
        return np.frombuffer(self._columns[category], np.int64)


def _some(held: Mapping[str, int]) -> dict[str, int]:
    return {category: size for category, size in held.items() if size}
