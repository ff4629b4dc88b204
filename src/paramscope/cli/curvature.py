"""Stage `curvature`: all draws merged into a diagonal with its standard error."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def curvature(
    output: Output,
    shard: Annotated[list[Path], Option(help="Shard of draws, in the order of draws; repeat it.")],
    output_summary: Annotated[Path, Option(help="Table to write: a row a tensor.")],
) -> None:
    """Merge shards of draws by Chan's formula: every parameter's curvature and its error."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.artifacts.tensors import read_tensors, write_tensors
    from paramscope.curvature.moments import from_content, merge
    from paramscope.curvature.summary import SUMMARY, summarize

    merged = merge(from_content(read_tensors(path)) for path in shard)
    error = merged.standard_error()
    content = {f"standard_error/{name}": value for name, value in error.items()}
    made_by = provenance("cli.curvature", arguments, notes={"draws": merged.count})
    write_tensors(output, {**merged.mean, **content}, made_by)
    table = summarize(merged.mean, error, merged.count)
    write_table(output_summary, table, SUMMARY, made_by)
    print(f"{merged.count} draws of {table['n'].sum():,} parameters in {output}")
