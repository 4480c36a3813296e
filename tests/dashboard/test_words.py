"""Numbers, ages and verdicts as the board writes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist_dashboard import words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (2.4137, "2.41"), (0.62, "0.620"), (3e-4, "3.00e−4"), (999.6, "1.00k"), (24_810, "24.8k"),
        (-1.5, "−1.50"), ("nan", "NaN"), ("inf", "∞"), ("-inf", "−∞"), (None, "—"), (1.2e15, "1.20e15"),
    ],
)  # fmt: skip
def test_a_number_has_three_significant_digits(value, shown):
    assert words.number(value) == shown


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_can_be_written(value):
    assert words.number(value)


@pytest.mark.parametrize(("bound", "mark"), [("lower", "≥"), ("upper", "≤"), ("sampled", "~")])
def test_an_estimate_carries_its_bound_before_the_number(bound, mark):
    assert words.number(1.5, bound=bound).startswith(mark)


def test_steps_have_thin_spaces_between_thousands():
    assert words.step(1_234_567) == "1\u2009234\u2009567"


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(None, "never"), (-500, "0 s ago"), (3_200, "3 s ago"), (119_000, "119 s ago"), (600_000, "10 min ago"),
     (7_200_000, "2 h ago"), (260_000_000, "3 d ago")],
)  # fmt: skip
def test_an_age_is_in_words(milliseconds, shown):
    assert words.age(milliseconds) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(31.2, "31×"), (1.23, "1.2×"), (0.08, "1/12×"), ("inf", "∞"), (4_200.0, "4.20k×"), (None, "—")]
)
def test_an_excess_is_a_number_of_times(ratio, shown):
    assert words.times(ratio) == shown


def test_the_judges_multiplication_signs_become_proper_ones():
    assert words.crossed("update - blocks.2 moved 31x its baseline") == "update — blocks.2 moved 31× its baseline"
    assert words.crossed("blocks.4x4 of max") == "blocks.4x4 of max"


def test_ok_names_its_basis_and_not_measured_never_reads_as_ok():
    assert words.verdict("ok", basis_name="baseline") == "ok (own baseline)"
    assert words.verdict("violated", count=3) == "violated · 3"
    assert words.verdict("not measured", basis_name="baseline") == "not measured"


def test_every_verdict_has_a_shape_of_its_own():
    assert len(set(words.SHAPES.values())) == 4


def test_nonfinite_tells_measured_nan_from_absent():
    assert words.is_nonfinite("nan") and words.is_nonfinite(math.inf)
    assert not words.is_nonfinite(None) and not words.is_nonfinite(0.0)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.981, "98\u2009%"), (0.0062, "0.6\u2009%"), (1.0, "100\u2009%"), (None, "—")]
)
def test_a_share_is_a_percentage(value, shown):
    assert words.share(value) == shown


@pytest.mark.parametrize(
    ("basis", "said"), [("baseline", "its baseline"), ("target", "its limit"), (None, "its limit")]
)
def test_a_ratio_is_said_in_what_it_counts(basis, said):
    assert words.measure(basis) == said
