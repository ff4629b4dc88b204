"""Activation sparsity: how often a unit's output is zero.

A unit is an output row of a linear layer. Where an activation function reads the layer's
output, as after an MLP's first layer, what counts is the function's result: a ReLU makes the
zeros, so the output before it has next to none. Elsewhere the output itself counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.persample.layers import is_linear

SPARSITY = pa.schema(
    [
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("sparsity", pa.float64(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
        pa.field("after_activation", pa.bool_(), nullable=False),
    ]
)


def unit_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers whose rows are units, by name: all but the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if module is not head and is_linear(module)
    }


def unit_names(tensor: str, rows: int) -> list[str]:
    """The names of a tensor's units."""
    return [f"{tensor}:{row}" for row in range(rows)]


@torch.no_grad()
def activation_sparsity(
    model: PreTrainedModel, sequences: Sequences, threshold: float, batch_size: int
) -> pd.DataFrame:
    """Share of tokens at which each unit's output is within `threshold` of 0.

    Returns a table of the schema `SPARSITY`; pads count for nothing. A unit that is never
    above the threshold (sparsity 1) is dead on this text.
    """
    counters = {name: _Counter(threshold) for name in unit_layers(model)}
    with _Hooks(model, counters):
        for batch in tqdm(
            sequences.batches(batch_size), total=-(-len(sequences) // batch_size), desc="sparsity"
        ):
            places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
            text = places < batch.lengths[:, None]
            logits(model, batch.ids)
            for counter in counters.values():
                counter.count(text)
    frames = []
    for name, counter in counters.items():
        share = counter.share()
        rows = len(share)
        frames.append(
            pd.DataFrame(
                {
                    "tensor": f"{name}.weight",
                    "unit": unit_names(f"{name}.weight", rows),
                    "row": range(rows),
                    "sparsity": share.tolist(),
                    "n_tokens": counter.tokens,
                    "after_activation": counter.activated,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@dataclass
class _Counter:
    """Zeros and tokens of one layer; `output` is what the current batch's count will read."""

    threshold: float
    output: Tensor | None = None
    activated: bool = False
    zeros: Tensor | None = None
    tokens: int = 0

    def share(self) -> Tensor:
        """Zeros a token of each row; empty where the layer was never called."""
        return torch.zeros(0) if self.zeros is None else self.zeros / self.tokens

    def count(self, text: Tensor) -> None:
        if self.output is None:  # the batch did not call this layer
            return
        small = self.output.reshape(*text.shape, -1)[text].abs() <= self.threshold
        zeros = small.sum(0, dtype=torch.float64).cpu()
        self.zeros = zeros if self.zeros is None else self.zeros + zeros
        self.tokens += len(small)
        self.output = None


class _Hooks:
    """Hooks that hand each layer's output, or its activation's result, to its counter."""

    def __init__(self, model: PreTrainedModel, counters: dict[str, _Counter]) -> None:
        self.model, self.counters = model, counters
        self.latest: tuple[int, _Counter] | None = None

    def __enter__(self) -> "_Hooks":
        self.handles = []
        for name, module in self.model.named_modules():
            if name in self.counters:
                hook = self._of_layer(self.counters[name])
            elif not list(module.children()) and not list(module.parameters()):
                hook = self._of_activation
            else:
                continue
            self.handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _of_layer(self, counter: _Counter) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            counter.output, self.latest = output, (id(output), counter)

        return hook

    def _of_activation(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A parameter-free module that reads a layer's very output is its activation."""
        if isinstance(module, nn.Dropout | nn.Identity):
            return
        if self.latest and args and id(args[0]) == self.latest[0]:
            counter = self.latest[1]
            counter.output, counter.activated = output, True
