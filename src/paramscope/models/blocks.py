"""The repeated blocks of a transformer, and checkpointing at their borders."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from paramscope.errors import RequestError


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's blocks by name, in the order of its longest list of modules.

    Raises:
        RequestError: the model has no list of modules.
    """
    lists = [
        [(f"{name}.{i}", block) for i, block in enumerate(module)]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    ]
    if not lists:
        raise RequestError(f"{type(model).__name__} has no list of blocks to take apart")
    return max(lists, key=len)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Within the block, each block keeps its input alone and is run again in a backward.

    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    inside = blocks(model)
    for _, block in inside:
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = again  # the instance's own attribute, over its class's
    try:
        yield
    finally:
        for _, block in inside:
            del block.__dict__["forward"]
