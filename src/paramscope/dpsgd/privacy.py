"""What makes a step of gradient descent private: a bound on each sample's part, and noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paramscope.errors import RequestError


@dataclass(frozen=True)
class Privacy:
    """The Gaussian mechanism of a step (Abadi et al. 2016, arXiv:1607.00133).

    Attributes:
        max_norm: C, the norm that a sample's gradient is clipped to.
        noise_multiplier: σ: the sum of clipped gradients gets noise of deviation σC.
        expected_batch: samples that a logical step is expected to have; the noisy sum is divided
            by it, whatever the step's own number is.

    Raises:
        RequestError: a norm or a batch that is not above 0, or a multiplier below 0.
    """

    max_norm: float
    noise_multiplier: float
    expected_batch: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise RequestError(f"max_norm is {self.max_norm:g}; give a norm above 0 to clip to")
        if not self.noise_multiplier >= 0 or math.isinf(self.noise_multiplier):
            raise RequestError(
                f"noise_multiplier is {self.noise_multiplier:g}; give 0 (no privacy) or more"
            )
        if not self.expected_batch > 0:
            raise RequestError(f"expected_batch is {self.expected_batch:g}; give more than 0")


@dataclass(frozen=True)
class Clipped:
    """What became of the samples of a batch. Private: not for release.

    Attributes:
        losses: each sample's mean loss a token, [B], without a graph.
        norms: norm of each sample's gradient, [B], in float32 at least; where layers are clipped
            apart, over all of them.
        factors: what each sample's gradient was multiplied by, [B]; 0 where its norm was not
            finite. None where layers are clipped apart.
    """

    losses: Tensor
    norms: Tensor
    factors: Tensor | None

    @property
    def dropped(self) -> Tensor:
        """Which samples were left out since their gradient was not finite, [B], bool."""
        return ~self.norms.isfinite()


def clip_factors(squared_norms: Tensor, max_norm: float) -> Tensor:
    """min(1, C / norm) of each sample, [B]; 0 where the norm is not finite."""
    factors = (max_norm * squared_norms.rsqrt()).clamp_(max=1.0)
    return factors.masked_fill_(~squared_norms.isfinite(), 0)


def finite_samples(squared_norms: Tensor) -> Tensor | None:
    """Places of the samples whose norm is finite; None if all are, or if none can be known (fake).

    Weights of 0 don't undo a gradient that is not finite, so such samples are taken out.
    """
    if isinstance(squared_norms, torch._subclasses.FakeTensor):
        return None
    finite = squared_norms.isfinite()
    return None if bool(finite.all()) else finite.nonzero().squeeze(1)
