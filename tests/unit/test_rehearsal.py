"""Loops cut short in a rehearsal: which rounds are left, and that no peak changes by it."""

from contextlib import nullcontext

import pytest
from transformers import OPTConfig

from paramscope.planner import runs
from paramscope.planner.estimate import estimate
from paramscope.planner.options import Options
from paramscope.rehearsal import rehearsal, rounds

# Wide and long enough that every loop that is cut has more rounds than are left of it.
CONFIG = OPTConfig(
    vocab_size=1500, hidden_size=1152, word_embed_proj_dim=1152, num_hidden_layers=1,
    num_attention_heads=4, ffn_dim=1408, max_position_embeddings=1408, dropout=0.0,
)  # fmt: skip


def test_a_real_run_has_all_rounds():
    assert rounds(range(9)) == range(9)


@pytest.mark.parametrize(
    ("n", "ends", "left"),
    [
        (9, 2, [0, 1, 7, 8]),
        (4, 2, [0, 1, 2, 3]),
        (9, 1, [0, 8]),
        (2, 1, [0, 1]),
        (0, 2, []),
        (9, 0, []),
    ],
)
def test_a_rehearsal_has_the_ends(n, ends, left):
    with rehearsal():
        assert list(rounds(range(n), ends)) == left
    assert rounds(range(n), ends) == range(n)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("inference", Options(batch=2, length=1400)),
        ("ggn", Options(length=1400)),
        ("ggn", Options(batch=6, length=40)),
        ("dpsgd-ghost", Options(length=1400)),
        ("dpsgd-flash", Options(batch=2, length=1400)),
        ("dpsgd-bk", Options(length=1400, chunk_tokens=200)),
        ("dpsgd-bk", Options(batch=6, length=40)),
        ("prune-wanda", Options(batch=2, length=40)),
        ("prune-sparsegpt", Options(length=40)),
    ],
)
def test_no_peak_changes(strategy, options, monkeypatch):
    few = estimate(CONFIG, strategy, options)
    monkeypatch.setattr(runs, "rehearsal", nullcontext)
    every = estimate(CONFIG, strategy, options)
    assert (few.peak_bytes, few.breakdown) == (every.peak_bytes, every.breakdown)
    assert (few.operation, few.phase) == (every.operation, every.phase)
    assert few.snapshots == every.snapshots
