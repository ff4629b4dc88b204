"""The oracle is a sort in plain Python, by score and then by index."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramscope.compression.patterns import choose, kept_of, largest, largest_two_of_four


def by_sorting(row, count):
    """Indices of the `count` largest, of equals the first."""
    return set(sorted(range(len(row)), key=lambda i: (-row[i], i))[:count])


def chosen(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4),
    st.integers(0, 8),
)
def test_exactly_as_many_are_taken_and_of_equals_the_first(rows, count):
    scores = torch.tensor(rows, dtype=torch.float32)
    assert chosen(largest(scores, count)) == [by_sorting(row, count) for row in rows]
    pairs = [set() for _ in rows]
    for own, row in zip(pairs, rows, strict=True):
        for k in (0, 4):
            own |= {k + i for i in by_sorting(row[k : k + 4], 2)}
    assert chosen(largest_two_of_four(scores)) == pairs


def test_a_choice_is_by_layer_by_row_or_by_fours():
    scores = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    whole = choose(scores, 0.35, "unstructured", by_row=False, allowed=None)
    assert chosen(whole.view(1, -1)) == [by_sorting(scores.flatten().tolist(), 42)]
    rows = choose(scores, 0.35, "unstructured", by_row=True, allowed=None)
    assert chosen(rows) == [by_sorting(row, 7) for row in scores.tolist()]
    fours = choose(scores, 0.5, "2:4", by_row=True, allowed=None)
    assert (fours.view(6, 5, 4).sum(-1) == 2).all()
    assert torch.equal(fours, largest_two_of_four(scores))


def test_what_is_not_allowed_is_never_kept():
    scores = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    allowed = scores < 0.5
    mask = choose(scores, 0.25, "unstructured", by_row=False, allowed=allowed)
    assert int(mask.sum()) == 20
    assert not (mask & ~allowed).any()
    assert scores[mask].min() >= scores[allowed & ~mask].max()
    few = allowed & (torch.arange(16) < 2)
    assert torch.equal(choose(scores, 0.5, "unstructured", by_row=False, allowed=few), few)


def test_a_density_keeps_the_nearest_count():
    assert [kept_of(density, 128) for density in (0.05, 0.1, 0.3, 0.5, 1)] == [6, 13, 38, 64, 128]
