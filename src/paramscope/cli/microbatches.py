"""How many sequences a command takes a forward, and what it would take less memory with."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paramscope.cli.options import Dtype, Graph

if TYPE_CHECKING:
    from paramscope.memory import Microbatch

NARROWER = {Dtype.float64: Dtype.float32, Dtype.float32: Dtype.bfloat16}


def microbatch_of(
    arguments: Mapping[str, Any], option: str = "batch", asked: int | None = None
) -> "Microbatch":
    """The sequences a forward of a command with these arguments.

    Args:
        arguments: the command's, by name.
        option: the one that says how many, or what they are called.
        asked: how many, where the option alone does not say it.

    Raises:
        RequestError: fewer than one.
    """
    from paramscope.memory import Microbatch

    *most, last = mends(arguments)
    words = f"{', '.join(most)} or {last}" if most else last
    return Microbatch(
        arguments[option] if asked is None else asked, option, f"less is taken with {words}"
    )


def mends(arguments: Mapping[str, Any]) -> Iterator[str]:
    """What of a command's own options would take less memory, but for the batch."""
    whole = arguments.get("graph", Graph.layerwise) != Graph.layerwise
    if whole and arguments.get("method", "ggn") == "ggn":  # other methods' graphs are whole
        yield "--graph layerwise"
    for option in ("checkpoint", "checkpoint_activations"):
        if arguments.get(option) is False:
            yield f"--{option.replace('_', '-')}"
    if "graph" in arguments and arguments["draws"] > 1:  # elsewhere draws are one by one
        yield "fewer --draws"
    if arguments.get("memory_gb"):
        yield "a larger --memory-gb"
    yield "a smaller --length"
    if arguments["dtype"] in NARROWER and arguments.get("method") != "finite_difference":
        yield f"--dtype {NARROWER[arguments['dtype']]}"
