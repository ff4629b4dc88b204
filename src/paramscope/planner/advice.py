"""Whether a strategy fits a device, the first change that makes it fit, and its largest batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch

from paramscope.planner.estimate import Estimate, estimate, resolved
from paramscope.planner.known_devices import Device, usable_bytes
from paramscope.planner.models import Source, parameters
from paramscope.planner.options import Options
from paramscope.planner.runs import DeviceKind
from paramscope.planner.strategies import STRATEGIES

if TYPE_CHECKING:
    from paramscope.planner.cache import Store

CHUNK = 512  # tokens of logits at a time, where a plan proposes chunks
MOST = 2**20  # sequences a batch that are looked for

State = Literal["fits", "mended", "tight", "no"]
Estimated = Callable[[str, Options], Estimate]


@dataclass(frozen=True)
class Verdict:
    """A strategy on a device.

    Attributes:
        estimate: what it takes.
        extra_bytes: of the terms that dispatch does not see, those that are known.
        usable_bytes: what the device can be planned with, its margin taken off.
    """

    estimate: Estimate
    extra_bytes: int
    usable_bytes: int

    @property
    def total_bytes(self) -> int:
        """What the strategy takes in all."""
        return self.estimate.peak_bytes + self.extra_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within what the device can be planned with."""
        return self.total_bytes <= self.usable_bytes


@dataclass(frozen=True)
class Change:
    """Options changed so that a strategy fits.

    Attributes:
        words: what was changed, as the command's options.
        verdict: the strategy so changed; it fits.
    """

    words: tuple[str, ...]
    verdict: Verdict


class Adviser:
    """Plans for one model and device; each estimate is made once.

    Args:
        source: the model, as `models.configuration` takes it.
        device: what it should fit.
        process_bytes: of Python and its libraries, which a CPU's memory holds, too.
        store: where estimates are kept; None keeps them as long as the adviser.
    """

    def __init__(
        self,
        source: Source,
        device: Device,
        process_bytes: int = 0,
        store: "Store | None" = None,
    ) -> None:
        self.source, self.device, self._store = source, device, store
        self.process_bytes = 0 if device.kind == "cuda" else process_bytes
        self._kind: DeviceKind = "cuda" if device.kind == "cuda" else "cpu"
        self._estimated: Estimated = cache(self._estimate)

    def verdict(self, strategy: str, options: Options) -> Verdict:
        """Whether the strategy fits.

        Raises:
            RequestError: a model, strategy or option that can't be.
        """
        found = self._estimated(strategy, options)
        extra = sum(row["bytes"] or 0 for row in found.terms) + self.process_bytes
        return Verdict(found, extra, usable_bytes(self.device))

    def mend(self, strategy: str, options: Options) -> Change | None:
        """The first change that makes a strategy fit which does not; None if none here does.

        Single changes are tried first, the one that costs least time before the others; then
        all of them, one upon the other.
        """
        tried = list(self._changes(strategy, options))
        for words, change in tried:
            verdict = self._fitting(strategy, change(options), usable_bytes(self.device))
            if verdict is not None:
                return Change((words,), verdict)
        words_so_far: list[str] = []
        for words, change in tried:
            options = change(options)
            words_so_far.append(words)
            verdict = self._fitting(strategy, options, usable_bytes(self.device))
            if verdict is not None:
                return Change(tuple(words_so_far), verdict)
        return None

    def state(self, strategy: str, options: Options) -> tuple[State, str | None, int | None]:
        """How a strategy fits, with the change that it takes and what it takes then.

        It fits, or is mended by a change, or is tight: fits, at best with all changes, only where
        the margin is not left free. Without any change the words are empty.
        """
        verdict = self.verdict(strategy, options)
        if verdict.fits:
            return "fits", None, None
        change = self.mend(strategy, options)
        if change is not None:
            return "mended", " ".join(change.words), change.verdict.total_bytes
        free = self.device.memory_bytes - self.device.held_bytes
        if verdict.total_bytes <= free:
            return "tight", "", verdict.total_bytes
        changes = list(self._changes(strategy, options))
        for _, change_of in changes:
            options = change_of(options)
        least = self._fitting(strategy, options, free) if changes else None
        if least is not None:
            return "tight", " ".join(words for words, _ in changes), least.total_bytes
        return "no", None, None

    def _fitting(self, strategy: str, options: Options, most: int) -> Verdict | None:
        """The verdict, where no more than `most` bytes are taken; estimated only where that can be.

        A strategy takes so many times its weights at the least.
        """
        known = STRATEGIES.get(strategy)
        if known is not None:
            width = getattr(torch, options.dtype).itemsize
            if known.copies * width * parameters(self.source) > most:
                return None
        verdict = self.verdict(strategy, options)
        return verdict if verdict.total_bytes <= most else None

    def largest_batch(self, strategy: str, options: Options) -> int:
        """The largest batch with which the strategy fits, 0 where not even one sequence does.

        Memory grows with the batch: a line through two batches foretells the limit, and
        estimates on both sides of it settle the number.
        """

        def fits(batch: int) -> bool:
            return self.verdict(strategy, replace(options, batch=batch)).fits

        if not fits(1):
            return 0
        low, high = 1, 2
        one, two = (
            self.verdict(strategy, replace(options, batch=n)).total_bytes for n in (low, high)
        )
        room = usable_bytes(self.device) - one
        guess = min(MOST, 1 + room // max(1, two - one))
        if guess > 1 and fits(guess):
            low, high = guess, min(MOST + 1, guess + max(1, guess // 8))
            while high <= MOST and fits(high):
                low, high = high, high + max(1, high // 8)
        else:
            high = max(2, guess)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _estimate(self, strategy: str, options: Options) -> Estimate:
        make = estimate if self._store is None else self._store.estimate
        return make(self.source, strategy, options, self._kind, device=self.device)

    def _changes(
        self, strategy: str, options: Options
    ) -> Iterator[tuple[str, Callable[[Options], Options]]]:
        """Changes that the strategy can take, by what they cost in time, the least first."""
        if strategy not in STRATEGIES:
            return
        takes = STRATEGIES[strategy].takes
        if resolved(options, strategy, self._kind).optimizer == "foreach" and "optimizer" in takes:
            yield "--optimizer plain", lambda o: replace(o, optimizer="plain")
        if "chunk_tokens" in takes and not options.chunk_tokens:
            yield f"--chunk-tokens {CHUNK}", lambda o: replace(o, chunk_tokens=CHUNK)
        if options.dtype in ("float32", "float64"):
            yield "--dtype bfloat16", lambda o: replace(o, dtype="bfloat16")
        if "checkpointing" in takes and not options.checkpointing:
            yield "--checkpointing", lambda o: replace(o, checkpointing=True)
        if "graph" in takes and options.graph != "layerwise":
            yield "--graph layerwise", lambda o: replace(o, graph="layerwise")
        if options.batch > 1:
            yield "--batch 1", lambda o: replace(o, batch=1)
