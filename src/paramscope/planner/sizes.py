"""How large things of a model are, which stages hold copies of."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from paramscope.errors import RequestError
from paramscope.models.blocks import blocks
from paramscope.models.faking import faked
from paramscope.persample.layers import is_conv1d, is_linear
from paramscope.planner.models import new_model
from paramscope.planner.stages.phases import Held

FLOAT32 = 4


@dataclass(frozen=True)
class Sizes:
    """The sizes that `Held.of` names; in bytes, but for those that are numbers."""

    weights: int
    vectors: int
    singles: int
    parameters: int
    inside: int
    factors: int
    largest: int
    entries: int
    blocks: int
    units: int
    hidden: int
    outputs: int
    cache: int
    logits: int
    dropout: int
    attention: int
    bytes: int = 1

    def of(self, held: Held) -> int:
        """What is held takes so much."""
        return round(float(getattr(self, held.of)) * held.times)


def sizes(config: PretrainedConfig, dtype: torch.dtype) -> Sizes:
    """The sizes of a model of that configuration, in that format.

    Raises:
        RequestError: a model that can't be built.
    """
    with faked():
        model = new_model(config, torch.float32)
    parameters = [parameter.numel() for parameter in model.parameters()]
    layers = [
        _shape(module)
        for module in model.modules()
        if is_linear(module) and module is not model.get_output_embeddings()
    ]
    try:
        inner = [_shape(m) for _, block in blocks(model) for m in block.modules() if is_linear(m)]
        depth = len(blocks(model))
    except RequestError:  # no stage that looks inside of blocks runs on it
        inner, depth = [], 1
    size, wide = dtype.itemsize, max(dtype.itemsize, FLOAT32)
    width = int(getattr(config, "hidden_size", model.get_input_embeddings().weight.shape[1]))
    N, drops = sum(parameters), _dropouts(config)
    heads = int(getattr(config, "num_attention_heads", 1))
    return Sizes(
        weights=N * size,
        vectors=N * wide,
        singles=N * FLOAT32,
        parameters=N,
        inside=sum(d * p for d, p in inner),
        factors=8 * sum(d**2 + p**2 for d, p in inner),
        largest=max(parameters) * size,
        entries=max(parameters),
        blocks=FLOAT32 * max([(d + 1) ** 2 for d, _ in layers], default=0),
        units=sum(p for _, p in layers),
        hidden=width * size,
        outputs=size * sum(p for _, p in layers),
        cache=2 * depth * width * size,
        logits=int(config.vocab_size) * wide,
        dropout=drops[0] * (2 * depth + 1) * width * size,
        attention=drops[1] * 3 * depth * heads * size,
    )


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    first, second = layer.get_parameter("weight").shape
    return (first, second) if is_conv1d(layer) else (second, first)


def _dropouts(config: PretrainedConfig) -> tuple[bool, bool]:
    """Whether hidden states are dropped out in training, and attention's weights."""
    rates = {
        key: value
        for key, value in config.to_dict().items()
        if "drop" in key and isinstance(value, int | float) and value > 0
    }
    attention = {key for key in rates if key.startswith("att")}
    return bool(rates.keys() - attention), bool(attention)
