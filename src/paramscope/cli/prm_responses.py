"""Stage `prm_responses`: the sweep's shards into one table."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def prm_responses(
    output: Output,
    shard: Annotated[
        list[Path], Option(help="Table of part of the sweep's responses; repeat for each.")
    ],
) -> None:
    """Merge the noise sweep's shards into one table in canonical order.

    The table is the same however the sweep was sharded. Shards that overlap, or that leave a
    hole in a class's grid of σ × seed × sign, are refused.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
    from paramscope.response.responses import RESPONSES, merge

    synthetic = any(read_table_provenance(path)["synthetic"] for path in shard)
    made_by = provenance("cli.prm_responses", arguments, synthetic=synthetic)
    merged = merge([read_table(path, RESPONSES.names) for path in shard])
    write_table(output, merged, RESPONSES, made_by)
    print(f"{len(merged)} measurements from {len(shard)} shards in {output}")
