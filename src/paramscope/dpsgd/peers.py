"""Opacus' own two ways to clip, run as its users run them, on the same losses.

Source: Yousefpour et al. 2021 (arXiv:2109.12298).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from paramscope.dpsgd.losses import sample_losses
from paramscope.dpsgd.parts import STASH, Accounts
from paramscope.dpsgd.privacy import Privacy
from paramscope.dpsgd.trained import check_private
from paramscope.errors import ParamscopeError, RequestError
from paramscope.memory import out_of_memory
from paramscope.models.sequences import Sequences


@dataclass
class OpacusHooks:
    """Per-sample gradients of the whole model by Opacus' hooks, then clipped by its optimizer."""

    model: PreTrainedModel
    privacy: Privacy
    accounts: Accounts

    def __post_init__(self) -> None:
        check_private(self.model)
        self.model.train()  # its hooks are deaf otherwise
        with _opacus():
            from opacus.grad_sample import GradSampleModule

            self.wrapped = GradSampleModule(self.model, loss_reduction="mean")
        self._losses = torch.empty(0)

    def private(self, optimizer: Optimizer, generator: torch.Generator | None) -> Any:
        """The optimizer that clips, adds noise and steps."""
        from opacus.optimizers import DPOptimizer

        return DPOptimizer(optimizer, generator=generator, **_mechanism(self.privacy))

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch."""
        with _opacus():
            self._losses = sample_losses(self.model, batch, self.accounts)

    def backward(self) -> None:
        """Go back; the optimizer clips."""
        with _opacus():
            self._losses.mean().backward()
        self._losses = self._losses.detach()
        samples = [getattr(p, "grad_sample", None) for p in self.model.parameters()]
        self.accounts.register([s for s in samples if s is not None], STASH)


@dataclass
class OpacusGhost:
    """Opacus' ghost clipping: norms by Gram matrices, then the reweighted loss."""

    model: PreTrainedModel
    privacy: Privacy
    accounts: Accounts

    def __post_init__(self) -> None:
        check_private(self.model)
        self.model.train()
        with _opacus():
            from opacus.grad_sample import GradSampleModuleFastGradientClipping

            self.wrapped = GradSampleModuleFastGradientClipping(
                self.model, loss_reduction="mean", max_grad_norm=self.privacy.max_norm
            )
        self._optimizer: Any = None
        self._losses = torch.empty(0)

    def private(self, optimizer: Optimizer, generator: torch.Generator | None) -> Any:
        """The optimizer that adds noise and steps."""
        from opacus.optimizers import DPOptimizerFastGradientClipping

        self._optimizer = DPOptimizerFastGradientClipping(
            optimizer, generator=generator, **_mechanism(self.privacy)
        )
        return self._optimizer

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch."""
        self.wrapped.enable_hooks()
        with _opacus():
            self._losses = sample_losses(self.model, batch, self.accounts)

    def backward(self) -> None:
        """Go back twice, through Opacus' own loss."""
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        losses, self._losses = self._losses, torch.empty(0)
        with _opacus():
            DPTensorFastGradientClipping(self.wrapped, self._optimizer, losses).backward()


@contextmanager
def _opacus() -> Iterator[None]:
    """A block of Opacus' own: its warnings kept quiet, its failures told in a line.

    Raises:
        RequestError: it can't do the model; that it has no memory is no such failure.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # of a model that it can't do Opacus raises what it runs into
        if isinstance(error, ParamscopeError) or out_of_memory(error):
            raise
        first = next(iter(str(error).strip().splitlines()), "")
        raise RequestError(
            f"Opacus can't do this model ({type(error).__name__}: {first}); method bk or micro may"
        ) from error


def _mechanism(privacy: Privacy) -> dict[str, Any]:
    expected = privacy.expected_batch
    if expected != int(expected):
        raise RequestError(f"expected_batch is {expected:g}, and Opacus takes whole numbers")
    return {
        "noise_multiplier": privacy.noise_multiplier,
        "max_grad_norm": privacy.max_norm,
        "expected_batch_size": int(expected),
        "loss_reduction": "mean",
    }
