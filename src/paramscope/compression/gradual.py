"""Gradual pruning: down to a density by steps, each from the weights that the last one left.

Source: the schedule of Zhu and Gupta 2017 (arXiv:1710.01878), in a few steps of SparseGPT.
"""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

STAGES = (0.5, 0.3, 0.2, 0.1, 0.05)
Recover = Callable[[PreTrainedModel, dict[str, Tensor]], None]


def stages(density: float) -> list[float]:
    """The densities to go through, the one asked for last."""
    return [stage for stage in STAGES if stage > density] + [density]
