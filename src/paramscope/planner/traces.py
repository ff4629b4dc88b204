"""What a run held, event by event, and what a model of more layers would have held.

Layers of one kind do the same one after another. So wherever a run goes through its layers, its
events are those of any other number of layers up to the first layer's end, and again from the
last layer on; and each event's bytes are a line in that number, since each layer adds the same.
Between the first layer and the last, bytes are a line in the layer's place, so no event there
stands above both ends. Runs of three numbers of layers, one after the other, give the lines of all
events at both ends and show whether they are lines; where they are not, there is no extrapolation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramscope.dpsgd.profile import POINTS, by_part
from paramscope.names import DPSGD_PARTS
from paramscope.tracker import Timeline
from paramscope.tracker.thinning import spread

# Layers of the runs that are extrapolated from: three in a row. The last three where the only layer
# of the first run is not as the first of others is, since it is the last one, too.
FEW = (1, 2, 3, 4)


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes:
        name: what it is called; "" before the first that was told.
        operations: what made each event, [n].
        parts: bytes held after each, by part in the order of names.DPSGD_PARTS, [n, 8].
    """

    name: str
    operations: NDArray[np.object_]
    parts: NDArray[np.int64]


@dataclass(frozen=True)
class Highest:
    """The most that was held: bytes, by part, the operation that made it, and its phase."""

    bytes: int
    by_part: dict[str, int]
    operation: str
    phase: str


Trace = tuple[Phase, ...]


def trace_of(timeline: Timeline) -> Trace:
    """A tracker's timeline by phases; a phase ends with the event that begins the next."""
    parts = np.zeros((len(timeline.live_bytes), len(DPSGD_PARTS)), np.int64)
    place = {name: i for i, name in enumerate(DPSGD_PARTS)}
    for category, column in timeline.by_category.items():
        part = next(name for name, size in by_part({category: 1}).items() if size)
        parts[:, place[part]] += column
    operations = np.array(timeline.operations, dtype=object)[timeline.operation]
    names = ["", *(mark.phase for mark in timeline.marks)]
    borders = [0, *(mark.event + 1 for mark in timeline.marks), len(parts)]
    return tuple(
        Phase(name, operations[begin:end], parts[begin:end])
        for name, begin, end in zip(names, borders[:-1], borders[1:], strict=True)
    )


def highest(trace: Trace) -> Highest:
    """The most that was held, at the first event that reached it."""
    best = Highest(0, dict.fromkeys(DPSGD_PARTS, 0), "", "")
    for phase in trace:
        held = phase.parts.sum(1)
        if len(held) and held.max() > best.bytes:
            at = int(held.argmax())
            best = Highest(
                int(held[at]), _named(phase.parts[at]), str(phase.operations[at]), phase.name
            )
    return best


def snapshots(trace: Trace) -> list[dict[str, Any]]:
    """What was held when each phase began."""
    return [
        {
            "name": phase.name,
            "live_bytes": int(before.parts[-1].sum()),
            "by_part": _named(before.parts[-1]),
        }
        for before, phase in pairwise(trace)
    ]


def thinned(trace: Trace) -> dict[str, Any]:
    """At most `POINTS` events of a trace, its peak and the ends of its phases among them."""
    parts = np.concatenate([phase.parts for phase in trace])
    held = parts.sum(1)
    ends = np.cumsum([len(phase.parts) for phase in trace])
    kept = (int(held.argmax()), *(int(end) - 1 for end in ends if end))
    events = spread(0, len(held) - 1, POINTS, kept)
    return {
        "live_bytes": held[events].tolist(),
        "by_part": {
            name: column.tolist() for name, column in zip(DPSGD_PARTS, parts[events].T, strict=True)
        },
        "phases": [
            {"name": phase.name, "at": int(np.searchsorted(events, end - len(phase.parts)))}
            for phase, end in zip(trace, ends, strict=True)
        ],
        "peak_at": int(np.searchsorted(events, held.argmax())),
    }


def extrapolated(traces: Sequence[Trace], further: int, slack_bytes: int = 0) -> Trace | None:
    """The trace of so many layers more than the first of three; None where there are no lines.

    Of each phase it has both ends. Each of `traces` is of one layer more than the one before.
    Lines may bend by `slack_bytes`: a storage as long as the model, in whole blocks of an
    allocator, grows by a block more or less a layer.
    """
    if len({tuple(phase.name for phase in trace) for trace in traces}) > 1:
        return None
    found = [_phase(few, further, slack_bytes) for few in zip(*traces, strict=True)]
    return None if None in found else tuple(phase for phase in found if phase is not None)


def _phase(few: Sequence[Phase], further: int, slack: int) -> Phase | None:
    """A phase of `further` layers more; None where its events are not lines in their number.

    A phase goes through the layers any number of times. Each time the longer runs have more
    events; from its end on theirs are found `shift` and twice `shift` events later.
    """
    n, more = len(few[0].parts), len(few[1].parts) - len(few[0].parts)
    if more < 0 or len(few[2].parts) - n != 2 * more:
        return None
    found: list[list[Phase]] = []
    shift = 0
    begin, end = 0, _around(few, 0, 0, slack)[1]
    while True:
        found.append([_cut(p, begin + k * shift, end + k * shift) for k, p in enumerate(few)])
        at = end
        if at == n:
            break
        # From the end of the layers on, and back to where the last of them began.
        shifts = _shifts(few, at, (shift + 1, more), slack)
        runs = [(s, *_around(few, s, at, slack)) for s in shifts]
        if not runs:
            return None
        shift, begin, end = max(runs, key=lambda run: run[2] - run[1])
    if shift != more:
        return None
    covered = np.concatenate([cut[-1].parts for cut in found]).sum(1)
    if n and covered.max() < few[-1].parts.sum(1).max():
        return None  # something between the first layers and the last stands above both
    lines = [_line(cut, further) for cut in found]
    return Phase(
        few[0].name,
        np.concatenate([line.operations for line in lines]),
        np.concatenate([line.parts for line in lines]),
    )


def _shifts(few: Sequence[Phase], at: int, ends: tuple[int, int], slack: int) -> list[int]:
    """The shifts under which the `at`-th events alone are alike."""
    a, b, c = few
    shifts = np.arange(ends[0], ends[1] + 1)
    same = (b.operations[at + shifts] == a.operations[at]) & (
        c.operations[at + 2 * shifts] == a.operations[at]
    )
    bends = c.parts[at + 2 * shifts] - 2 * b.parts[at + shifts] + a.parts[at]
    straight = (abs(bends) <= slack).all(1)
    found: list[int] = shifts[same.astype(bool) & straight].tolist()
    return found


def _around(few: Sequence[Phase], shift: int, at: int, slack: int) -> tuple[int, int]:
    """The events around the `at`-th that are alike without a gap: first, and one past the last."""
    wrong = np.flatnonzero(~_alike(few, shift, slack))
    before, after = wrong[wrong < at], wrong[wrong >= at]
    begin = int(before[-1]) + 1 if len(before) else 0
    return begin, int(after[0]) if len(after) else len(few[0].parts)


def _alike(few: Sequence[Phase], shift: int, slack: int) -> NDArray[np.bool_]:
    """Of the first run's events, [n]: whether the others', `shift` and twice `shift` later, are
    the same operations with bytes on a line.
    """
    n = len(few[0].parts)
    a, b, c = (_cut(phase, k * shift, n + k * shift) for k, phase in enumerate(few))
    same = (a.operations == b.operations) & (b.operations == c.operations)
    bends = c.parts - 2 * b.parts + a.parts
    alike: NDArray[np.bool_] = same.astype(bool) & (abs(bends) <= slack).all(1)
    return alike


def _line(few: Sequence[Phase], further: int) -> Phase:
    rise = further * (few[-1].parts - few[0].parts) // (len(few) - 1)
    return Phase(few[0].name, few[0].operations, few[0].parts + rise)


def _cut(phase: Phase, begin: int, end: int) -> Phase:
    return Phase(phase.name, phase.operations[begin:end], phase.parts[begin:end])


def _named(parts: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(DPSGD_PARTS, parts.tolist(), strict=True))
