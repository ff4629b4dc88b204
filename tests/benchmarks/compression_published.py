"""SparseGPT in the order of work that was published, to time ours beside it.

All inputs and all outputs of a block are held for the whole text. One forward a sequence gives
every layer of the block second moments of its own; the layers are pruned, and a second forward
a sequence makes the next block's inputs. A layer's factor comes from a Cholesky factorisation,
the inverse made of it, and that inverse's own factorisation.

Source: Frantar and Alistarh 2023 (arXiv:2301.00774) and its published code, whose order of
work and tensors are kept here.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.compression.layers import weight_of
from paramscope.models.blocks import blocks
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.persample.layers import is_linear

BLOCKSIZE = 128
DAMPING = 0.01
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _ReachedError(Exception):
    """Ends a forward at the first block."""


class Moments:
    """H = 2/n Σ xxᵀ of a layer's inputs, rescaled at each batch, [d, d]."""

    def __init__(self, width: int) -> None:
        self.H = torch.zeros(width, width)
        self.sequences = 0

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Count a sequence's inputs, [1, T, d]."""
        self.H *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        x = args[0].flatten(0, -2).T
        x = (2 / self.sequences) ** 0.5 * x.float()
        self.H += x @ x.T


@torch.no_grad()
def published(model: PreTrainedModel, text: Sequences, density: float) -> None:
    """Prune the linear layers in the blocks, in place.

    `text` holds sequences of one length, as published calibration has.
    """
    inside = blocks(model)
    inputs, arguments = _first_inputs(model, inside[0][1], text)
    outputs = torch.zeros_like(inputs)
    for name, block in inside:
        layers = {f"{name}.{n}": m for n, m in block.named_modules() if is_linear(m)}
        moments = {n: Moments(weight_of(layer).shape[1]) for n, layer in layers.items()}
        handles = [layer.register_forward_hook(moments[n].hook) for n, layer in layers.items()]
        _forward(block, inputs, outputs, arguments)
        for handle in handles:
            handle.remove()
        for n, layer in layers.items():
            _prune(weight_of(layer), moments.pop(n), density)
        _forward(block, inputs, outputs, arguments)
        inputs, outputs = outputs, inputs


def _first_inputs(
    model: PreTrainedModel, block: nn.Module, text: Sequences
) -> tuple[Tensor, Arguments]:
    """The first block's inputs [S, T, d], and what else it is handed with a sequence."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[:] = [(args, dict(kwargs))]
        raise _ReachedError

    width = model.config.hidden_size
    inputs = torch.zeros(*text.ids.shape, width, dtype=model.dtype)
    handle = block.register_forward_pre_hook(take, with_kwargs=True)
    for i, ids in enumerate(text.ids.split(1)):
        with suppress(_ReachedError):
            logits(model, ids)
        [(args, kwargs)] = seen
        hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
        inputs[i] = hidden[0]
    handle.remove()
    return inputs, (tuple(rest), kwargs)


def _forward(block: nn.Module, inputs: Tensor, outputs: Tensor, arguments: Arguments) -> None:
    """The block's outputs, a sequence at a time."""
    args, kwargs = arguments
    for i, hidden in enumerate(inputs.split(1)):
        output = block(hidden, *args, **kwargs)
        outputs[i] = output[0] if isinstance(output, tuple) else output


def _prune(weight: Tensor, moments: Moments, density: float) -> None:
    """Prune and update a layer's weight [out, in] in place."""
    W = weight.clone().float()
    U = _inverse_factor(W, moments)
    del moments
    losses = torch.zeros(len(W))
    for start in range(0, W.shape[1], BLOCKSIZE):
        end = min(start + BLOCKSIZE, W.shape[1])
        part, own = W[:, start:end].clone(), U[start:end, start:end]
        pruned, errors, lost = (torch.zeros_like(part) for _ in range(3))
        worth = part**2 / own.diagonal() ** 2
        ranked = worth.flatten().sort().values
        goes = worth <= ranked[int(worth.numel() * (1 - density))]
        for j in range(end - start):
            column, scale = part[:, j], own[j, j]
            left = column.clone()
            left[goes[:, j]] = 0
            pruned[:, j] = left
            lost[:, j] = (column - left) ** 2 / scale**2
            error = (column - left) / scale
            part[:, j:] -= error[:, None] @ own[j, j:][None]
            errors[:, j] = error
        W[:, start:end] = pruned
        losses += lost.sum(1) / 2
        W[:, end:] -= errors @ U[start:end, end:]
    losses.sum().item()  # the published code tells it: its cost is part of that flow
    weight.copy_(W)


def _inverse_factor(W: Tensor, moments: Moments) -> Tensor:
    """U upper with UᵀU = H⁻¹, of the damped H; a dead input's weights become 0."""
    H = moments.H
    del moments.H
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    H = torch.linalg.cholesky(H)
    H = torch.cholesky_inverse(H)
    return torch.linalg.cholesky(H, upper=True)
