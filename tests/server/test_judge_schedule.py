"""The schedule factor: run-wide, deaf to one group, and aware of warm-up and jumps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist_server.judge.schedule import Schedule, schedule_factor


def observed(
    rates: dict[int, list[float]] | list[tuple[int, float]], *, weights: list[float] | None = None
) -> Schedule:
    """A schedule after these (step, rate) of one group, or of several by step."""
    rows = [(step, [rate]) for step, rate in rates] if isinstance(rates, list) else sorted(rates.items())
    schedule = Schedule()
    schedule.resize(weights or [1.0] * len(rows[0][1]))
    for step, row in rows:
        schedule.observe(step, np.array(row, np.float64))
    return schedule


def test_the_factor_is_the_median_over_groups_by_number_of_parameters():
    rates, reference = np.array([[2.0, 30.0, 2.0]]), np.ones(3)

    assert schedule_factor(rates, reference, np.array([60.0, 30.0, 10.0]))[0] == 2
    assert schedule_factor(rates, reference, np.array([10.0, 80.0, 10.0]))[0] == 30


def test_groups_without_a_rate_do_not_vote():
    assert schedule_factor(np.array([[np.nan, 3.0]]), np.ones(2), np.array([99.0, 1.0]))[0] == 3
    assert np.isnan(schedule_factor(np.array([[np.nan, np.nan]]), np.ones(2), np.ones(2))[0])
    assert np.isnan(schedule_factor(np.empty((1, 0)), np.empty(0), np.empty(0))[0])


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(1, 100)), min_size=1, max_size=9), st.floats(0.01, 100))
def test_a_common_factor_of_all_rates_is_the_factor(groups, common):
    reference = np.array([rate for rate, _ in groups])
    weights = np.array([weight for _, weight in groups])

    assert schedule_factor(common * reference[None], reference, weights)[0] == pytest.approx(common)


def test_a_mistake_in_a_minor_group_leaves_the_factor_alone():
    schedule = observed({step: [1e-3, 1e-3 * (30 if step > 200 else 1)] for step in range(0, 400, 10)}, weights=[9, 1])

    assert schedule.factor == 1
    assert not schedule.jumped


def test_the_factor_is_one_at_the_largest_rate_so_far_and_falls_with_decay():
    schedule = observed([(0, 0.0), (10, 1e-4), (20, 1e-3), (30, 5e-4)])

    assert schedule.factor == pytest.approx(0.5)
    assert schedule.raw == pytest.approx(5)


def test_the_factor_is_unknown_while_no_rate_was_positive_and_nothing_is_divided_by_it():
    schedule = observed([(0, 0.0), (10, 0.0)])

    assert math.isnan(schedule.factor) and schedule.divisor == 1 and not schedule.is_low
    assert schedule.is_warming_up


def test_a_run_without_learning_rates_is_not_warming_up():
    schedule = Schedule()
    schedule.resize([])

    schedule.observe(0, np.empty(0))

    assert not schedule.is_warming_up
    assert schedule.factors(np.empty((3, 0))).tolist() == [1, 1, 1]


def test_what_is_divided_by_a_vanishing_rate_is_divided_by_its_floor():
    schedule = observed([(0, 1.0), (10, 0.0)])

    assert schedule.is_low
    assert schedule.divisor == pytest.approx(0.01)


def test_warm_up_ends_when_the_rate_has_not_risen_for_a_hundred_steps():
    rates = [(step, min(step + 1, 200) * 1e-5) for step in range(0, 400, 10)]
    ended = [step for step, _ in rates if not observed(rates[: step // 10 + 1]).is_warming_up]

    assert ended[0] == 300  # 200 is the last step that rises; 2 % below it is reached at 196


def test_a_constant_rate_warms_up_for_a_hundred_steps():
    assert observed([(0, 1e-3), (90, 1e-3)]).is_warming_up
    assert not observed([(0, 1e-3), (100, 1e-3)]).is_warming_up


def test_a_rate_that_is_sampled_at_every_step_warms_up_as_long_as_one_that_is_not():
    dense = [(step, min(step + 1, 200) * 1e-5) for step in range(400)]
    ended = next(step for step in range(400) if not observed(dense[: step + 1]).is_warming_up)

    assert 290 <= ended <= 310


def test_leaps_during_warm_up_are_no_jumps_and_afterwards_they_are():
    assert not observed([(0, 1e-5), (10, 1e-3)]).jumped
    jumped = observed([(0, 1e-3), (100, 1e-3), (110, 5e-3)])
    assert jumped.jumped and jumped.jump_ratio == pytest.approx(5) and jumped.jump_step == 110
    assert not observed([(0, 1e-3), (100, 1e-3), (110, 2.9e-3)]).jumped


def test_the_last_steps_of_a_decay_to_zero_are_no_jumps():
    decay = [(step, 1e-3 * max(0.0, 1 - step / 1000)) for step in range(0, 1010, 10)]

    assert not any(observed(decay[: n + 1]).jumped for n in range(len(decay)))


STEADY = [(0, 1e-3), (100, 1e-3)]


@pytest.mark.parametrize("factor", [0.1, 0.01, 1 / 3.3])
def test_a_decay_of_all_groups_is_no_jump(factor):
    assert not observed([*STEADY, (110, 1e-3 * factor)]).jumped


@pytest.mark.parametrize("low", [1e-5, 1e-4])
def test_a_restart_at_what_the_rates_were_before_is_no_jump_and_a_rise_beyond_it_is_one(low):
    decayed = [*STEADY, (110, low)]

    assert not observed([*decayed, (120, 1e-3)]).jumped
    assert observed([*decayed, (120, 1e-2)]).jumped


def test_a_periodic_schedule_never_jumps():
    period = [(step, 1e-4 + 9e-4 * (step % 50) / 50) for step in range(0, 1000, 10)]

    schedule = observed(STEADY)
    for step, rate in period:
        schedule.observe(200 + step, np.array([rate]))
        assert not schedule.jumped


def test_a_rate_that_is_dropped_to_zero_jumps_until_there_is_one_again():
    dropped = [*STEADY, (110, 0.0)]

    assert observed(dropped).jumped and observed(dropped).jump_ratio == 0
    assert observed([*dropped, (500, 0.0)]).jumped
    assert not observed([*dropped, (500, 0.0), (510, 1e-3)]).jumped


def test_a_decay_that_ends_at_zero_is_no_jump():
    decay = [(step, 1e-3 * (1100 - step) / 1000) for step in range(100, 1110, 10)]

    assert not observed([(0, 1e-3), *decay]).jumped


@pytest.mark.parametrize("factor", [10.0, 0.1])
@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_groups_rate_that_leaves_the_others_is_a_jump_of_that_group(factor, group):
    before = [1e-3, 2e-3, 3e-3]
    after = [rate * (factor if place == group else 1) for place, rate in enumerate(before)]

    schedule = observed({0: before, 100: before, 110: after}, weights=[1.0, 5.0, 80.0])

    assert (schedule.jumped, schedule.jump_group) == (True, group)
    assert schedule.jump_ratio == pytest.approx(factor)


def test_of_groups_that_jump_the_largest_is_named():
    before, after = [1e-3] * 3, [1e-3, 1e-2, 1e-2]
    rows = {0: before, 100: before, 110: after}

    assert observed(rows, weights=[1.0, 5.0, 8.0]).jump_group == 2


def test_groups_that_come_later_leave_the_others_as_they_were():
    schedule = observed([(0, 1e-3), (10, 2e-3)])

    schedule.resize([1.0, 100.0])
    schedule.observe(20, np.array([2e-3, 7e-3]))
    schedule.observe(30, np.array([2e-3, 7e-3]))

    assert schedule.reference.tolist() == [1e-3, 7e-3]
    assert schedule.raw == 1
