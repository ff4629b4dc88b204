"""Exact diagonal entries, one at a time: what a whole diagonal would cost by them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from case import Case, Estimate, Estimator, Scores, labelled
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from paramscope.curvature.products import Entry, hessian_entries
from paramscope.models.losses import mean_loss

STEP = 1e-6  # of the central differences


def by_entry(values: Callable[[Case, list[Entry]], list[float]]) -> Callable[[Case], Estimator]:
    """An estimator that takes `budget` entries at random, each exactly."""

    def prepare(case: Case) -> Estimator:
        def estimate(budget: int, seed: int) -> Estimate:
            chosen = np.random.default_rng(seed).permutation(len(case.entries))[:budget].tolist()
            return chosen, values(case, [case.entries[i] for i in chosen])

        return estimate

    return prepare


def double_backward(case: Case, entries: list[Entry]) -> list[float]:
    total = np.zeros(len(entries))
    for batch, share in case.shares():
        total += share * np.array(list(hessian_entries(case.model, batch, entries)))
    return total.tolist()


def jvp_grad(case: Case, entries: list[Entry]) -> list[float]:
    """Forward over reverse, each entry within its own tensor alone."""
    model = Scores(case.model)
    parameters = dict(case.model.named_parameters())
    batches = [(*labelled(batch), share) for batch, share in case.shares()]
    found = []
    for name, index in entries:
        total = 0.0
        value = parameters[name].detach()
        tangent = torch.zeros_like(value)
        tangent.view(-1)[index] = 1
        for x, labels, share in batches:

            def loss(v: Tensor, x=x, labels=labels, name=name) -> Tensor:
                z = functional_call(model, {f"model.{name}": v}, (x,))
                return nn.functional.cross_entropy(z, labels)

            with _frozen(case.model), sdpa_kernel(SDPBackend.MATH):
                moved = jvp(grad(loss), (value,), (tangent,))[1]
            total += share * float(moved.flatten()[index])
        found.append(total)
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, so that none is kept ready for one."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


def finite_difference(case: Case, entries: list[Entry]) -> list[float]:
    """Central differences of the gradient, each entry within its own tensor alone."""
    parameters = dict(case.model.named_parameters())

    def slope(name: str, index: int, step: float) -> float:
        entry = parameters[name].data.view(-1)[index]
        before = entry.clone()
        entry.add_(step)
        total = 0.0
        for batch, share in case.shares():
            part = torch.autograd.grad(mean_loss(case.model, batch), parameters[name])[0]
            total += share * float(part.flatten()[index])
        entry.copy_(before)
        return total

    return [(slope(n, i, STEP) - slope(n, i, -STEP)) / (2 * STEP) for n, i in entries]
