"""The estimators of the curvature's diagonal, by the name that `curvature.method` has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from paramscope.curvature.exact import exact_diagonal
from paramscope.curvature.finite_difference import finite_difference_diagonal
from paramscope.curvature.ggn import ggn_draws
from paramscope.curvature.hutchinson import hutchinson_draws
from paramscope.curvature.xdiag import xdiag_draws
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.persample.graphs import Graph


class Draw(Protocol):
    """What every estimator is called with, and what comes back: a diagonal a draw, by name."""

    def __call__(
        self,
        model: PreTrainedModel,
        sequences: Sequences,
        draws: range,
        *,
        seed: int,
        batch_size: int,
    ) -> list[dict[str, Tensor]]:
        """One diagonal a draw; where nothing is random, a single one."""


@dataclass(frozen=True)
class Method:
    """An estimator.

    Attributes:
        draw: the function.
        of: whose diagonal it is: the generalised Gauss–Newton matrix's or the Hessian's.
        random: whether draws differ. Where they don't, the value is exact and has no error.
    """

    draw: Draw
    of: Literal["ggn", "hessian"]
    random: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ggn": Method(ggn_draws, of="ggn", random=True),
        "hutchinson": Method(hutchinson_draws, of="hessian", random=True),
        "xdiag": Method(xdiag_draws, of="hessian", random=True),
        "exact": Method(exact_diagonal, of="hessian", random=False),
        "finite_difference": Method(finite_difference_diagonal, of="hessian", random=False),
    }
)


def method(name: str) -> Method:
    """The estimator of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in METHODS:
        raise RequestError(f"no curvature method '{name}'; known are {', '.join(METHODS)}")
    return METHODS[name]


def estimator(name: str, *, graph: Graph, probes: int) -> Method:
    """The estimator of that name with the settings that are its own.

    Args:
        name: the method.
        graph: how `ggn` holds the model's graph.
        probes: the products a draw of `xdiag`.

    Raises:
        RequestError: no such method, or a graph that another than `ggn` is asked to hold.
    """
    found = method(name)
    if name == "ggn":
        return replace(found, draw=partial(ggn_draws, graph=graph))
    if graph != "whole":
        raise RequestError(f"--graph {graph} is of method ggn; {name} holds its graph whole")
    if name == "xdiag":
        return replace(found, draw=partial(xdiag_draws, probes=probes))
    return found
