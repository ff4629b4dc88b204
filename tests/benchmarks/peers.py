"""Diagonal estimators of curvlinops, and one that its release lacks.

Those of curvlinops are called as its documentation does, with attention in SDPA's math kernel,
which their derivatives demand.
"""

from collections.abc import Callable

import torch
from case import Case, Estimate, Estimator, Scores, gradient, labelled
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from paramscope.models.losses import mean_loss

TOGETHER = 4  # vectors a call of hutchinson_diag: as fast a vector as 8, at half the memory
SHARED = 4  # sampled draws a forward: each holds the gradients of a microbatch's sequences


def _operator(case: Case, kind: str) -> "tuple[object, list[str]]":
    """curvlinops' linear operator of the loss, found to have our loss and gradient."""
    import curvlinops

    model = Scores(case.model)
    operator = getattr(curvlinops, kind)(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [labelled(batch) for batch, _ in case.shares()],
        check_deterministic=False,
        batch_size_fn=lambda x: len(x["rows"]),  # its weight in the mean
    )
    theirs, loss = operator.gradient_and_loss()
    with torch.no_grad():
        ours = sum(share * float(mean_loss(case.model, batch)) for batch, share in case.shares())
    if abs(float(loss) - ours) > 1e-6 * abs(ours):
        raise AssertionError(f"curvlinops' loss is {float(loss)}, ours {ours}")
    for a, b in zip(theirs, gradient(case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    return operator, [name for name, _ in case.model.named_parameters()]


def _named(case: Case, names: list[str], flat: Tensor) -> dict[str, Tensor]:
    sizes = [p.numel() for p in case.model.parameters()]
    return dict(zip(names, flat.split(sizes), strict=True))


def curvlinops_hutchinson(kind: str) -> Callable[[Case], Estimator]:
    def prepare(case: Case) -> Estimator:
        from curvlinops import hutchinson_diag

        operator, names = _operator(case, kind)

        def estimate(budget: int, seed: int) -> Estimate:
            torch.manual_seed(seed)
            total = torch.zeros(())
            for first in range(0, budget, TOGETHER):
                vectors = min(TOGETHER, budget - first)
                with sdpa_kernel(SDPBackend.MATH):
                    total = total + hutchinson_diag(operator, vectors) * (vectors / budget)
            return case.pick(_named(case, names, total))

        return estimate

    return prepare


def curvlinops_xdiag(case: Case) -> Estimator:
    from curvlinops import xdiag

    operator, names = _operator(case, "HessianLinearOperator")

    def estimate(budget: int, seed: int) -> Estimate:
        torch.manual_seed(seed)
        with sdpa_kernel(SDPBackend.MATH):
            return case.pick(_named(case, names, xdiag(operator, budget)))

    return estimate


def sampled_ggn(case: Case) -> Estimator:
    """Labels sampled from the model, gradients a sequence by vmap, squared and summed.

    The estimator of Dangel et al. 2020 (arXiv:1912.10985) with a sequence as the datum, whole
    model at once. Sampled gradients share their forward. Squares are added row by row, which
    is 15% faster than squaring [sequences, parameters] at once.
    """
    parameters = {name: p.detach() for name, p in case.model.named_parameters()}

    def sampled(ids: Tensor, predicted: Tensor, draws: int) -> list[dict[str, Tensor]]:
        positions = torch.arange(len(ids))[None]

        def scores(parameters: dict[str, Tensor]) -> Tensor:
            inputs = {"input_ids": ids[None], "position_ids": positions, "use_cache": False}
            output: Tensor = functional_call(case.model, parameters, kwargs=inputs).logits
            return output[0, :-1]

        z, backward = vjp(scores, parameters)
        p = z.softmax(-1)
        labels = torch.multinomial(p, draws, replacement=True)
        found = []
        for draw in range(draws):
            minus = -torch.ones_like(p[:, :1])
            r = p.scatter_add(-1, labels[:, draw, None], minus) * predicted[:, None]
            found.append(backward(r)[0])
        return found

    @torch.no_grad()
    def estimate(budget: int, seed: int) -> Estimate:
        torch.manual_seed(seed)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for batch, _ in case.shares():
            for first in range(0, budget, SHARED):
                draws = min(SHARED, budget - first)
                rows = vmap(sampled, in_dims=(0, 0, None), randomness="different")(
                    batch.ids, batch.predicted, draws
                )
                while rows:
                    for name, by_sequence in rows.pop().items():
                        for row in by_sequence:
                            total[name].addcmul_(row, row)
        for value in total.values():
            value.div_(budget * case.sequences.n_predicted)
        return case.pick(total)

    return estimate
