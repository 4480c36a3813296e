"""How sure a verdict is: a chance that holds whatever values are distributed like, and that few values keep low."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist_server.judge.sureness import chance
from tests.server.judged_runs import constant, series, tell

DRAWS = 4_000
NOISE = 0.02
"""Standard error of a share of that many draws, twice and more."""


@pytest.mark.parametrize("law", ["normal", "cauchy", "lognormal", "two points"])
@pytest.mark.parametrize("samples", [8, 40])
def test_no_distribution_goes_beyond_the_chance_more_often(law, samples):
    generator = np.random.default_rng(5)
    shape = (DRAWS, samples + 1)
    drawn = {
        "normal": lambda: generator.normal(size=shape),
        "cauchy": lambda: generator.standard_cauchy(shape),
        "lognormal": lambda: generator.lognormal(sigma=2, size=shape),
        "two points": lambda: (generator.random(shape) < 1 / samples).astype(float),
    }[law]()
    others, last = drawn[:, :-1], drawn[:, -1]
    deviation = others.std(axis=1)
    distance = np.abs(last - others.mean(axis=1))
    away = np.where(deviation > 0, distance / np.where(deviation > 0, deviation, 1), np.where(distance > 0, np.inf, 0))
    for deviations in (1.0, 2.0, 4.0, 9.0):
        assert (away >= deviations).mean() <= chance(samples, deviations) + NOISE


@given(st.integers(1, 500), st.floats(0, 1e6), st.floats(0, 1e6))
def test_farther_out_is_surer_and_more_values_allow_for_more(samples, one, other):
    near, far = sorted((one, other))

    assert 1 / (samples + 1) <= chance(samples, far) <= chance(samples, near) <= 1
    assert chance(samples + 1, math.inf) < chance(samples, math.inf)


def test_what_is_not_known_makes_nobody_sure():
    assert chance(0, 5.0) == chance(40, math.nan) == chance(40, 0.0) == 1.0


def test_a_verdict_says_of_how_many_values_how_far_away_it_is_and_how_sure_that_makes_it():
    law = lambda s: (1 + 0.1 * np.sin(s)) * np.where(s < 600, 1, 40)  # noqa: E731
    judge = tell([(series(1, "update.own", "a"), law), (series(2, "weight.rms", "b"), constant(1.0))], last=640).judge

    told = judge.verdicts("r", "a", limit=None).members[0]
    assert told.state == "violated" and told.samples > 10
    assert told.deviations > 20 and 0.9 < told.sure < 1
    assert told.how_sure.endswith(f"from {told.samples} values") and told.how_sure.startswith("9")
