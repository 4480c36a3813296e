from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from internist_server.store import sequences


@given(st.lists(st.integers(0, 40)))
def test_intervals_hold_exactly_what_was_added(taken):
    intervals: sequences.Intervals = []
    for number in taken:
        if not sequences.holds(intervals, number):
            sequences.add(intervals, number)

    assert {number for number in range(42) if sequences.holds(intervals, number)} == set(taken)
    assert sequences.highest(intervals) == max(taken, default=-1)
    assert all(low <= high for low, high in intervals)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(intervals))


def test_too_many_gaps_close_the_oldest():
    intervals: sequences.Intervals = []
    for number in range(0, 2 * sequences.MAX_INTERVALS + 2, 2):
        sequences.add(intervals, number)

    assert len(intervals) == sequences.MAX_INTERVALS
    assert sequences.holds(intervals, 1)
    assert not sequences.holds(intervals, 3)
