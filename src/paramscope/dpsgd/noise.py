"""Gaussian noise on the sums of clipped gradients, drawn in several lanes at once on a CPU."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from paramscope.artifacts.digest import seed_of
from paramscope.dpsgd.privacy import Privacy

LANES = 4  # of a CPU: each draws for every fourth part, whatever the number of threads
PART = 2**15  # entries drawn at a time: they stay in a core's cache


class Noise:
    """A source of Gaussian noise for a model's gradients.

    torch draws normal numbers on a CPU by one thread, which is a tenth of a short step. Here
    each of `LANES` generators, seeded by its own number, draws for its own parts of the
    gradients, so that threads share the work and the numbers don't hang on how many there are.

    The generators are not cryptographic: who sees noise can in principle foretell more of it.
    For a release to an adversary take torchcsprng's, as Opacus' secure mode does.

    Args:
        seed: of the source.
        device: where the gradients are; a GPU has one lane.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        lanes = LANES if device.type == "cpu" else 1
        self._generators = [
            torch.Generator(device).manual_seed(seed_of(seed, "noise", lane))
            for lane in range(lanes)
        ]

    @torch.no_grad()
    def privatize(self, parameters: Iterable[nn.Parameter], privacy: Privacy) -> None:
        """Make the sums of clipped gradients in `.grad` a private mean: add noise, divide.

        A parameter without a gradient (no sample was drawn) gets noise alone.
        """
        flat = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()
            flat.append(parameter.grad.view(-1))
        deviation = privacy.noise_multiplier * privacy.max_norm
        expected = privacy.expected_batch
        if len(self._generators) == 1 or any(_fake(gradient) for gradient in flat):
            for gradient in flat:
                _finish(gradient, deviation, expected, self._generators[0])
            return
        parts = [part for gradient in flat for part in gradient.split(PART)]

        def draw(lane: int) -> None:
            with torch.no_grad():  # a thread's own setting
                for part in parts[lane :: len(self._generators)]:
                    _finish(part, deviation, expected, self._generators[lane])

        with ThreadPoolExecutor(min(torch.get_num_threads(), len(self._generators))) as threads:
            list(threads.map(draw, range(len(self._generators))))

    def state(self) -> list[Tensor]:
        """Where the generators are, for `restore`."""
        return [generator.get_state() for generator in self._generators]

    def restore(self, state: list[Tensor]) -> None:
        """Go on from a `state`."""
        for generator, own in zip(self._generators, state, strict=True):
            generator.set_state(own)


def _finish(part: Tensor, deviation: float, expected: float, generator: torch.Generator) -> None:
    """Add noise, drawn in float32 at least whatever the gradient's format, and divide."""
    if deviation:
        wide = torch.promote_types(part.dtype, torch.float32)
        noise = torch.empty(part.shape, dtype=wide, device=part.device)
        part.add_(noise.normal_(0.0, deviation, generator=None if _fake(part) else generator))
    part.div_(expected)


def _fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)
