"""Matrices that no stage holds: how many entries they would have."""

import torch
from transformers import PretrainedConfig

from paramscope.models.faking import faked
from paramscope.persample.layers import is_conv1d, is_linear
from paramscope.planner.models import new_model


def row_blocks(config: PretrainedConfig) -> int:
    """Entries of one block for each output row of each linear layer, its bias with it."""
    with faked():
        model = new_model(config, torch.float32)
    total = 0
    for module in model.modules():
        if is_linear(module):
            weight = module.get_parameter("weight")
            outputs, inputs = weight.shape[:: -1 if is_conv1d(module) else 1]
            total += outputs * (inputs + (module.bias is not None)) ** 2
    return total
