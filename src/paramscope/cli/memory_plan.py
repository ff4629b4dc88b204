"""Figure `memory_plan`: what strategies take, by part, against what devices have."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def memory_plan(
    output: Output,
    plan: Annotated[Path, Option(help="Table of a plan, from `paramscope memory-estimates`.")],
    model: Annotated[list[str], Option(help="A model of the plan; repeat for more panels.")],
) -> None:
    """Draw the parts of each strategy's peak and every device's usable memory: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.plans import read_plan
    from paramscope.artifacts.provenance import provenance
    from paramscope.figures.memory_plan import memory_plan as draw
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.memory_plan", arguments, synthetic=any_synthetic([plan]))
    save(draw(read_plan(plan), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
