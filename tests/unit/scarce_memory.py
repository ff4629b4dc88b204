"""Memory that runs out in a real model's forward or backward, above a number of sequences."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.models.opt.modeling_opt import OPTDecoderLayer


def cuda_error():
    """An error as torch's allocator words it; anew each time, since an error holds its frames."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextmanager
def scarce(most, *, backward=False, after=0, error=cuda_error):
    """Within the block, the second block of any OPT model takes no more than `most` sequences.

    What comes before it in the forward, or after it in the backward, is done by then. Its first
    `after` calls fit whatever they take. Gives a list of what each call took, failed ones too.
    """
    run, calls = OPTDecoderLayer.forward, []

    def forward(self, hidden_states, *args, **kwargs):
        if self.self_attn.layer_idx != 1:
            return run(self, hidden_states, *args, **kwargs)
        calls.append(len(hidden_states))
        fails = calls[-1] > most and len(calls) > after
        if fails and not backward:
            raise error()
        output = run(self, hidden_states, *args, **kwargs)
        state = output if isinstance(output, Tensor) else output[0]
        if fails and state.requires_grad:
            state.register_hook(fail)
        return output

    def fail(gradient):
        raise error()

    with patch.object(OPTDecoderLayer, "forward", forward):
        yield calls
