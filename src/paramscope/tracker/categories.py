"""What tensors are for: the roles that their holders give, and else what made them."""

import torch
from torch._C import _autograd

PARAMETERS = "parameters"
BUFFERS = "buffers"
GRADIENTS = "gradients"
OPTIMIZER_STATES = "optimizer states"
INPUTS = "inputs"
ACTIVATIONS = "activations"
TEMPORARIES = "temporaries"

ROLES = (PARAMETERS, BUFFERS, GRADIENTS, OPTIMIZER_STATES, INPUTS)  # known by what holds them


def made_as(stepping: bool) -> str:
    """What the running operation makes, outside any scope: activations or temporaries.

    Temporaries are what a backward makes and what an optimizer's step does; activations are
    everything else. What a checkpoint computes again in a backward is activations, unless that
    backward keeps its graph (`retain_graph`, `create_graph`): then nothing tells it apart.

    Args:
        stepping: an optimizer's step is under way.
    """
    if torch._C._current_graph_task_id() != -1:  # in a backward
        # Without a graph to keep, only what is computed again is recorded in a backward.
        recording = torch.is_grad_enabled()
        again = recording and not _autograd._get_current_graph_task_keep_graph()
        return ACTIVATIONS if again else TEMPORARIES
    # A step's closure, a forward and its backward, enables gradients; the step does not.
    return TEMPORARIES if stepping and not torch.is_grad_enabled() else ACTIVATIONS
