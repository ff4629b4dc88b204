"""The plan's rows: each strategy on each model and device, with what would make it fit."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from paramscope.artifacts.plans import PART_COLUMNS
from paramscope.errors import RequestError
from paramscope.planner.advice import Adviser
from paramscope.planner.cache import Store
from paramscope.planner.estimate import called
from paramscope.planner.known_devices import Device
from paramscope.planner.models import Source
from paramscope.planner.options import Options
from paramscope.planner.strategies import COMMON, STRATEGIES

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for, of all models and strategies alike.

    Attributes:
        options: how strategies are run, as far as they have the options.
        devices: what they should fit.
        process_bytes: of Python and its libraries, which main memory holds, too.
    """

    options: Options
    devices: Sequence[Device]
    process_bytes: int


def own_options(strategy: str, asked: Options) -> Options:
    """Those of `asked` that the strategy has; its defaults in place of the others."""
    takes = (*COMMON, *(STRATEGIES[strategy].takes if strategy in STRATEGIES else ()))
    default = Options()
    others = [field.name for field in fields(Options) if field.name not in takes]
    return replace(asked, **{name: getattr(default, name) for name in others})


def rows_of(source: Source, strategy: str, asked: Asked, store: Store) -> list[Row]:
    """A strategy on a model, a row a device.

    Raises:
        RequestError: a model, strategy or option that can't be, or not together.
    """
    options = own_options(strategy, asked.options)
    try:
        return [
            _row(Adviser(source, device, asked.process_bytes, store), strategy, options)
            for device in asked.devices
        ]
    except RequestError as error:
        raise RequestError(f"{strategy} of {called(source)}: {error}") from error


def table(
    sources: Sequence[Source], strategies: Sequence[str], asked: Asked, store: Store, workers: int
) -> list[Row]:
    """All rows, in the order of models, strategies and devices.

    Estimates are made by `workers` processes that begin as copies of this one, warm.

    Raises:
        RequestError: as `rows_of`.
    """
    pairs = list(product(sources, strategies))
    made = partial(_of_pair, asked=asked, store=store)
    progress = partial(tqdm, total=len(pairs), desc="planning", unit="estimate")
    if workers == 1:
        return [row for rows in progress(map(made, pairs)) for row in rows]
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        jobs = [pool.submit(made, pair) for pair in pairs]
        try:
            for job in progress(as_completed(jobs)):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [row for job in jobs for row in job.result()]


def _of_pair(pair: tuple[Source, str], asked: Asked, store: Store) -> list[Row]:
    return rows_of(*pair, asked, store)


def _row(adviser: Adviser, strategy: str, options: Options) -> Row:
    """A row of `artifacts.plans.PLAN`."""
    verdict, device = adviser.verdict(strategy, options), adviser.device
    state, words, taken = adviser.state(strategy, options)
    found = verdict.estimate
    return {
        "model": found.model["name"],
        "parameters": found.parameters,
        "strategy": strategy,
        "dtype": options.dtype,
        "batch": options.batch,
        "length": options.length,
        "device": device.name,
        "device_kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "held_bytes": device.held_bytes,
        "usable_bytes": verdict.usable_bytes,
        "peak_bytes": found.peak_bytes,
        "extra_bytes": verdict.extra_bytes,
        "total_bytes": verdict.total_bytes,
        **{PART_COLUMNS[part]: size for part, size in found.breakdown.items()},
        "operation": found.operation,
        "phase": found.phase,
        "how": found.how,
        "state": state,
        "mend": words,
        "mended_bytes": taken,
    }
