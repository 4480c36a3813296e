"""The step axis told in hours or tokens."""

from dataclasses import replace

import pytest

from internist_dashboard.axis import HOUR_MS, ticks_of
from internist_dashboard.figures import loss
from internist_dashboard.frame import Frame
from tests.dashboard.test_figures import STEPS, points

LAST = STEPS[-1]


def test_ticks_stand_at_the_steps_at_which_round_hours_were():
    began = 1_700_000_000_000
    clock = replace(points([1.0] * 10), times_ms=tuple(began + int(step / LAST * 6 * HOUR_MS) for step in STEPS))

    ticks = ticks_of(clock, "time", Frame(0, LAST))

    assert ticks is not None
    assert (ticks.title, ticks.text) == ("hours", ("0", "1", "2", "3", "4", "5", "6"))
    assert ticks.at == pytest.approx([LAST / 6 * hour for hour in range(7)], abs=1e-3)  # a millisecond of an hour


def test_tokens_are_told_where_they_were_logged_and_a_window_has_its_own_ticks():
    seen = points([step * 1e6 for step in STEPS], metric="tokens")

    whole, part = (ticks_of(seen, "tokens", Frame(first, LAST)) for first in (0, 80))

    assert whole is not None and part is not None
    assert whole.text == ("0", "20M", "40M", "60M", "80M")
    assert part.text == ("80M", "82M", "84M", "86M", "88M", "90M")
    figure = loss(points([1.0] * 10), [], [], Frame(0, LAST, ticks=whole))
    assert tuple(figure.layout.xaxis.ticktext) == whole.text and figure.layout.xaxis.title.text == "tokens"


@pytest.mark.parametrize("values", [[1e6] * 10, ["nan"] * 10])
def test_tokens_that_do_not_rise_tell_nothing(values):
    assert ticks_of(points(values), "tokens", Frame(0, LAST)) is None
