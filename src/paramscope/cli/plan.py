"""The command that tells, before anything runs, what a model's stages take on a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from typer import Argument, Option

from paramscope.units import amount

if TYPE_CHECKING:
    from paramscope.persample.graphs import Graph
    from paramscope.planner.advice import Adviser
    from paramscope.planner.known_devices import Device
    from paramscope.planner.options import OptimizerKind, Options


RECOMMENDED = ("strategy", "mend", "total_bytes", "mended_bytes")


def plan(
    model: Annotated[
        str, Argument(help="A preset such as opt-6.7b, a model folder, or a hub id; no weights.")
    ],
    device: Annotated[
        str, Option(help="A name that `paramscope device` lists, or local: this machine.")
    ] = "local",
    strategy: Annotated[
        list[str] | None,
        Option(help="What to plan for; repeat for more. Without it, those of the memory study."),
    ] = None,
    dtype: Annotated[
        str, Option(help="Number format of the weights: float32, float64, bfloat16, float16.")
    ] = "float32",
    batch: Annotated[int, Option(help="Sequences a forward.")] = 1,
    length: Annotated[int, Option(help="Tokens a sequence.")] = 512,
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Run blocks again in the backward, where it can be.")
    ] = False,
    chunk_tokens: Annotated[
        int, Option(help="Tokens whose logits exist at a time, where it can be; 0: all.")
    ] = 0,
    optimizer: Annotated[
        str, Option(help="AdamW's way: default (torch's own), plain, foreach or fused.")
    ] = "default",
    graph: Annotated[str, Option(help="Of ggn: whole, checkpointed or layerwise.")] = "whole",
    density: Annotated[float, Option(help="Share of weights kept, where masks are.")] = 0.5,
    largest_batch: Annotated[
        bool, Option("--largest-batch", help="Look for the largest batch that fits, too.")
    ] = False,
    verify: Annotated[
        bool, Option("--verify", help="Run all layers, too, where few were extrapolated from.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print the same as JSON, in bytes.")] = False,
) -> None:
    """Tell what each strategy takes, whether it fits, and what would make it fit.

    Each strategy's own code runs on fake tensors: no weights, no GPU.
    """
    import json
    import os
    import sys

    os.environ["TQDM_DISABLE"] = "1"  # the stages' own bars: their work is not done here
    from paramscope.config.memory import Memory
    from paramscope.errors import RequestError
    from paramscope.planner.advice import Adviser
    from paramscope.planner.cache import Store
    from paramscope.planner.known_devices import MARGINS, usable_bytes
    from paramscope.planner.models import parameters
    from paramscope.planner.needs import process_bytes
    from paramscope.planner.options import Options
    from paramscope.planner.table import own_options

    asked = Options(
        dtype=dtype,
        batch=batch,
        length=length,
        checkpointing=checkpointing,
        chunk_tokens=chunk_tokens,
        optimizer=cast("OptimizerKind", optimizer),  # checked with the strategy
        graph=cast("Graph", graph),
        density=density,
    )
    place = device_called(device)
    process = 0 if place.kind == "cuda" else process_bytes()
    adviser = Adviser(Path(model) if Path(model).is_dir() else model, place, process, Store())
    names = strategy or list(Memory().strategies)
    margin = MARGINS[place.kind]
    if not as_json:
        print(
            f"{model}: {parameters(adviser.source):,} parameters, {dtype}, batch {batch} of "
            f"{length} tokens\n{place.name}: {usable_bytes(place) / 1e9:,.1f} GB usable of "
            f"{place.memory_bytes / 1e9:,.1f}; a margin of {margin.fraction:.0%}: {margin.reason}"
        )
    rows, refused = [], {}
    for name in names:
        if as_json:
            print(f"planning {name}", file=sys.stderr, flush=True)
        try:
            rows.append(planned(adviser, name, own_options(name, asked), largest_batch, verify))
        except RequestError as error:
            if strategy or name == names[0]:  # asked for by name, or nothing can be planned
                raise
            refused[name] = str(error)
        if not as_json:
            told = f"{name:<18}{'':>10}  {refused[name]}" if name in refused else line(rows[-1])
            print(told, flush=True)
    best = recommended(rows)
    if as_json:
        record = {"device": vars(place), "margin": vars(margin), "strategies": rows}
        record["refused"] = refused
        print(json.dumps(record | {"recommended": best}, indent=2))
        return
    for task, row in best.items():
        print(f"for {task}: {'nothing fits' if row is None else taken(row)}")


def device_called(name: str) -> "Device":
    """A known device, or this machine's own: its first GPU with known memory, else its memory.

    Raises:
        DeviceError: an unknown name, or a machine that does not tell its memory.
    """
    from paramscope.errors import DeviceError
    from paramscope.planner.known_devices import known_device
    from paramscope.planner.local import local_devices

    if name != "local":
        return known_device(name)
    told = [place.device for place in local_devices() if place.device is not None]
    if not told:
        raise DeviceError("this machine does not tell its memory; name a device instead")
    return next((place for place in told if place.kind == "cuda"), told[0])


def planned(
    adviser: "Adviser", name: str, options: "Options", largest: bool, verify: bool
) -> dict[str, Any]:
    """All that is told of one strategy, for JSON; bytes."""
    verdict = adviser.verdict(name, options)
    change = None if verdict.fits else adviser.mend(name, options)
    row: dict[str, Any] = {
        "strategy": name,
        "fits": verdict.fits,
        "total_bytes": verdict.total_bytes,
        "usable_bytes": verdict.usable_bytes,
        "mend": None if change is None else list(change.words),
        "mended_bytes": None if change is None else change.verdict.total_bytes,
        "estimate": verdict.estimate.record(),
    }
    if largest:
        from paramscope.planner.strategies import STRATEGIES

        found = adviser.largest_batch(name, options) if name in STRATEGIES else None
        row["largest_batch"] = found
    if verify and verdict.estimate.how == "extrapolated":
        from paramscope.planner.estimate import estimate

        kind = verdict.estimate.device_kind
        full = estimate(adviser.source, name, options, kind, extrapolate=False)
        row["estimate"]["verified"] = full.peak_bytes == verdict.estimate.peak_bytes
    return row


def recommended(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """For each task that was planned for, what to take: its best that fits, else that is mended.

    None where nothing fits.
    """
    from paramscope.artifacts.plans import TASKS

    by_name = {row["strategy"]: row for row in rows}
    best = {}
    for task, strategies in TASKS.items():
        found = [by_name[name] for name in strategies if name in by_name]
        ranked = [row for row in found if row["fits"]] + [row for row in found if row["mend"]]
        if found:
            best[task] = {k: ranked[0][k] for k in RECOMMENDED} if ranked else None
    return best


def taken(row: dict[str, Any]) -> str:
    """A recommendation in words."""
    size = row["mended_bytes"] if row["mend"] else row["total_bytes"]
    return f"{' '.join([row['strategy'], *(row['mend'] or [])])} ({amount(size)})"


def line(row: dict[str, Any]) -> str:
    """One strategy in a line: what it takes, of what most, and whether it fits."""
    parts = sorted(row["estimate"]["breakdown"].items(), key=lambda part: -part[1])
    most = ", ".join(f"{name} {amount(size)}" for name, size in parts[:3] if size)
    told = "fits" if row["fits"] else "does not fit"
    if row["mend"]:
        told += f"; would with {' '.join(row['mend'])} ({amount(row['mended_bytes'])})"
    elif not row["fits"]:
        told += ", nor with any change that a plan knows"
    if row["estimate"]["verified"] is not None:
        agrees = "agrees" if row["estimate"]["verified"] else "DIFFERS"
        told += f"; a run of all layers {agrees}"
    if row.get("largest_batch"):
        told += f"; largest batch {row['largest_batch']:,}"
    return f"{row['strategy']:<18}{amount(row['total_bytes']):>10}  {told}\n{'':<30}{most}"
