"""Stage `planted_units`: synthetic units with known classes."""

from typing import Annotated

from typer import Option

from paramscope.cli.options import Output, Seed


def planted_units(
    output: Output,
    units: Annotated[int, Option(help="How many; they are spread over 36 tensors.")] = 900,
    seed: Seed = 0,
) -> None:
    """Draw synthetic units with planted classes: no text, no model, marked as synthetic.

    They try the picture and the partition rules where the answer is known.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.geometry.planted import PLANTED_UNITS, plant

    made_by = provenance("cli.planted_units", arguments, synthetic=True)
    planted = plant(units, seed)
    write_table(output, planted, PLANTED_UNITS, made_by)
    found = planted["planted_label"].value_counts().sort_index()
    print(f"{', '.join(f'{label} {n}' for label, n in found.items())} (synthetic) in {output}")
