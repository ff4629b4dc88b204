"""Stage `replication`: the separation scores over training seeds."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def replication(
    output: Output,
    output_table: Annotated[Path, Option(help="Markdown table to write.")],
    seed: Annotated[list[int], Option(help="Training seed; repeat it, once a --statistics.")],
    statistics: Annotated[
        list[Path], Option(help="Statistics of one rule at the training seed of the same place.")
    ],
    removal: Annotated[
        list[Path] | None,
        Option(help="Record of removal, one a training seed in the order of their first naming."),
    ] = None,
) -> None:
    """Set each rule's separation over training seeds: every seed's, their mean, its interval."""
    arguments = dict(locals())
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.errors import RequestError
    from paramscope.response.replication import (
        markdown,
        replicated,
        replicated_removal,
        replication_record,
    )

    if len(seed) != len(statistics):
        raise RequestError(f"{len(seed)} seeds for {len(statistics)} statistics; give one each")
    by_seed: dict[int, list[dict[str, object]]] = {}
    for number, path in zip(seed, statistics, strict=True):
        by_seed.setdefault(number, []).append(read_record(path))
    if removal and len(removal) != len(by_seed):
        raise RequestError(f"{len(removal)} removals for {len(by_seed)} seeds; give one each")
    rows = replicated(by_seed)
    removals = replicated_removal([read_record(path) for path in removal or []])
    made_by = provenance("cli.replication", arguments)
    write_record(output, replication_record(rows, removals, list(by_seed)), made_by)
    with atomic(output_table) as partial:
        partial.write_text(markdown(rows, removals), encoding="utf-8")
    print(markdown(rows, removals), end="")
