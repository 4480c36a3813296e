"""Exponents: what is fitted, how sure it is, and when it passes."""

import math
import random

import pytest

from internist.scaling.exponents import Fit, Point, fit, verdict
from internist.scaling.student import quantile

WIDTHS = (64, 128, 256, 512, 1024)
TABLE_ROUNDING = 6e-4
"""Printed tables of Student's t have three decimals."""


def points(exponent: float, *, noise: float = 0.0, seeds: int = 3, shared: bool = True, widths=WIDTHS, rng=None):
    rng = rng or random.Random(0)
    found, number = [], 0
    for width in widths:
        for seed in range(seeds):
            number += 1
            log = exponent * math.log(width) + noise * rng.gauss(0, 1)
            found.append(Point(width, 2, seed if shared else number, log))
    return found


@pytest.mark.parametrize(
    ("probability", "freedom", "printed"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.95, 10, 1.812), (0.975, 30, 2.042), (0.95, 5, 2.015)],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(probability, freedom, printed):
    assert quantile(probability, freedom) == pytest.approx(printed, abs=TABLE_ROUNDING)


def test_a_quantile_outside_the_upper_half_is_refused():
    with pytest.raises(ValueError, match=r"between 1/2 and 1, got 0\.5"):
        quantile(0.5, 3)


def test_a_line_worked_by_hand_has_its_slope_and_error():
    logs = {1: 0.0, 2: 1.2, 4: 1.8}  # over x = 0, 1, 2 in units of ln 2: slope 0.9, residuals -0.1, 0.2, -0.1
    found = fit([Point(width, 2, None, log) for width, log in logs.items()])["width"]

    assert found.exponent == pytest.approx(0.9 / math.log(2))
    assert found.standard_error == pytest.approx(math.sqrt(0.06 / 1) / math.sqrt(2) / math.log(2))
    assert found.freedom == 1


def test_members_of_a_shared_seed_are_averaged_before_their_spread_is_taken():
    alike = fit(points(0.5, noise=0.05, shared=True))["width"]
    apart = fit(points(0.5, noise=0.05, shared=False))["width"]

    assert (alike.freedom, apart.freedom) == (3, 13)
    assert alike.exponent == pytest.approx(apart.exponent)


def test_few_sizes_and_many_seeds_take_their_error_from_the_spread_over_seeds():
    assert fit(points(0.5, noise=0.05, seeds=6, widths=(64, 128, 256)))["width"].freedom == 5


def test_a_seed_that_is_always_off_does_not_widen_the_interval():
    off = [Point(p.width, p.depth, p.seed, p.log + 3.0 * (p.seed == 1)) for p in points(0.5)]

    assert fit(off)["width"].standard_error < 1e-9


def test_width_and_depth_that_vary_on_a_grid_have_exponents_of_their_own():
    grid = [Point(w, d, None, 0.5 * math.log(w) - math.log(d)) for w in (64, 128, 256) for d in (2, 4, 8)]
    found = fit(grid)

    assert found["width"].exponent == pytest.approx(0.5)
    assert found["depth"].exponent == pytest.approx(-1.0)


def test_width_and_depth_that_grow_together_have_no_exponents():
    assert fit([Point(64 * 2**k, 2 * 2**k, None, float(k)) for k in range(4)]) == {}


def test_intervals_cover_the_true_exponent_as_often_as_they_say():
    rng = random.Random(7)
    trials = 400
    covered = 0
    for _ in range(trials):
        low, high = fit(points(0.3, noise=0.2, rng=rng))["width"].interval(0.95)
        covered += low <= 0.3 <= high

    assert 0.92 < covered / trials < 0.98  # four standard deviations of a binomial share around 0.95


@pytest.mark.parametrize(
    ("exponent", "error", "expected"),
    [(0.0, 0.01, "PASS"), (0.05, 0.02, "PASS"), (0.5, 0.02, "FAIL"), (-0.5, 0.02, "FAIL"), (0.1, 0.02, "INCONCLUSIVE"),
     (0.0, 0.2, "INCONCLUSIVE"), (0.4, 0.3, "INCONCLUSIVE")],
)  # fmt: skip
def test_verdicts_are_by_equivalence(exponent, error, expected):
    assert verdict(Fit(exponent, error, 10), 0.0) == expected


def test_an_exponent_without_an_error_is_inconclusive():
    assert verdict(Fit(0.0, 0.0, 0), 0.0) == "INCONCLUSIVE"


def test_slack_lets_smaller_exponents_pass_and_larger_ones_fail():
    assert verdict(Fit(-0.4, 0.01, 10), 0.0, slack=0.5) == "PASS"
    assert verdict(Fit(-1.0, 0.01, 10), 0.0, slack=0.5) == "FAIL"
    assert verdict(Fit(0.4, 0.01, 10), 0.0, slack=0.5) == "FAIL"


def test_points_that_bend_are_told():
    def bent(width: int) -> float:
        return 0.2 * (math.log(width) - math.log(64)) ** 2

    curved = fit([Point(w, 2, None, bent(w) + 0.001 * k) for k, w in enumerate(WIDTHS)])["width"]
    straight = fit(points(0.5, noise=0.01))["width"]

    assert curved.bends and curved.curvature == pytest.approx(0.2, abs=0.01)
    assert not straight.bends
