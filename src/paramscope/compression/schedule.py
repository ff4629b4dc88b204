"""How a pruned model is finetuned."""

import math
from dataclasses import dataclass

from paramscope.errors import RequestError

FLOOR = 0.1  # the share of its peak that the learning rate ends at


@dataclass(frozen=True)
class Schedule:
    """AdamW at a rate that follows the batch: linear warm-up, cosine to a tenth.

    Attributes:
        epochs: passes over the text, at most.
        batch: sequences a step.
        base_learning_rate: the peak rate at a batch of one; it grows with √batch.
        base_samples: sequences in all, at most, which gives the steps.
        learning_rate: the peak rate itself, instead.
        max_steps: the most steps, instead of base_samples // batch.
        accumulation: forwards that a step's batch is taken in.
        clip: the largest norm of the masked gradient; 0 lets any pass.
        patience: stop after so many epochs in a row without a better perplexity; 0 never does.
        checkpoint_activations: keep only the blocks' inputs, and run a block again backward.
        distillation: weight of the SquareHead loss (`distillation.square_head`).

    Raises:
        RequestError: a number that no training can have.
    """

    epochs: int
    batch: int = 1
    base_learning_rate: float = 5e-6
    base_samples: int = 10_000
    learning_rate: float | None = None
    max_steps: int | None = None
    warmup_share: float = 0.05
    accumulation: int = 1
    clip: float = 1.0
    weight_decay: float = 0.0
    patience: int = 0
    checkpoint_activations: bool = False
    distillation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "base_samples", "accumulation"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.max_steps is not None and self.max_steps < 1:
            raise RequestError(f"max_steps is {self.max_steps}; give at least 1")
        if not 0 < self.peak_rate < math.inf:
            raise RequestError(f"the learning rate is {self.peak_rate:g}; give one above 0")
        for name in ("clip", "weight_decay", "patience", "distillation", "warmup_share"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(f"{name} is {getattr(self, name)}; give at least 0")
        if self.accumulation > self.batch:
            raise RequestError(
                f"a batch of {self.batch} can't be taken in {self.accumulation} forwards; "
                "give a larger batch or less accumulation"
            )

    @property
    def peak_rate(self) -> float:
        """The largest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.base_learning_rate * math.sqrt(self.batch)

    def steps_an_epoch(self, n_sequences: int) -> int:
        """Steps that a pass over so many sequences takes."""
        return math.ceil(n_sequences / self.batch)

    def total_steps(self, n_sequences: int) -> int:
        """Steps in all, where no patience ends."""
        most = self.max_steps
        if most is None:
            most = max(1, self.base_samples // self.batch)
        return min(most, self.epochs * self.steps_an_epoch(n_sequences))

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 1, of `total`."""
        warmup = max(1, round(total * self.warmup_share))
        if step <= warmup:
            return self.peak_rate * step / warmup
        done = (step - warmup) / max(1, total - warmup)
        return self.peak_rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)
