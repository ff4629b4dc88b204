"""Clipped sums against a loop over samples in float64, for every method and model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paramscope.dpsgd.methods import Options, make_method, make_step
from paramscope.dpsgd.privacy import Privacy, clip_factors
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from tests.unit.conftest import make_tiny

# float64 throughout: what is left is rounding, of sums of some 10⁴ terms
EXACT = {"rtol": 1e-9, "atol": 1e-11}
OURS = ("ghost", "flash", "bk", "per_layer", "micro")
VARIANTS = [
    ("ghost", Options()),
    ("flash", Options()),
    ("flash", Options(checkpoint=True)),
    ("bk", Options()),
    ("bk", Options(chunk_tokens=4)),
    ("bk", Options(checkpoint=True)),
    ("bk", Options(chunk_tokens=3, checkpoint=True)),
    ("micro", Options()),
    ("micro", Options(chunk_tokens=4, checkpoint=True)),
]
NAMES = [f"{m}-{o.chunk_tokens}{'-checkpoint' * o.checkpoint}" for m, o in VARIANTS]


def own_gradients(model, sequences):
    """Each sample's gradient by plain autograd, a sample at a time and without its padding."""
    rows, losses = [], []
    for ids, n in zip(sequences.ids, sequences.lengths.tolist(), strict=True):
        own = ids[None, :n]
        position = torch.arange(n)[None]
        scores = model(input_ids=own, position_ids=position, use_cache=False).logits
        loss = F.cross_entropy(scores[0, :-1], own[0, 1:])
        trained = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))
        losses.append(loss.detach())
    return [torch.stack(parts) for parts in zip(*rows, strict=True)], torch.stack(losses)


def clipped_oracle(model, sequences, max_norm):
    """Σ_s min(1, C/‖G_s‖) G_s by parameter, and the norms."""
    gradients, losses = own_gradients(model, sequences)
    norms = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    factors = (max_norm / norms).clamp(max=1)
    return [torch.tensordot(factors, g, 1) for g in gradients], norms, losses


def run(model, name, sequences, max_norm, options=Options(), batches=(None,)):
    """The sums that a method leaves in `.grad`, and what it says of the samples."""
    method = make_method(name, model, Privacy(max_norm, 0.0, 1.0), options)
    told = []
    try:
        for part in batches:
            method.forward(sequences if part is None else sequences[part])
            told.append(method.backward())
        found = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in model.parameters()
            if p.requires_grad
        ]
    finally:
        model.zero_grad(set_to_none=True)
    return found, told


def median_norm(model, sequences):
    """A bound that clips half of the samples and leaves the others."""
    return float(clipped_oracle(model, sequences, 1.0)[1].median()) * 1.0001


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=NAMES)
def test_the_clipped_sum_is_that_of_a_loop_over_samples(tiny, sequences, name, options):
    C = median_norm(tiny, sequences)
    expected, norms, losses = clipped_oracle(tiny, sequences, C)
    found, (told,) = run(tiny, name, sequences, C, options)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)
    torch.testing.assert_close(told.norms.double(), norms, **EXACT)
    torch.testing.assert_close(told.losses.double(), losses, **EXACT)
    assert 0 < int((told.factors < 1).sum()) < len(norms)  # both kinds of samples were there


@pytest.mark.parametrize("name", ["bk", "micro", "flash"])
def test_long_samples_take_the_other_stash(name):
    model = make_tiny("opt", tied=True)
    ids = torch.randint(4, 24, (3, 15), generator=torch.Generator().manual_seed(3))
    long = Sequences(ids, torch.full((3,), 15), ("a", "b", "c"))
    C = median_norm(model, long)
    expected, *_ = clipped_oracle(model, long, C)
    found, _ = run(model, name, long, C)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, **EXACT)
