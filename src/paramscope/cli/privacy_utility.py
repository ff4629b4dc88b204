"""Figure `privacy_utility`: perplexity and membership inference over the privacy budget."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def privacy_utility(
    output: Output,
    record: Annotated[Path, Option(help="Record of the models' privacy and utility.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw perplexity and the membership attack's AUC over epsilon: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.figures.privacy_utility import privacy_utility as draw
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.privacy_utility", arguments, synthetic=any_synthetic([record]))
    save(draw(read_record(record), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
