"""Pruning a model by any method, by the name that the configuration has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.compression.admm import admm
from paramscope.compression.gradual import Recover, stages
from paramscope.compression.layers import Masks, prunable, weight_of
from paramscope.compression.magnitude import magnitude
from paramscope.compression.one_layer import Options, PruneLayer
from paramscope.compression.one_pass import Pass, Pruned
from paramscope.compression.patterns import PATTERNS, Pattern
from paramscope.compression.sparsegpt import sparsegpt
from paramscope.compression.statistics import SecondMoments, Squares
from paramscope.compression.stream import NewStatistic
from paramscope.compression.wanda import wanda
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences

__all__ = ["METHODS", "NAMES", "Method", "Options", "Pruned", "prune"]


@dataclass(frozen=True)
class Method:
    """A pruning method.

    Attributes:
        prune: the function.
        statistic: what it needs to know of a layer's inputs; None for nothing.
        by_stages: whether it goes down to a density by stages.
    """

    prune: PruneLayer
    statistic: NewStatistic | None
    by_stages: bool = False


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "magnitude": Method(magnitude, None),
        "wanda": Method(wanda, Squares),
        "sparsegpt": Method(sparsegpt, SecondMoments),
        "gradual": Method(sparsegpt, SecondMoments, by_stages=True),
        "admm": Method(admm, SecondMoments),
    }
)
NAMES = tuple(METHODS)


def prune(
    model: PreTrainedModel,
    calibration: Sequences | None,
    *,
    method: str,
    density: float,
    pattern: str = "unstructured",
    options: Options | None = None,
    batch_size: int = 8,
    seed: int = 0,
    within: Masks | None = None,
    recover: Recover | None = None,
) -> Pruned:
    """Prune the linear layers inside `model`'s blocks, in place, to a share of their weights.

    At density 1 not a bit of the model changes. By stages, `layers` tells of the last one, but
    for `wall_s`, which is all stages' time.

    Args:
        model: the model.
        calibration: text whose hidden states layers are pruned by; magnitude needs none.
        method: one of `NAMES`.
        density: the share that each layer keeps, in (0, 1].
        pattern: "2:4" keeps two of every four inputs of an output, at density .5.
        options: the methods' settings.
        batch_size: sequences a forward.
        seed: draws `options.samples` calibration sequences, anew for each stage.
        within: masks of an earlier pruning: what they prune stays pruned.
        recover: called with the model and its masks after each stage but the last.

    Raises:
        RequestError: an unknown method or pattern, a density or an option out of range, no
            calibration text where one is needed, a model with shared linear layers or none, or
            a layer whose weights or inputs are not finite.
    """
    options = options or Options()
    if method not in METHODS:
        raise RequestError(f"no pruning method '{method}'; known are {', '.join(METHODS)}")
    found = METHODS[method]
    chosen = _checked(found, density, pattern, options)
    layers = prunable(model)
    _check_layers(layers, chosen)
    statistic = SecondMoments if options.losses else found.statistic
    run = Pass(model, layers, found.prune, statistic, chosen, options, batch_size)
    path = stages(density) if found.by_stages else [density]
    passes: list[Pruned] = []
    for number, stage in enumerate(path):
        text = _drawn(model, calibration, options, seed, number)
        passes.append(run.prune(text, stage, within))
        within = passes[-1].masks
        if recover is not None and number + 1 < len(path):
            recover(model, within)
    wall_s = pd.concat([done.layers["wall_s"] for done in passes], axis=1).sum(axis=1)
    return replace(passes[-1], layers=passes[-1].layers.assign(wall_s=wall_s))


def _drawn(
    model: PreTrainedModel, text: Sequences | None, options: Options, seed: int, stage: int
) -> Sequences | None:
    """The calibration text of a stage, on the model's device."""
    if text is None:
        return None
    if options.samples is not None:
        generator = torch.Generator().manual_seed(seed_of(seed, "calibration", stage))
        chosen = torch.randperm(len(text), generator=generator)[: options.samples]
        names = tuple(text.names[i] for i in chosen.tolist())
        text = Sequences(text.ids[chosen], text.lengths[chosen], names)
    return text.to(model.device)


def _checked(method: Method, density: float, pattern: str, options: Options) -> Pattern:
    """The pattern, of a request that can be met."""
    if not 0 < density <= 1:
        raise RequestError(f"density {density:g}: give the share of weights to keep, in (0, 1]")
    if options.blocksize < 1 or options.iterations < 1 or not options.damping > 0:
        raise RequestError(
            f"blocksize {options.blocksize}, iterations {options.iterations}, damping "
            f"{options.damping:g}: each must be above 0"
        )
    if options.samples is not None and options.samples < 1:
        raise RequestError(f"{options.samples} calibration samples: give at least 1")
    for known in PATTERNS:
        if pattern == known:
            break
    else:
        raise RequestError(f"no pattern '{pattern}'; known are {', '.join(PATTERNS)}")
    if known == "2:4":
        if density != 0.5:
            raise RequestError(f"2:4 keeps half of the weights: density {density:g} can't be")
        if method.by_stages:
            raise RequestError("2:4 has one density, so no stages; take method sparsegpt")
        if options.blocksize % 4:
            raise RequestError(f"2:4 needs a blocksize of whole fours, not {options.blocksize}")
    return known


def _check_layers(layers: Mapping[str, nn.Module], pattern: Pattern) -> None:
    """Refuse, before anything is changed, weights that no method can rank or lay out."""
    for name, layer in layers.items():
        weight = weight_of(layer)
        if not bool(weight.isfinite().all()):
            raise RequestError(f"{name}.weight holds NaN or infinity; it can't be pruned")
        if pattern == "2:4" and weight.shape[1] % 4:
            raise RequestError(f"{name} has {weight.shape[1]} inputs, which 2:4 can't divide by 4")
