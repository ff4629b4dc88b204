"""What is kept of a layer from the backward until all samples' norms are known.

A stash says each sample's squared norm, and later the weighted sum of the samples' gradients.
It holds per-sample gradients where they are smaller than the layer's input and the gradient of
its output, and those otherwise.

Source: Bu et al. 2023 (arXiv:2210.00038), book-keeping; the choice by layer is theirs, too.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor, nn

from paramscope.dpsgd.parts import NORMS, STASH, Accounts
from paramscope.persample import answers, linear, tied_head
from paramscope.persample import embedding as embedding_layer
from paramscope.persample.layers import is_conv1d, is_linear
from paramscope.persample.precision import accumulator, wide


class Stash(Protocol):
    """What is kept of one layer, or of layers that share a parameter.

    Attributes:
        squared_norms: ‖gradient‖² of each sample over the stash's parameters, [B].
    """

    squared_norms: Tensor

    def weighted_sums(self, weights: Tensor, samples: Tensor | None) -> list[tuple[str, Tensor]]:
        """Σ weight_s · gradient_s for weights [B], by parameter's name in the model.

        Of the samples at these places alone, where given; uses the stash up.
        """


class Gradients:
    """Per-sample gradients by parameter's name, [B, …] each."""

    def __init__(self, gradients: dict[str, Tensor], accounts: Accounts) -> None:
        self.gradients = gradients
        with accounts.scope(NORMS):
            norms = [_squared_norms(gradient) for gradient in gradients.values()]
            self.squared_norms = torch.stack(norms).sum(0)

    def weighted_sums(self, weights: Tensor, samples: Tensor | None) -> list[tuple[str, Tensor]]:
        """As the protocol says; a single sample's gradient is scaled where it is."""
        found = []
        while self.gradients:
            name, gradient = self.gradients.popitem()
            found.append((name, _weighted(gradient, weights, samples)))
        return found


class Pairs:
    """A layer's input [B, T, d] (ids of an embedding) and the gradient of its output."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        pair: tuple[Tensor, Tensor],
        wanted: Collection[str],
        accounts: Accounts,
    ) -> None:
        self.name, self.module, self.wanted = name, module, wanted
        self.a, self.g = pair
        accounts.register([self.g], STASH)
        with accounts.scope(NORMS):
            norms = answers.squared_norms(name, module, self.a, self.g)
            self.squared_norms = torch.stack([norms[suffix] for suffix in wanted]).sum(0)

    def weighted_sums(self, weights: Tensor, samples: Tensor | None) -> list[tuple[str, Tensor]]:
        """As the protocol says."""
        a, g = (x if samples is None else x[samples] for x in (self.a, self.g))
        weights = weights if samples is None else weights[samples]
        sums = answers.weighted_sums(self.name, self.module, a, g, weights)
        del self.a, self.g
        return [(_joined(self.name, suffix), sums[suffix]) for suffix in self.wanted]


class TiedHead:
    """A head's own stash and the embedding's that has the same weight, as one.

    Either the head's per-sample gradients, to which the embedding's are added, or both pairs.
    """

    def __init__(
        self,
        head: dict[str, Tensor] | Pairs,
        weight: str,
        embedding: tuple[nn.Embedding, Tensor, Tensor],
        accounts: Accounts,
    ) -> None:
        module, ids, g = embedding
        self.parts: list[Stash] = []
        if not isinstance(head, Pairs):
            total = head[weight]
            own = embedding_layer.without_padding(ids, g, module.padding_idx).to(total.dtype)
            rows = ids + total.shape[1] * torch.arange(len(ids), device=ids.device)[:, None]
            total.view(-1, total.shape[-1]).index_add_(0, rows.flatten(), own.flatten(0, 1))
            whole = Gradients(head, accounts)
            self.parts, self.squared_norms = [whole], whole.squared_norms
            return
        rest = Pairs(weight.rpartition(".")[0], module, (ids, g), ["weight"], accounts)
        with accounts.scope(NORMS):
            cross = tied_head.cross_norms(ids, g, head.a, head.g, module.padding_idx)
            self.squared_norms = (head.squared_norms + rest.squared_norms + cross).clamp_(min=0)
        self.parts = [head, rest]

    def weighted_sums(self, weights: Tensor, samples: Tensor | None) -> list[tuple[str, Tensor]]:
        """As the protocol says; the weight's comes in two parts to be added where it does so."""
        return [pair for part in self.parts for pair in part.weighted_sums(weights, samples)]


def stash(
    name: str,
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    wanted: Collection[str],
    accounts: Accounts,
) -> Stash:
    """What to keep of a layer whose pair `capture` hands over, of its parameters `wanted`."""
    with accounts.scope(STASH):
        kept = _gradients(name, module, a, g, wanted)
    if kept is None:
        return Pairs(name, module, (a, g), wanted, accounts)
    return Gradients({_joined(name, suffix): kept[suffix] for suffix in wanted}, accounts)


def _gradients(
    name: str, module: nn.Module, a: Tensor, g: Tensor, wanted: Collection[str]
) -> dict[str, Tensor] | None:
    """Per-sample gradients by a parameter's own name; None where the pair is smaller."""
    if is_linear(module):
        x, y = a.flatten(1, -2), g.flatten(1, -2)
        found = {"bias": wide(y).sum(1)} if "bias" in wanted else {}
        if "weight" in wanted:
            (B, T, d), p = x.shape, y.shape[-1]
            if not linear.prefers_gradients(B, T, d, p):
                return None
            rows, columns = (x, y) if is_conv1d(module) else (y, x)
            found["weight"] = linear.per_sample_gradients(columns, rows)
        return found
    if isinstance(module, nn.Embedding):
        return None
    return answers.normalization_gradients(name, module, a, g)


def _squared_norms(gradient: Tensor) -> Tensor:
    dtype = accumulator(gradient, 0).dtype
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=dtype)
    return norms.square_()


def _weighted(gradient: Tensor, weights: Tensor, samples: Tensor | None) -> Tensor:
    if samples is not None:
        gradient, weights = gradient[samples], weights[samples]
    weights = weights.to(gradient.dtype)
    if len(gradient) == 1:
        return gradient.mul_(weights.view(-1, *[1] * (gradient.dim() - 1)))[0]
    return (weights @ gradient.flatten(1)).view(gradient.shape[1:])


def _joined(name: str, suffix: str) -> str:
    return f"{name}.{suffix}" if name else suffix
