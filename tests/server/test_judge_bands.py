"""Bands: medians of self-similar windows, taken on a fixed grid, and the growth they allow for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist.schema.grid import is_on_grid
from internist_server.judge.bands import (
    baseline_window,
    baselines,
    grid_point,
    muon_band,
    window_sample,
    window_shape,
)

ROUNDING = 1e-5
"""float32 against float64."""


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_a_baseline_is_the_median_of_the_points_in_its_window():
    assert baselines(row(*range(1, 10)))[0] == 5
    assert baselines(row(*range(1, 9)))[0] == 4.5


def test_a_baseline_needs_eight_positive_points_and_a_positive_median():
    assert np.isnan(baselines(row(*[1.0] * 7)))[0]
    assert np.isnan(baselines(row(*[1.0] * 7, *[np.nan] * 30)))[0]
    assert baselines(row(*[1.0] * 8, *[np.nan] * 30))[0] == 1
    assert baselines(row(*[0.0] * 20, *[1.0] * 8))[0] == 0
    assert np.isnan(baselines(np.empty((1, 0), np.float32)))[0]


@given(st.lists(st.floats(2**-20, 2**20, width=32) | st.just(float("nan")), min_size=1, max_size=40))
def test_baselines_match_the_obvious_median(values):
    known = [value for value in values if value == value]

    (taken,) = baselines(row(*values))

    assert np.isnan(taken) if len(known) < 8 else taken == pytest.approx(np.median(known), rel=ROUNDING)


@pytest.mark.parametrize("exponent", [-1.0, 0.6, 1.0, 1.5])
def test_growth_as_a_power_of_age_is_carried_from_the_middle_of_the_window_to_now(exponent):
    ages = np.arange(100, 210, 10)

    (carried,) = window_shape((ages[None] ** exponent).astype(np.float32), ages).growth

    assert carried == pytest.approx(exponent * np.log2(8 / 3), rel=1e-3)


def test_no_more_than_quadratic_growth_is_carried_and_nothing_of_noise_about_a_level():
    ages = np.arange(100, 210, 10)
    noise = np.exp(0.2 * np.random.default_rng(0).standard_normal((200, ages.size))).astype(np.float32)

    assert window_shape((ages[None] ** 5.0).astype(np.float32), ages).growth[0] == pytest.approx(2 * np.log2(8 / 3))
    assert np.median(np.abs(window_shape(noise, ages).growth)) == 0


def test_points_that_are_missing_zero_or_infinite_carry_no_growth():
    ages = np.arange(100, 210, 10)
    values = np.tile((ages / 100).astype(np.float32), (3, 1))
    values[0, 2:5] = np.nan
    values[1, 2:5] = 0
    values[2, 2:5] = np.inf

    np.testing.assert_allclose(window_shape(values, ages).growth, np.log2(8 / 3), rtol=1e-3)
    assert window_shape(np.full((1, ages.size), np.nan, np.float32), ages).growth[0] == 0


def test_windows_are_a_quarter_to_half_of_the_age_after_the_first_judged_step():
    assert baseline_window(400, origin=0, taken=-1) == (100, 200)
    assert baseline_window(401, origin=0, taken=-1) == (101, 200)
    assert baseline_window(5400, origin=5000, taken=-1) == (5100, 5200)


def test_no_window_is_due_before_it_can_hold_eight_points_or_between_two_grid_points():
    assert baseline_window(0, origin=0, taken=-1) is None
    assert baseline_window(31, origin=0, taken=-1) is None
    assert baseline_window(32, origin=0, taken=-1) == (8, 16)
    assert baseline_window(400, origin=0, taken=grid_point(400)) is None
    assert baseline_window(440, origin=0, taken=grid_point(400)) is not None


def test_baselines_are_taken_eight_times_per_doubling():
    taken, steps = -1, []
    for step in range(0, 16_001, 10):
        if baseline_window(step, origin=0, taken=taken) is not None:
            taken = grid_point(step)
            steps.append(step)

    assert sum(4000 < step <= 8000 for step in steps) == 8


@given(st.integers(1, 50), st.integers(0, 5000), st.integers(0, 4000), st.integers(0, 3000))
def test_a_sample_of_a_window_is_in_order_and_no_more_than_a_plan_needs(every, first, count, origin):
    steps = np.arange(first, first + count)

    sample = window_sample(steps, every=every, origin=origin)

    late = steps[steps - origin >= 16 * every]
    assert np.all(np.diff(sample) > 0) and sample.size <= 256
    assert np.isin(sample, steps).all()
    on = [any(is_on_grid(s, every * rarity) for rarity in (1, 10, 40)) for s in sample.tolist()]
    assert np.all(np.array(on, bool)[sample - origin >= 16 * every])
    assert sample.size >= min(np.count_nonzero(late % every == 0), 256)


def test_the_geometric_grid_of_the_start_makes_baselines_from_step_32_on():
    grid, step = list(range(12)), 11.0
    while step < 200:
        step += max(1.0, step / 11.5)
        grid.append(round(step))
    steps = np.array(grid)

    taken = -1
    for age in range(32, 200):
        due = baseline_window(age, origin=0, taken=taken)
        if due is None:
            continue
        (first, last), taken = due, grid_point(age)
        window = steps[(steps >= first) & (steps <= last)]
        assert window_sample(window, every=10, origin=0).size >= 8


def test_the_grid_of_the_client_makes_baselines_of_every_class_from_step_32_on():
    for rarity in (1, 10, 40):
        steps = np.array([s for s in range(3_000) if is_on_grid(s, 10 * rarity)])
        taken = -1
        for age in range(32, 3_000):
            due = baseline_window(age, origin=0, taken=taken)
            if due is None:
                continue
            (first, last), taken = due, grid_point(age)
            assert window_sample(steps[(steps >= first) & (steps <= last)], every=10, origin=0).size >= 8


def test_a_dense_stretch_has_no_more_points_in_a_window_than_the_grid():
    assert window_sample(np.arange(500, 560), every=10, origin=0).tolist() == [500, 510, 512, 520, 530, 540, 550]


def test_the_spread_of_a_window_is_taken_about_its_trend():
    ages = np.arange(100, 210, 10)
    noise = np.tile([-0.2, 0.0, 0.2, 0.1, -0.1], 3)[: ages.size]
    values = np.exp2(noise + 1.5 * np.log2(ages))[None].astype(np.float32)
    outlier = values.copy()
    outlier[0, 5] *= 8

    calm, mad = window_shape(values, ages), window_shape(outlier, ages)

    assert 0.5 < calm.above[0] < 1.5 and 0.5 < calm.below[0] < 1.5
    assert mad.above[0] == pytest.approx(4.0, abs=0.6)
    assert window_shape(np.full((1, ages.size), np.nan, np.float32), ages).above[0] == 0


def test_muons_band_worked_by_hand():
    one = np.ones(1)

    low, high = muon_band(rate=0.1 * one, scale=2 * one, low=0.7 * one, high=1.1 * one, decayed=0.01 * one)

    assert (low[0], high[0]) == (pytest.approx(0.13), pytest.approx(0.23))
