"""Stage `findings`: what the study found, in words and as a table for a paper."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def findings(
    output: Output,
    output_table: Annotated[Path, Option(help="LaTeX table to write.")],
    statistics: Annotated[
        list[Path], Option(help="Statistics of one rule; repeat for more rules.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the text.")],
) -> None:
    """Say which rules separate memory from function, by how much, and at which confidence."""
    arguments = dict(locals())
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.response.findings import findings as found_in
    from paramscope.response.findings import latex, paragraph

    records = [read_record(path) for path in statistics]
    made_by = provenance("cli.findings", arguments)
    found = found_in(records)
    with atomic(output) as partial:
        text = paragraph(found, model)
        partial.write_text(f"{text}\n<!-- made by: {made_by.command} -->\n", encoding="utf-8")
    with atomic(output_table) as partial:
        table = latex(found, records)
        partial.write_text(f"% made by: {made_by.command}\n{table}", encoding="utf-8")
    print(text, end="")
