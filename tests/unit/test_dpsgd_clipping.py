"""Clipped sums against a loop over samples in float64, for every method and model."""

import pytest
import torch

from paramscope.dpsgd.methods import Options
from paramscope.models.sequences import Sequences
from tests.unit.conftest import make_tiny
from tests.unit.dpsgd_oracles import EXACT, clipped_oracle, median_norm, run

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
