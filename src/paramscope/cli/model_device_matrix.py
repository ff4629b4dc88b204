"""Figure `model_device_matrix`: what to take for each task, by model and device."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def model_device_matrix(
    output: Output,
    plan: Annotated[Path, Option(help="Table of a plan, from `paramscope memory-estimates`.")],
) -> None:
    """Draw which strategy fits which model and device, a panel a task: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.plans import read_plan
    from paramscope.artifacts.provenance import provenance
    from paramscope.figures.model_device_matrix import model_device_matrix as draw
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.model_device_matrix", arguments, synthetic=any_synthetic([plan]))
    save(draw(read_plan(plan)), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
