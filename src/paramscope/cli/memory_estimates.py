"""Stage `memory_estimates`: what each strategy takes on each model, and which devices it fits."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def memory_estimates(
    output: Annotated[Path, Argument(help="Folder to write plan.parquet and plan.md in.")],
    model: Annotated[
        list[str],
        Option(help="A preset such as opt-6.7b, a model folder, or a hub id; repeat for more."),
    ],
    strategy: Annotated[list[str], Option(help="What to plan for; repeat for more.")],
    device: Annotated[
        list[str], Option(help="A name that `paramscope device` lists; repeat for more.")
    ],
    dtype: Annotated[str, Option(help="Number format of the weights.")] = "float32",
    batch: Annotated[int, Option(help="Sequences a forward.")] = 1,
    length: Annotated[int, Option(help="Tokens a sequence.")] = 512,
    workers: Annotated[int, Option(min=1, help="Processes that estimates are made by.")] = 1,
) -> None:
    """Plan all strategies on all models for all devices: a table, and the same in words.

    Each strategy's own code runs on fake tensors: no weights, no GPU.
    """
    arguments = dict(locals())
    import os

    os.environ["TQDM_DISABLE"] = "0"
    import torch

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.plans import PLAN, plan_rows
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.planner.cache import Store
    from paramscope.planner.document import document
    from paramscope.planner.known_devices import known_device
    from paramscope.planner.needs import process_bytes
    from paramscope.planner.options import Options
    from paramscope.planner.table import Asked, table

    torch.set_num_threads(1)
    made_by = provenance("cli.memory_estimates", arguments)
    places = [known_device(name) for name in device]
    process = process_bytes() if any(p.kind != "cuda" for p in places) else 0
    asked = Asked(Options(dtype=dtype, batch=batch, length=length), places, process)
    sources = [Path(name) if Path(name).is_dir() else name for name in model]
    rows = plan_rows(table(sources, strategy, asked, Store(), workers))
    write_table(output / "plan.parquet", rows, PLAN, made_by)
    with atomic(output / "plan.md") as partial:
        partial.write_text(document(rows), encoding="utf-8")
    print(f"{output / 'plan.parquet'} and {output / 'plan.md'}: {len(rows)} rows")
