"""One pass over a model's layers, each pruned to the same density."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.compression.bits import pack, unpack
from paramscope.compression.layers import Masks, weight_of
from paramscope.compression.one_layer import Answer, Ask, Options, PruneLayer
from paramscope.compression.patterns import Pattern
from paramscope.compression.statistics import SecondMoments, Statistic
from paramscope.compression.stream import NewStatistic, Stream
from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.sequences import Sequences
from paramscope.names import block_number
from paramscope.persample.layers import is_conv1d
from paramscope.rehearsal import rounds

ROWS = 128  # of a weight that are compared or written at a time


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        masks: by the weight's name, in its own shape, True where it is kept.
        layers: a row a weight, of `schemas.LAYERS`. `loss` is ‖(W − W')X‖² / ‖WX‖² on the
            calibration text, null where the second moments of X were not taken; `wall_s` holds
            an equal part of the time that the layer's statistic took.
    """

    masks: Masks
    layers: pd.DataFrame


@dataclass(frozen=True)
class Pass:
    """How each layer of a model is pruned.

    Attributes:
        model: the model.
        layers: its layers that are pruned, by name.
        method: at one layer.
        statistic: what the method needs of a layer's inputs; None for nothing.
        pattern: where kept weights may stand.
        options: the methods' settings.
        batch_size: sequences a forward.
    """

    model: PreTrainedModel
    layers: Mapping[str, nn.Module]
    method: PruneLayer
    statistic: NewStatistic | None
    pattern: Pattern
    options: Options
    batch_size: int

    @torch.no_grad()
    def prune(self, text: Sequences | None, density: float, within: Masks | None) -> Pruned:
        """Prune all layers in place to `density`, inside earlier masks if there are any.

        Raises:
            RequestError: no text where one is needed, or a layer that can't be pruned.
        """
        training = self.model.training
        self.model.eval()
        masks: dict[str, tuple[Tensor, torch.Size]] = {}  # at a bit a weight
        rows: dict[str, dict[str, object]] = {}
        try:
            for name, statistic, inputs_s in self._reached(text, dense=density == 1):
                started = time.perf_counter()
                key = f"{name}.weight"
                earlier = None if within is None else within[key]
                mask, rows[key] = self._layer(name, statistic, density, earlier)
                masks[key] = pack(mask), mask.shape
                rows[key]["wall_s"] = inputs_s + time.perf_counter() - started
                del statistic, mask  # or the next group's would be made beside it
        finally:
            self.model.train(training)
        keys = [f"{name}.weight" for name in self.layers]
        frame = pd.DataFrame([rows[key] for key in keys])
        frame = frame.astype({"layer": "int16", "loss": "float64", "damping": "float64"})
        return Pruned({key: unpack(*masks[key]).to(self.model.device) for key in keys}, frame)

    def _layer(
        self, name: str, statistic: Statistic | None, density: float, earlier: Tensor | None
    ) -> tuple[Tensor, dict[str, object]]:
        """Prune one layer; return its mask as the weight is stored, and its row."""
        layer = self.layers[name]
        weight = weight_of(layer)
        allowed = None if earlier is None else _as_stored(layer, earlier)
        loss: float | None = 0.0
        if density == 1:
            whole = torch.ones_like(weight, dtype=torch.bool)
            answer = Answer(whole if allowed is None else allowed)
        else:
            ask = Ask(density, self.pattern, allowed, self.options)
            try:
                answer = self.method(weight, statistic, ask)
            except RequestError as error:
                raise RequestError(f"{name} can't be pruned: {error}") from error
            moments = statistic if isinstance(statistic, SecondMoments) else None
            loss = None if moments is None else _loss(weight, answer, moments)
            _write(weight, answer)
        kept = int(answer.mask.sum())
        key = f"{name}.weight"
        return _as_stored(layer, answer.mask).contiguous(), {
            "layer": block_number(key),
            "tensor": key,
            "n_weights": answer.mask.numel(),
            "n_kept": kept,
            "density_asked": density,
            "density": kept / answer.mask.numel(),
            "loss": loss,
            "damping": answer.damping,
        }

    def _reached(
        self, text: Sequences | None, dense: bool
    ) -> Iterator[tuple[str, Statistic | None, float]]:
        """Each layer's name, when it is its turn to be pruned, what is known of its inputs, and
        its part of the seconds that took.
        """
        if dense or self.statistic is None:
            for name in tqdm(self.layers, desc="pruning", unit="layer"):
                yield name, None, 0.0
            return
        if text is None:
            raise RequestError("this method prunes by a calibration text: give one")
        stream = Stream(self.model, text, self.batch_size)
        inside = blocks(self.model)
        for block_name, block in tqdm(inside, desc="pruning", unit="block"):
            own = {n: m for n, m in self.layers.items() if n.startswith(f"{block_name}.")}
            pruned: dict[str, Tensor] = {}
            for group in stream.groups(block, own) if own else ():
                started = time.perf_counter()
                statistic = self._statistic(own[group[0]])
                stream.count(block, group[0], own[group[0]], statistic)
                seconds = (time.perf_counter() - started) / len(group)
                for name in group:
                    before = None if self.options.within_block else weight_of(own[name]).clone()
                    yield name, statistic, seconds
                    if before is not None:
                        pruned[name] = weight_of(own[name]).clone()
                        weight_of(own[name]).copy_(before)
                del statistic
            for name, weight in pruned.items():
                weight_of(own[name]).copy_(weight)
            if block is not inside[-1][1]:
                stream.advance(block)

    def _statistic(self, layer: nn.Module) -> Statistic:
        assert self.statistic is not None
        weight = weight_of(layer)
        dtype = torch.promote_types(weight.dtype, getattr(torch, self.options.dtype))
        return self.statistic(weight.shape[1], weight.device, dtype)


def _as_stored(layer: nn.Module, values: Tensor) -> Tensor:
    """Values [out, in] as the layer stores its weight, and back."""
    return values.T if is_conv1d(layer) else values


def _write(weight: Tensor, answer: Answer) -> None:
    """Give `weight` [out, in] its new values, +0 where it is pruned."""
    for part in rounds(range(0, len(weight), ROWS), 1):
        place = slice(part, part + ROWS)
        if answer.weight is not None:
            weight[place] = answer.weight[place]
        weight[place].masked_fill_(~answer.mask[place], 0)


def _loss(weight: Tensor, answer: Answer, statistic: SecondMoments) -> float | None:
    """‖(W − W')X‖² / ‖WX‖² with W' as it will be stored; None where WX is 0."""
    lost = whole = 0.0
    for part in rounds(range(0, len(weight), ROWS), 1):
        place = slice(part, part + ROWS)
        old = weight[place]
        new = old if answer.weight is None else answer.weight[place].to(old.dtype)
        whole += statistic.energy(old)
        difference = old.to(statistic.matrix.dtype) - new.masked_fill(~answer.mask[place], 0)
        lost += statistic.energy(difference)
    return lost / whole if whole else None
