"""Magnitude pruning: the largest weights of each layer stay.

Source: Han et al. 2015 (arXiv:1506.02626).
"""

from torch import Tensor

from paramscope.compression.one_layer import Answer, Ask
from paramscope.compression.patterns import choose
from paramscope.compression.statistics import Statistic
from paramscope.persample.precision import wide


def magnitude(weight: Tensor, statistic: Statistic | None, ask: Ask) -> Answer:
    """Keep the largest |W| of the layer, an exact number; of equals the first by index."""
    scores = wide(weight).abs()
    return Answer(choose(scores, ask.density, ask.pattern, by_row=False, allowed=ask.allowed))
