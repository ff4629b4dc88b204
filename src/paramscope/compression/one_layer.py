"""What a pruning method is asked of one layer, and what it answers."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from paramscope.compression.patterns import Pattern
from paramscope.compression.statistics import Statistic


@dataclass(frozen=True)
class Options:
    """Settings of the methods.

    Attributes:
        blocksize: columns that SparseGPT takes a threshold of and updates at a time.
        damping: what is added to the diagonal of the inputs' second moments, as a share of its
            mean (SparseGPT, ADMM).
        dtype: number format of statistics and solutions, at least.
        iterations: of ADMM.
        within_block: take a layer's inputs after the layers before it in its block are pruned;
            else, as in the published flow, those of the whole dense block.
        samples: calibration sequences to draw by the seed; all of them where None.
        losses: measure reconstruction errors of methods, too, that need no second moments.
    """

    blocksize: int = 128
    damping: float = 0.01
    dtype: Literal["float32", "float64"] = "float32"
    iterations: int = 20
    within_block: bool = True
    samples: int | None = None
    losses: bool = False


@dataclass(frozen=True)
class Ask:
    """What is to be kept of a layer.

    Attributes:
        density: share of its weights.
        pattern: where they may stand.
        allowed: the weights that are not 0 for good, [out, in] bool; None for all.
        options: the methods' settings.
    """

    density: float
    pattern: Pattern
    allowed: Tensor | None
    options: Options


@dataclass(frozen=True)
class Answer:
    """A pruned layer.

    Attributes:
        mask: True where a weight is kept, [out, in] bool.
        weight: its new weights, +0 where pruned, [out, in]; None where the old ones stay.
        damping: the share that was added to the diagonal, where a method does that.
    """

    mask: Tensor
    weight: Tensor | None = None
    damping: float | None = None


class PruneLayer(Protocol):
    """A method, at one layer."""

    def __call__(self, weight: Tensor, statistic: Statistic | None, ask: Ask) -> Answer:
        """Prune `weight` [out, in], which stays as it is, by what is known of its inputs."""
