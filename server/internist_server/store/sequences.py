"""Which sequence numbers of a rank were taken, as inclusive intervals in rising order; pure."""

from bisect import bisect_right

Intervals = list[list[int]]
MAX_INTERVALS = 4_096
"""More gaps than this and the oldest is given up: what belongs into it counts as taken."""


def holds(intervals: Intervals, sequence: int) -> bool:
    """Whether the sequence number was taken."""
    if not intervals or sequence > intervals[-1][1]:
        return False
    place = bisect_right(intervals, sequence, key=lambda interval: interval[0]) - 1
    return place >= 0 and sequence <= intervals[place][1]


def add(intervals: Intervals, sequence: int) -> None:
    """Take one that `holds` denied."""
    if intervals and sequence == intervals[-1][1] + 1:
        intervals[-1][1] = sequence
        return
    place = bisect_right(intervals, sequence, key=lambda interval: interval[0])
    intervals.insert(place, [sequence, sequence])
    if place + 1 < len(intervals) and intervals[place + 1][0] == sequence + 1:
        intervals[place][1] = intervals.pop(place + 1)[1]
    if place > 0 and intervals[place - 1][1] == sequence - 1:
        intervals[place - 1][1] = intervals.pop(place)[1]
    if len(intervals) > MAX_INTERVALS:
        intervals[0][1] = intervals.pop(1)[1]


def highest(intervals: Intervals) -> int:
    """The highest number taken; -1 without any."""
    return intervals[-1][1] if intervals else -1
