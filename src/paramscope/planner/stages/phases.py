"""What a stage of the workflow takes of a model, in words that a plan can be made from.

Nothing here, nor in the tables that are made of it, loads torch: Snakemake reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from paramscope.config.model import Config
from paramscope.names import Strategy

# What is held so many times over; sizes are of the model, in bytes unless said otherwise.
Of = Literal[
    "weights",  # all parameters, in the run's format
    "vectors",  # all parameters, in float32 at least
    "singles",  # all parameters, in float32
    "parameters",  # their number: a byte each
    "inside",  # the number of weights in the linear layers inside the blocks
    "factors",  # Kronecker factors of those layers, in float64
    "largest",  # the largest tensor of the weights
    "entries",  # the largest tensor's number of entries
    "blocks",  # a Gauss-Newton block of the widest row, in float32
    "units",  # the number of rows of all linear layers but the head
    "hidden",  # of a token: a hidden state
    "outputs",  # of a token: the outputs of all linear layers but the head
    "cache",  # of a token: keys and values of all blocks
    "logits",  # of a token: its logits, in float32 at least
    "dropout",  # of a token: what dropout keeps for the backward, attention's apart
    "attention",  # of a token: the weights of all heads to one other token, where they drop out
    "bytes",  # a byte
]
# device: beside the model. memory: main memory, wherever the model is. copy: main memory, of what
# a GPU holds; on a CPU it is the thing itself. file: pages of a file that is mapped; they are
# resident, and dropped where memory is short.
Where = Literal["device", "memory", "copy", "file"]


@dataclass(frozen=True)
class Held:
    """Memory that no strategy has: `times` copies of something of the model's.

    Attributes:
        what: what it is, and why it is there.
        of: what it is a copy of.
        times: how many.
        where: which memory it is in.
    """

    what: str
    of: Of
    times: float = 1
    where: Where = "device"


@dataclass(frozen=True)
class Phase:
    """A part of a stage's work, at its peak.

    Attributes:
        strategy: what runs; None for the model at rest, or no model.
        options: how it runs (`planner.options.Options`).
        held: what there is beside.
        model: whether the stage's model is there; a strategy has its own.
        workload: sizes of another model than the run's, as `dpsgd.known` has them.
    """

    strategy: Strategy | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[Held, ...] = ()
    model: bool = True
    workload: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Stage:
    """A rule's work: its peak is that of its highest phase, and its text beside it.

    Attributes:
        phases: one after the other.
        lowered_by: keys of the configuration that make it take less, those first that change no
            result.
        documents: characters of the texts that it takes as documents.
        windows: characters of the texts that it takes as windows.
        computes: whether it runs the model, on a GPU where there is one.
        memory_gb: a limit that it keeps to itself, in 10⁹ bytes; 0 for none.
        predicted: whether a CPU runs it on tensors without data.
        binding: whether a run that can't hold it is refused.
    """

    phases: tuple[Phase, ...]
    lowered_by: tuple[str, ...] = ()
    documents: int = 0
    windows: int = 0
    computes: bool = True
    memory_gb: float = 0.0
    predicted: bool = False
    binding: bool = True


UNIT_BYTES = 500  # of a row in a table of units: its names, as strings, and its columns
SAVED = Held("weights on their way to a file", "weights", 1, "copy")
UNIT_TABLE = Held("a table of units and a copy", "units", 2 * UNIT_BYTES, "memory")


def run(strategy: Strategy, config: Config, batch: int, *held: Held, **options: Any) -> Phase:
    """A strategy on the run's model and at its length."""
    asked = {"dtype": config.dtype, "batch": batch, "length": config.length}
    return Phase(strategy, asked | options, held)


def loading(config: Config) -> Phase:
    """A model's weights as they come from a file, each checked for NaN."""
    held = [Held("a tensor's absolute values and what of them is finite", "largest", 2.5, "memory")]
    if config.dtype != "float32":
        held.append(Held("the file, in float32", "singles", 1, "file"))
    return Phase(held=(*held, Held("weights on their way to the GPU", "weights", 1, "copy")))


def texts(config: Config, *splits: str) -> int:
    """Characters of some splits, at most."""
    return most(config, *splits) * config.corpus.chunk_characters


def most(config: Config, *splits: str) -> int:
    """Documents of some splits: no batch has more."""
    return sum(int(getattr(config.corpus.documents, split)) for split in splits)
