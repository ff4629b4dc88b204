"""Stage `expand`: a plain model folder from a compact one."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from paramscope.cli.options import OutputFolder


def expand(
    compact: Annotated[Path, Argument(help="Folder from `paramscope prune` or `finetune`.")],
    output: OutputFolder,
) -> None:
    """Write a compact model as transformers stores it: every zero in its place, bit by bit."""
    from paramscope.artifacts.atomic import atomic
    from paramscope.compression.compact import expand as write

    with atomic(output) as partial:
        partial.mkdir()
        write(compact, partial)
    size = (output / "model.safetensors").stat().st_size / 1e6
    print(f"{output}: {size:,.1f} MB, which transformers' from_pretrained loads")
