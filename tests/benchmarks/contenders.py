"""The diagonal estimators that the curvature benchmark sets side by side, ours and others'.

Each is prepared once on a case and then asked for estimates at growing budgets. All answer
for the mean loss a predicted token over the same sequences in the same microbatches.
"""

from collections.abc import Callable
from dataclasses import dataclass

from by_entry import by_entry, double_backward, finite_difference, jvp_grad
from case import Case, Estimate, Estimator
from peers import curvlinops_hutchinson, curvlinops_xdiag, sampled_ggn
from torch import Tensor


@dataclass(frozen=True)
class Contender:
    """An estimator of a diagonal.

    Attributes:
        of: whose diagonal, "ggn" or "hessian".
        unit: what a budget counts: "draw", "probe", "matvec" or "entry".
        budgets: those to measure, rising.
        prepare: makes the estimator ready; not timed.
        dtype: number format of the model that it gets.
    """

    of: str
    unit: str
    budgets: tuple[int, ...]
    prepare: Callable[[Case], Estimator]
    dtype: str = "float32"


def _ours(case: Case, draw: Callable[..., list[dict[str, Tensor]]]) -> Estimator:
    def estimate(budget: int, seed: int) -> Estimate:
        draws = draw(
            case.model, case.sequences, range(budget), seed=seed, batch_size=case.batch_size
        )
        mean = draws.pop()
        while draws:
            for name, value in draws.pop().items():
                mean[name].add_(value)
        for value in mean.values():
            value.div_(budget)
        return case.pick(mean)

    return estimate


def _ggn(case: Case) -> Estimator:
    from paramscope.curvature.ggn import ggn_draws

    return _ours(case, ggn_draws)


def _hutchinson(case: Case) -> Estimator:
    from paramscope.curvature.hutchinson import hutchinson_draws

    return _ours(case, hutchinson_draws)


CONTENDERS = {
    "ggn": Contender("ggn", "draw", (1, 2, 4, 8, 16), _ggn),
    "sampled_ggn": Contender("ggn", "draw", (1, 2, 4, 8, 16), sampled_ggn),
    "curvlinops_ggn_hutchinson": Contender(
        "ggn", "matvec", (1, 4, 16, 64), curvlinops_hutchinson("GGNLinearOperator")
    ),
    "hutchinson": Contender("hessian", "probe", (1, 4, 16, 64), _hutchinson),
    "curvlinops_hutchinson": Contender(
        "hessian", "matvec", (1, 4, 16, 64), curvlinops_hutchinson("HessianLinearOperator")
    ),
    "curvlinops_xdiag": Contender("hessian", "matvec", (4, 16, 64), curvlinops_xdiag),
    "double_backward": Contender("hessian", "entry", (4, 16), by_entry(double_backward)),
    "jvp_grad": Contender("hessian", "entry", (4, 16), by_entry(jvp_grad)),
    "finite_difference": Contender(
        "hessian", "entry", (4, 16), by_entry(finite_difference), "float64"
    ),
}
