import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist.schema.metrics import CATALOGUE
from internist_server.store.merge import CODES, Part, codes_of, merge

ROUNDING = 1e-6
"""Merged values are float32."""


def part(value, count=1, *, present=True):
    return Part(np.array([[value]], dtype=np.float32), np.array([[present]]), np.array([[count]], dtype=np.float64))


def merged(combine, *parts):
    values, present = merge(parts, np.array([CODES.index(combine)], dtype=np.uint8))
    return float(values[0, 0]) if present[0, 0] else None


def slow_merge(combine, values, counts):
    """The definition, one word after the other."""
    if any(math.isnan(value) for value in values):
        return math.nan
    pairs = list(zip(values, counts, strict=True))
    return {
        "mean_square": lambda: math.sqrt(sum(n * v for v, n in pairs) / sum(counts)),
        "sum_square": lambda: math.sqrt(sum(values)),
        "mean": lambda: sum(n * v for v, n in pairs) / sum(counts),
        "max": lambda: max(values),
        "sum": lambda: sum(values),
        "first": lambda: values[0],
    }[combine]()


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean_square", math.sqrt((3 * 4 + 1 * 16) / 4)),
        ("sum_square", math.sqrt(20)),
        ("mean", 7.0),
        ("max", 16.0),
        ("sum", 20.0),
        ("first", 4.0),
    ],
)
def test_two_parts_merge_as_the_metric_says(combine, expected):
    assert merged(combine, part(4, 3), part(16, 1)) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("combine", CODES)
def test_a_nan_of_any_part_makes_the_merged_value_nan(combine):
    for parts in ((part(math.nan), part(1)), (part(1), part(math.nan)), (part(math.nan),)):
        assert math.isnan(merged(combine, *parts))


@pytest.mark.parametrize("combine", CODES)
def test_a_rank_that_sent_nothing_changes_nothing(combine):
    nothing = part(99, 99, present=False)

    alone = merged(combine, part(4, 3))

    assert merged(combine, nothing, part(4, 3)) == alone
    assert merged(combine, part(4, 3), nothing) == alone
    assert merged(combine, nothing, nothing) is None


def test_first_is_the_lowest_rank_that_sent_it():
    assert merged("first", part(0, present=False), part(5), part(7)) == 5.0


def test_infinities_stay_infinite():
    assert merged("mean_square", part(math.inf), part(1)) == math.inf
    assert merged("max", part(-math.inf), part(-math.inf)) == -math.inf
    assert math.isnan(merged("sum", part(math.inf), part(-math.inf)))


def test_every_metric_of_the_catalogue_has_a_combination():
    assert [CODES[code] for code in codes_of([metric.name for metric in CATALOGUE])] == [
        metric.combine for metric in CATALOGUE
    ]


values = st.floats(min_value=0, max_value=1e6, width=32)
parts = st.lists(st.tuples(values, st.integers(1, 1 << 40)), min_size=1, max_size=5)


@given(st.sampled_from(CODES), parts)
def test_merging_matches_the_slow_definition(combine, given_parts):
    expected = slow_merge(combine, [value for value, _ in given_parts], [count for _, count in given_parts])

    assert merged(combine, *(part(*one) for one in given_parts)) == pytest.approx(expected, rel=ROUNDING, abs=1e-30)


@given(parts)
def test_merging_in_two_stages_is_merging_at_once(given_parts):
    total = sum(count for _, count in given_parts)
    mean = sum(value * count for value, count in given_parts) / total

    assert merged("mean", part(mean, total)) == pytest.approx(
        merged("mean", *(part(*one) for one in given_parts)), rel=ROUNDING, abs=1e-30
    )
