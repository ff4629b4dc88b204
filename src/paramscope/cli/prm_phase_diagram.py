"""Figure `prm_phase_diagram`: perplexity lost against membership lost, under noise."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def prm_phase_diagram(
    output: Output,
    responses: Annotated[
        list[Path], Option(help="Responses of one rule, named as the file; repeat for more rules.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw ΔAUC against Δlog PPL, a trajectory over σ a class: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.prm_phase_diagram import prm_phase_diagram as draw
    from paramscope.figures.responses import COLUMNS, by_rule
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic(responses)
    made_by = provenance("cli.prm_phase_diagram", arguments, synthetic=synthetic)
    tables = {rule: read_table(path, COLUMNS) for rule, path in by_rule(responses).items()}
    save(draw(tables, model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
