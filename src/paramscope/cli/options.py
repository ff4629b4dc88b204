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
BatchSize = Annotated[int, Option(help="Sequences a forward; changes speed, not what is computed.")]
Length = Annotated[int, Option(help="Tokens a sequence at most; longer text is cut.")]
