"""Live tensor bytes: how much memory the tensors of a program hold, at most held, and as what.

Counts storages, which tensors share, below autograd: what the forward keeps for the backward
and what the backward itself makes is seen like anything else. What a kernel allocates and
frees within one operation is not. Works for any device and for fake tensors alike.
"""

from paramscope.tracker.categories import (
    ACTIVATIONS,
    BUFFERS,
    GRADIENTS,
    INPUTS,
    OPTIMIZER_STATES,
    PARAMETERS,
    TEMPORARIES,
)
from paramscope.tracker.ledger import Mark, Peak, Timeline
from paramscope.tracker.mode import MemoryTracker

__all__ = [
    "ACTIVATIONS",
    "BUFFERS",
    "GRADIENTS",
    "INPUTS",
    "OPTIMIZER_STATES",
    "PARAMETERS",
    "TEMPORARIES",
    "Mark",
    "MemoryTracker",
    "Peak",
    "Timeline",
]
