"""What a private finetuning does at each step, and what it spends: known before it has begun."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from paramscope.dpsgd.accounting import epsilon_spent
from paramscope.dpsgd.methods import Options
from paramscope.errors import RequestError
from paramscope.models.training import rate_at

PRIVATE_METHODS = ("bk", "flash", "ghost", "per_layer", "micro")
PRIVATE_TRAINING = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("epoch", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("epsilon", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """All that decides a private finetuning besides the model, the text and the seed.

    Attributes:
        sample_rate: probability with which each sample is in a step's batch, by itself.
        steps: logical steps.
        max_norm: C, the norm that a sample's gradient is clipped to.
        noise_multiplier: σ: the clipped sum gets noise of deviation σC, once a step.
        method: how gradients are clipped.
        options: what the method is run with.
        physical_batch: samples a forward at most; changes speed and memory alone.
        learning_rate: of AdamW, at its peak.
        constant_rate: no warm-up, and no cosine to a tenth.
        warmup_share: of the steps.
        weight_decay: of AdamW.

    Raises:
        RequestError: one that is out of its range.
    """

    sample_rate: float
    steps: int
    max_norm: float
    noise_multiplier: float
    method: str = "bk"
    options: Options = field(default_factory=Options)
    physical_batch: int = 8
    learning_rate: float = 1e-3
    constant_rate: bool = False
    warmup_share: float = 0.05
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise RequestError(
                f"sample_rate is {self.sample_rate:g}; give an expected batch above 0 and of no "
                "more than all samples"
            )
        for name in ("steps", "physical_batch"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; give 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise RequestError(f"learning_rate is {self.learning_rate:g}; give one above 0")
        if self.method not in PRIVATE_METHODS:
            raise RequestError(
                f"method '{self.method}' does not finetune privately here; "
                f"{', '.join(PRIVATE_METHODS)} do"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1 on."""
        if self.constant_rate:
            return self.learning_rate
        return self.learning_rate * rate_at(step, self.steps, self.warmup_share)

    def mechanism(self) -> dict[str, Any]:
        """What of the plan changes a step by more than rounding."""
        whole = asdict(self)
        for name in ("method", "options", "physical_batch"):
            del whole[name]
        return whole | {"by_layer": self.method == "per_layer"}


def training_history(plan: Plan, delta: float, accountant: str) -> pd.DataFrame:
    """The rows of training.parquet, one an epoch: ε spent so far, and the rate.

    An epoch is the steps after which each sample is expected to have been drawn once. Nothing
    here was computed from the text.
    """
    epochs = math.ceil(plan.steps * plan.sample_rate)
    ends = sorted({min(plan.steps, math.ceil(e / plan.sample_rate)) for e in range(1, epochs + 1)})
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step * plan.sample_rate,
            "learning_rate": plan.rate(step),
            "epsilon": epsilon_spent(
                plan.noise_multiplier, delta, plan.sample_rate, step, accountant
            ),
        }
        for step in ends
    )
