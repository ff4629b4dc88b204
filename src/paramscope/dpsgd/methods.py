"""The methods by name, and a step of training with any of them."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from paramscope.dpsgd.book_keeping import BookKeeping
from paramscope.dpsgd.noise import Noise
from paramscope.dpsgd.parts import Accounts, NoAccounts
from paramscope.dpsgd.plain import Micro, Pass, Vanilla
from paramscope.dpsgd.privacy import Clipped, Privacy
from paramscope.dpsgd.trained import check_private
from paramscope.dpsgd.two_backwards import TwoBackwards
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.names import DPSGD_METHODS

CHUNKED = ("vanilla", "bk", "per_layer", "micro")
CHECKPOINTED = (*CHUNKED, "ghost", "flash")


class Method(Protocol):
    """A forward, and a backward that leaves (clipped) sums of gradients in `.grad`."""

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch."""

    def backward(self) -> Clipped | None:
        """Go back; what became of the samples, where the method tells."""


@dataclass(frozen=True)
class Options:
    """What a method can be run with besides its name.

    Attributes:
        chunk_tokens: tokens whose logits exist at a time; 0: no chunks.
        checkpoint: keep blocks' inputs alone, and run the blocks again in the backward.
    """

    chunk_tokens: int = 0
    checkpoint: bool = False


class Step(Protocol):
    """What ends a logical step."""

    def step(self) -> Any:
        """Change the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> Any:
        """Let the gradients go."""


@runtime_checkable
class OwnStep(Protocol):
    """A method that brings what ends its steps."""

    def private(self, optimizer: Optimizer, generator: torch.Generator | None) -> Step:
        """The optimizer that adds noise and steps."""


@dataclass
class NoisyStep:
    """An optimizer's step on the noisy mean of clipped gradients."""

    optimizer: Optimizer
    model: PreTrainedModel
    privacy: Privacy
    noise: Noise

    def step(self) -> None:
        """Add noise, divide by the expected batch, and step."""
        self.noise.privatize(check_private(self.model), self.privacy)
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the gradients go."""
        self.optimizer.zero_grad(set_to_none)


def make_method(
    name: str,
    model: PreTrainedModel,
    privacy: Privacy,
    options: Options = Options(),
    accounts: Accounts | None = None,
) -> Method:
    """The method called `name`, on `model` as it is.

    Raises:
        RequestError: an unknown method, an option that it has not, or a model that it can't do.
    """
    if name not in DPSGD_METHODS:
        raise RequestError(f"method '{name}' is not known; known are {', '.join(DPSGD_METHODS)}")
    if options.chunk_tokens < 0:
        raise RequestError(f"chunk_tokens is {options.chunk_tokens}; give 0 (no chunks) or more")
    for wanted, option, able in (
        (options.chunk_tokens, "a chunked loss", CHUNKED),
        (options.checkpoint, "checkpointing", CHECKPOINTED),
    ):
        if wanted and name not in able:
            raise RequestError(f"method {name} has not {option}; {', '.join(able)} have")
    told = accounts or NoAccounts()
    chunk, checkpoint = options.chunk_tokens, options.checkpoint
    if name == "vanilla":
        check_private(model)
        return Vanilla(Pass(model, told, chunk, checkpoint))
    if name == "micro":
        return Micro(Pass(model, told, chunk, checkpoint), privacy.max_norm)
    if name in ("bk", "per_layer"):
        by_layer = name == "per_layer"
        return BookKeeping(model, privacy.max_norm, told, chunk, checkpoint, by_layer)
    if name in ("ghost", "flash"):
        route: Literal["gram"] | None = "gram" if name == "ghost" else None
        return TwoBackwards(model, privacy.max_norm, told, route, checkpoint)
    from paramscope.dpsgd.peers import OpacusGhost, OpacusHooks

    return (OpacusHooks if name == "opacus_hooks" else OpacusGhost)(model, privacy, told)


def make_step(
    method: Method,
    model: PreTrainedModel,
    optimizer: Optimizer,
    privacy: Privacy,
    seed: int,
) -> Step:
    """What ends a logical step of `method`: Opacus' methods bring their own, vanilla has none."""
    if isinstance(method, Vanilla):
        return optimizer
    if isinstance(method, OwnStep):
        return method.private(optimizer, torch.Generator(model.device).manual_seed(seed))
    return NoisyStep(optimizer, model, privacy, Noise(seed, model.device))
