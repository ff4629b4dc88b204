"""Arguments and options that several stages share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class Dtype(StrEnum):
    """Number formats that stages compute in."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Graph(StrEnum):
    """What of a model's graph is held at a time."""

    whole = "whole"
    checkpointed = "checkpointed"
    layerwise = "layerwise"


class Noise(StrEnum):
    """What noise is measured in."""

    relative = "relative"
    absolute = "absolute"
    equal_energy = "equal_energy"


ModelFolder = Annotated[
    Path, Argument(help="Model folder: config.json, model.safetensors, tokenizer.json.")
]
Output = Annotated[Path, Argument(help="File to write.")]
OutputFolder = Annotated[Path, Argument(help="Folder to write.")]
Seed = Annotated[int, Option(help="Seed of the run; every piece of work derives its own from it.")]
DeviceName = Annotated[
    str, Option("--device", help="auto (CUDA where there is one, else CPU), cpu, cuda, or cuda:N.")
]
DtypeName = Annotated[Dtype, Option("--dtype", help="Number format of the weights.")]
Threads = Annotated[
    int, Option(help="CPU threads within operations; results can depend on it in the last bits.")
]
BatchSize = Annotated[
    int, Option(help="Sequences a forward, halved where memory runs out; changes speed alone.")
]
TrainingBatch = Annotated[
    int, Option(help="Documents a step, in several forwards where memory runs out.")
]
Length = Annotated[int, Option(help="Tokens a sequence at most; longer text is cut.")]
CurvatureMethod = Annotated[
    str,
    Option(
        "--method",
        help="ggn; or, of the true Hessian, hutchinson, xdiag, exact, finite_difference.",
    ),
]
GraphKind = Annotated[
    Graph,
    Option(
        "--graph",
        help="What of ggn's graph is in memory: whole; checkpointed, each block's input; "
        "layerwise, one block at a time.",
    ),
]
Probes = Annotated[int, Option(help="Products with the Hessian a draw of xdiag.")]
MemoryLimit = Annotated[
    float, Option("--memory-gb", help="Memory to keep to, in 10^9 bytes; 0 sets no limit.")
]
NoiseKind = Annotated[
    Noise,
    Option(
        "--noise",
        help="relative: in units of a tensor's RMS; absolute; equal_energy: relative, with the "
        "same total in every class.",
    ),
]
