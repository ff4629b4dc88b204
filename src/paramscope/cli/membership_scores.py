"""Figure `membership_scores`: how well attacks tell members, beside the blind gate."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def membership_scores(
    output: Output,
    scores: Annotated[Path, Option(help="Table of scores by document.")],
    summary: Annotated[Path, Option(help="Record of how well the scores tell members.")],
    gate: Annotated[Path, Option(help="Record of the corpus's blind gate.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw ROC curves, losses, and AUC beside the blind gate: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.membership_scores import DOCUMENTS
    from paramscope.figures.membership_scores import membership_scores as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([scores, summary, gate])
    made_by = provenance("cli.membership_scores", arguments, synthetic=synthetic)
    figure = draw(
        documents=read_table(scores, DOCUMENTS),
        summary=read_record(summary),
        gate=read_record(gate),
        model=model,
    )
    save(figure, output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
