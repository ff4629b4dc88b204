"""Wanda: the largest weights stay, each times the norm of its input.

Source: Sun et al. 2023 (arXiv:2306.11695).
"""

from torch import Tensor

from paramscope.compression.one_layer import Answer, Ask
from paramscope.compression.patterns import choose
from paramscope.compression.statistics import Statistic
from paramscope.persample.precision import wide


def wanda(weight: Tensor, statistic: Statistic | None, ask: Ask) -> Answer:
    """Keep the largest |W|·‖x‖₂ of each output, the same exact number of each.

    Of equals, the first by index stay.
    """
    if statistic is None:
        raise TypeError("Wanda needs the squares of the layer's inputs")
    scores = wide(weight).abs().mul_(statistic.squares.sqrt())
    return Answer(choose(scores, ask.density, ask.pattern, by_row=True, allowed=ask.allowed))
