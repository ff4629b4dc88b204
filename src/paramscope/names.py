"""Names that all parts share: the classes of a partition, its controls, and blocks by number."""

import re
from typing import Literal

FUNC, SENS, BOTH = LABELS = ("W_func", "W_sens", "W_both")
RANDOM, RANDOM_TENSOR = CONTROLS = ("random", "random_tensor")
BY_TENSOR = ("contrast",)  # rules that label whole tensors
DPSGD_PARTS = (
    *("parameters", "gradients", "optimizer states", "saved activations"),
    *("norm samples", "temporary matrices", "logits and loss", "other"),
)  # what memory at the peak of DP-SGD is split into, in the order they are stacked
DPSGD_METHODS = (
    "vanilla",
    "opacus_hooks",
    "opacus_ghost",
    "ghost",
    "flash",
    "bk",
    "per_layer",
    "micro",
)
DPSGD_OPTIONS = ("chunk", "checkpoint", "bf16")  # after the method, each with a + before it
# What plans are made of: the planner's strategies, and devices whose memory it knows.
Strategy = Literal[
    "inference",
    "gradient",
    "training",
    "masked_finetune",
    "dpsgd-vanilla",
    "dpsgd-ghost",
    "dpsgd-flash",
    "dpsgd-bk",
    "dpsgd-per_layer",
    "dpsgd-micro",
    "ggn",
    "hutchinson",
    "xdiag",
    "kfac",
    "prune-magnitude",
    "prune-wanda",
    "prune-sparsegpt",
    "full_hessian",
    "block_hessian",
]
MemoryDevice = Literal["laptop-8gb", "wsl-8gb"]  # computes on its processor
GpuDevice = Literal["rtx-24gb", "a800", "a100-80gb", "h100-80gb", "h200"]
OUTSIDE = -1  # the block number of what is in none
_IN_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def control_of(rule: str) -> str:
    """The control whose partitions are random in what the rule chooses: rows, or whole tensors."""
    return RANDOM_TENSOR if rule in BY_TENSOR else RANDOM


def block_number(name: str) -> int:
    """The block that a module or tensor of that name stands in, or `OUTSIDE`."""
    number = _IN_BLOCK.search(name)
    return int(number[1]) if number else OUTSIDE


def within_block(name: str) -> str:
    """What follows the block's number in a name; all of it where it is in none."""
    number = _IN_BLOCK.search(name)
    return name[number.end() :] if number else name
