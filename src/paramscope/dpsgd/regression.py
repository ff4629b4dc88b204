"""Whether a profile needs more memory than an earlier one of the same variant, and in what."""

import math
from dataclasses import dataclass

from paramscope.artifacts.profiles import Profile, told
from paramscope.errors import ParamscopeError, RequestError
from paramscope.names import DPSGD_PARTS
from paramscope.units import unit_of

TOTAL = "total"
LEAST = 0.001  # of the baseline's peak: what a part must grow by to be remarked on
SAME = ("variant", "method", "device_type", "predicted")


class MemoryGrewError(ParamscopeError):
    """A profile needs more memory than is tolerated."""


@dataclass(frozen=True)
class Change:
    """Bytes of one part at the peak, or of the whole peak, before and now.

    Attributes:
        part: its name, or `TOTAL`.
        before: bytes in the baseline.
        now: bytes in the new profile.
        grew: whether that is more than is tolerated.
    """

    part: str
    before: int
    now: int
    grew: bool

    @property
    def percent(self) -> float:
        """Growth in percent of what it was; infinite where it was nothing."""
        if self.before:
            return 100 * (self.now / self.before - 1)
        return math.inf if self.now else 0.0


def tolerance_of(text: str) -> float:
    """A tolerance as a fraction, from `2%` or `0.02`.

    Raises:
        RequestError: no number, a negative one, or one of 1 or more without `%`.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise RequestError(f"tolerance {text!r} is no share of memory; give one like 2% or 0.02")
    if text.strip().endswith("%"):
        return value / 100
    if value >= 1:
        raise RequestError(f"tolerance {text} could be meant in percent; give {value:g}% then")
    return value


def compare(baseline: Profile, new: Profile, tolerance: float) -> list[Change]:
    """The change of each part, in the parts' order, then of the total.

    A part has grown where it has by more than `tolerance` of what it was and by no less than
    0.1% of the baseline's peak, so that a part of some bytes fails nothing. The total has
    grown where it has by more than `tolerance`.

    Args:
        baseline: record of a profile.
        new: that of the same variant on the same workload, later.
        tolerance: a fraction.

    Raises:
        RequestError: the two can't be compared, which the message gives a field for.
    """
    _check_same(baseline, new)
    peak = int(baseline["peak"]["bytes"])
    changes = []
    for part in DPSGD_PARTS:
        before, now = (int(profile["breakdown"].get(part, 0)) for profile in (baseline, new))
        grew = now - before > tolerance * before and now - before >= LEAST * peak
        changes.append(Change(part, before, now, grew))
    now = int(new["peak"]["bytes"])
    return [*changes, Change(TOTAL, peak, now, now - peak > tolerance * peak)]


def text(changes: list[Change]) -> str:
    """The changes as an aligned table: before, now, by how much, and whether that is too much."""
    size, unit = unit_of(max(max(change.before, change.now) for change in changes))
    lines = [f"{'part':<20}{f'before ({unit})':>14}{f'now ({unit})':>14}{'change':>10}"]
    for change in changes:
        percent = _percent(change.percent)
        mark = "  grew" if change.grew else ""
        before, now = (f"{value / size:,.3f}" for value in (change.before, change.now))
        lines.append(f"{change.part:<20}{before:>14}{now:>14}{percent:>10}{mark}")
    return "\n".join(lines) + "\n"


def check(changes: list[Change], profile: Profile, tolerance: float) -> None:
    """Do nothing where no part has grown.

    Raises:
        MemoryGrewError: one has; the message names all that have, and by how much.
    """
    grown = [change for change in changes if change.grew]
    if grown:
        which = ", ".join(f"{change.part} {_percent(change.percent)}" for change in grown)
        raise MemoryGrewError(
            f"{told(profile)} needs more memory than {100 * tolerance:g}% above the baseline: "
            f"{which}; mend it, or take the new profile as the baseline"
        )


def _check_same(baseline: Profile, new: Profile) -> None:
    for name, profile in (("baseline", baseline), ("new profile", new)):
        missing = [field for field in (*SAME, "workload", "options") if field not in profile]
        if missing:
            raise RequestError(f"the {name} is no profile of DP-SGD: lacks {', '.join(missing)}")
    pairs = [(field, baseline[field], new[field]) for field in SAME]
    for group in ("workload", "options"):
        fields = dict.fromkeys([*baseline[group], *new[group]])
        pairs += [
            (f"{group}.{field}", baseline[group].get(field), new[group].get(field))
            for field in fields
        ]
    for field, before, now in pairs:
        if before != now:
            raise RequestError(
                f"the baseline has {field} {before}, the new profile {now}; give two that agree"
            )
    for name, profile in (("baseline", baseline), ("new profile", new)):
        if profile["refused"]:
            raise RequestError(
                f"the {name} was refused, so it has no memory to compare: {profile['refused']}"
            )


def _percent(value: float) -> str:
    return "new" if math.isinf(value) else f"{value:+,.1f}%"
