"""The life of alerts, point by point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist_server.alerts.lifecycle import FIRING, INACTIVE, PENDING, Lifecycle, advance

CADENCE, NEEDED = 10, 3
IN, BETWEEN, OUT = "in", "between", "out"
"""Inside the recovery band, between it and the firing band's edge, outside."""


def live(points: list[tuple[int, str | None]], *, needed: int = NEEDED, cadence: int = CADENCE) -> list[Lifecycle]:
    """One check's life over points of (step, where; None: not measured)."""
    now, lives = Lifecycle.inactive(1), []
    for step, where in points:
        now = advance(
            now,
            step=step,
            breach=np.array([where == OUT]),
            clear=np.array([where == IN]),
            measured=np.array([where is not None]),
            cadence=np.array([cadence]),
            needed=np.array([needed]),
        )
        lives.append(now)
    return lives


def phases(points: list[tuple[int, str | None]], **timing: int) -> list[int]:
    return [int(one.phase[0]) for one in live(points, **timing)]


def test_a_breach_is_pending_until_it_has_lasted_its_points_and_then_fires():
    lives = live([(0, IN), (10, OUT), (20, OUT), (30, OUT)])

    assert [int(one.phase[0]) for one in lives] == [INACTIVE, PENDING, PENDING, FIRING]
    assert (int(lives[-1].started[0]), int(lives[-1].opened[0])) == (10, 30)


def test_a_point_back_in_its_band_resets_a_pending_alert():
    assert phases([(10, OUT), (20, OUT), (30, IN), (40, OUT), (50, OUT)])[2:] == [INACTIVE, PENDING, PENDING]


def test_dense_points_do_not_fire_an_alert_sooner_but_one_of_them_in_band_resets_it():
    dense = [(step, OUT) for step in range(100, 120)]

    assert FIRING not in phases(dense)
    assert phases([*dense, (120, OUT)])[-1] == FIRING
    assert phases([*dense, (120, IN), (121, OUT)])[-1] == PENDING


def test_the_steps_of_start_up_alone_never_fire_an_alert():
    assert FIRING not in phases([(0, OUT), (1, OUT), (2, OUT), (5, OUT), (10, OUT)])


def test_a_rule_of_one_point_fires_at_once_and_resolves_at_the_first_good_point():
    assert phases([(0, OUT), (1, OUT), (2, IN)], needed=1, cadence=1) == [FIRING, FIRING, INACTIVE]


def test_a_firing_alert_resolves_after_as_many_points_in_its_recovery_band():
    fired = [(10, OUT), (20, OUT), (30, OUT)]

    assert phases([*fired, (40, IN), (50, IN), (60, IN)])[3:] == [FIRING, FIRING, INACTIVE]
    assert phases([*fired, (40, IN), (50, BETWEEN), (60, IN), (70, IN), (80, IN)])[3:] == [FIRING] * 4 + [INACTIVE]
    assert phases([*fired, *((step, BETWEEN) for step in range(40, 400, 10))])[-1] == FIRING


def test_an_alert_that_is_no_longer_measured_stays_as_it_is():
    fired = [(10, OUT), (20, OUT), (30, OUT)]

    assert phases([*fired, *((step, None) for step in range(40, 400, 10))])[-1] == FIRING
    assert phases([(10, OUT), (20, None), (30, None), (40, None)])[-1] == PENDING


def test_advancing_does_not_change_what_it_was_given():
    before = live([(10, OUT)])[0]
    copy = [getattr(before, name).copy() for name in ("phase", "count", "counted", "started", "opened")]

    advance(
        before,
        step=20,
        breach=np.array([True]),
        clear=np.array([False]),
        measured=np.array([True]),
        cadence=np.array([CADENCE]),
        needed=np.array([2]),
    )

    for name, array in zip(("phase", "count", "counted", "started", "opened"), copy, strict=True):
        np.testing.assert_array_equal(getattr(before, name), array)


@pytest.mark.parametrize("size", [0, 5])
def test_checks_that_come_later_begin_inactive(size):
    grown = live([(10, OUT)])[0].extended(1 + size)

    assert grown.phase.tolist() == [PENDING] + [INACTIVE] * size
    assert grown.started.tolist() == [10] + [-1] * size


def reference(points: list[tuple[int, str | None]]) -> list[int]:
    """The slow, obvious machine."""
    phase, count, counted, told = INACTIVE, 0, 0, []
    for step, where in points:
        due = step - counted >= CADENCE
        if where is not None and phase == INACTIVE and where == OUT:
            phase, count, counted = PENDING, 1, step
        elif where is not None and phase == PENDING:
            if where != OUT:
                phase, count = INACTIVE, 0
            elif due:
                count, counted = count + 1, step
                if count >= NEEDED:
                    phase, count = FIRING, 0
        elif where is not None and phase == FIRING:
            if where != IN:
                count, counted = 0, step
            elif due:
                count, counted = count + 1, step
                if count >= NEEDED:
                    phase, count = INACTIVE, 0
        told.append(phase)
    return told


@given(st.lists(st.tuples(st.integers(1, 15), st.sampled_from([IN, BETWEEN, OUT, OUT, None])), max_size=60))
def test_the_vectorised_machine_matches_the_obvious_one(moves):
    steps = np.cumsum([gap for gap, _ in moves]).tolist()
    points = [(step, where) for step, (_, where) in zip(steps, moves, strict=True)]

    assert phases(points) == reference(points)
