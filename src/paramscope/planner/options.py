"""How a strategy is run: the options that its stage has, and their ranges."""

from dataclasses import dataclass
from typing import Literal, get_args

from paramscope.errors import RequestError
from paramscope.persample.graphs import Graph

OptimizerKind = Literal["default", "plain", "foreach", "fused"]
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """How a strategy is run.

    Attributes:
        dtype: the weights' format.
        batch: sequences a forward.
        length: tokens a sequence.
        checkpointing: keep blocks' inputs alone, and run the blocks again in the backward.
        chunk_tokens: tokens whose logits exist at a time; 0: all.
        optimizer: how AdamW goes through the parameters: one by one, all at once, or in a fused
            kernel; "default" is torch's own choice, one by one on a CPU and all at once on CUDA.
        draws: of the curvature.
        graph: how the graph of GGN's draws is held.
        density: share of the weights that masks keep.
    """

    dtype: str = "float32"
    batch: int = 1
    length: int = 512
    checkpointing: bool = False
    chunk_tokens: int = 0
    optimizer: OptimizerKind = "default"
    draws: int = 1
    graph: Graph = "whole"
    density: float = 0.5


def check_values(options: Options) -> None:
    """Refuse values out of their ranges.

    Raises:
        RequestError: which, and what to give instead.
    """
    if options.dtype not in DTYPES:
        raise RequestError(f"dtype '{options.dtype}' is not known; give {', '.join(DTYPES)}")
    for key, least in (("batch", 1), ("length", 2), ("draws", 1), ("chunk_tokens", 0)):
        if getattr(options, key) < least:
            raise RequestError(f"{key} is {getattr(options, key)}; give {least} or more")
    if not 0 < options.density <= 1:
        raise RequestError(f"density {options.density:g}: give the share to keep, in (0, 1]")
    for key, known in (("optimizer", get_args(OptimizerKind)), ("graph", get_args(Graph))):
        if getattr(options, key) not in known:
            raise RequestError(f"{key} '{getattr(options, key)}': give {', '.join(known)}")
