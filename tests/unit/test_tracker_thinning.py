"""What a timeline is thinned to: its ends, what must stay, and an even spread of the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramscope.tracker.thinning import spread


@st.composite
def timelines(draw):
    """First and last event, and some to keep."""
    first = draw(st.integers(0, 10**6))
    last = first + draw(st.integers(0, 5000))
    return first, last, draw(st.sets(st.integers(first, last), max_size=20))


@given(timelines(), st.integers(22, 700))
def test_at_most_so_many_stay_with_the_ends_and_the_kept_ones(timeline, most):
    first, last, kept = timeline
    events = spread(first, last, most, kept)
    assert events.dtype == np.int64
    assert len(events) <= most
    assert (events[0], events[-1]) == (first, last)
    assert (np.diff(events) > 0).all()
    assert kept <= set(events.tolist())
    # No gap is wider than that between the even ones, which differ by less than one event.
    room = most - len(kept)
    assert np.diff(events).max(initial=0) < (last - first) / (room - 1) + 1


@given(timelines())
def test_all_stay_where_there_is_room(timeline):
    first, last, kept = timeline
    events = spread(first, last, last - first + 1 + len(kept), kept)
    assert events.tolist() == list(range(first, last + 1))


def test_what_must_stay_goes_before_the_most():
    assert spread(0, 100, 3, [50, 20, 50, 70, 20]).tolist() == [0, 20, 50, 70, 100]
    assert spread(0, 100, 6, [33]).tolist() == [0, 25, 33, 50, 75, 100]
    assert spread(7, 7, 600, [7]).tolist() == [7]


@pytest.mark.parametrize("n", [599, 600, 601, 100_000])
def test_events_taken_are_those_of_equal_steps(n):
    taken = spread(0, n - 1, 600, ())
    assert len(taken) == min(n, 600)
    exact = np.arange(len(taken)) * (n - 1) / (len(taken) - 1)
    np.testing.assert_array_less(np.abs(taken - exact), 1)
