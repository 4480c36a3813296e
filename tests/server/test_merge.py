import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internist.schema.metrics import CATALOGUE, METRICS
from internist.schema.wire import Facts, Series
from internist_server.store.merge import CODES, Parts, codes_of, divide, merge
from tests.server.sending import Sender, module_series, start_of

ROUNDING = 1e-6
"""Merged values are float32."""


def part(value, count=1, *, present=True):
    return Parts(np.array([[[value]]], np.float32), np.array([[[present]]]), np.array([[[count]]], np.float64))


def merged(combine, *parts):
    values, present = merge(parts, np.array([CODES.index(combine)], dtype=np.uint8), steps=1)
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
        "differs": lambda: float(len(set(values)) > 1),
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
        ("differs", 1.0),
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
    declared = [Series(0, metric.name, metric.kind, "a") for metric in CATALOGUE]

    assert [CODES[code] for code in codes_of(declared)] == [metric.combine for metric in CATALOGUE]


def test_an_upper_bound_from_pieces_is_the_root_of_the_sum_of_their_squares():
    upper = Series(0, "weight.spectral_norm", "parameter", "w", None, "upper", Facts(placement="sharded_matrix"))
    of_tokens = Series(1, "activation.rms_q99", "module", "m", None, "upper", Facts(placement="data_parallel"))

    assert [CODES[code] for code in codes_of([upper, of_tokens])] == ["sum_square", "max"]


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


def test_what_a_ratio_is_divided_by_travels_as_the_ratio_does():
    for ratio in (metric for metric in CATALOGUE if metric.over):
        under = METRICS[ratio.over]
        assert (under.combine, under.cadence, under.kind, under.over) == (
            ratio.combine, ratio.cadence, ratio.kind, "",
        )  # fmt: skip


def divided(numerator, denominator):
    """The ratio of two merged values; None stands for what is not present."""
    row = [numerator, denominator]
    values = np.array([[math.nan if value is None else value for value in row]], dtype=np.float32)
    present = np.array([[value is not None for value in row]])
    divide(values, present, [(0, 1)])
    return float(values[0, 0]) if present[0, 0] else None


def test_a_ratio_is_its_numerator_over_its_denominator():
    assert divided(3.0, 4.0) == 0.75
    assert divided(3.0, None) == 3.0, "a client that divides by itself"
    assert divided(None, 4.0) is None
    assert divided(3.0, 0.0) is None, "there is no share of nothing"
    assert divided(math.inf, 4.0) == math.inf
    assert math.isnan(divided(math.nan, 4.0)) and math.isnan(divided(3.0, math.nan))


CONTRIBUTION, STREAM = "block.contribution", "block.stream"
ADDED = (4.0, 1.0)
"""Mean squares of what a block adds on each rank, ..."""
STREAMS = (1.0, 100.0)
"""of its stream there, ..."""
ENTRIES = (300, 100)
"""and the entries that these are means over."""


def two_ranks(api, *, streams=STREAMS):
    senders = [Sender(api, start_of(rank=rank, world_size=2)) for rank in range(2)]
    for sender, added, stream, entries in zip(senders, ADDED, streams, ENTRIES, strict=True):
        series = [module_series(number, name, "blocks.0") for number, name in enumerate((CONTRIBUTION, STREAM))]
        sender.send([*sender.declare(series, counts=[entries] * 2), sender.frame(0, [added, stream])])
    return senders[0]


def test_the_contribution_of_a_block_over_ranks_is_the_ratio_of_their_sums(api):
    expected = math.sqrt((300 * 4 + 100 * 1) / (300 * 1 + 100 * 100))

    sender = two_ranks(api)

    assert sender.points(CONTRIBUTION)[0] == pytest.approx(expected, rel=ROUNDING)
    assert sender.points(STREAM)[0] == pytest.approx(math.sqrt((300 + 100 * 100) / 400), rel=ROUNDING)
    found = {one["metric"]: one["last_value"] for one in sender.get("/series")["series"]}
    assert found[CONTRIBUTION] == pytest.approx(expected, rel=ROUNDING)


def test_where_the_stream_of_all_ranks_is_zero_there_is_no_contribution(sqlite_api):
    sender = two_ranks(sqlite_api, streams=(0.0, 0.0))

    assert CONTRIBUTION not in {one["metric"] for one in sender.get("/series")["series"] if one["last_step"] == 0}


def test_a_client_that_sends_the_ratio_alone_is_still_understood(sqlite_api):
    sender = Sender(sqlite_api)
    sender.send([*sender.declare([module_series(0, CONTRIBUTION, "blocks.0")]), sender.frame(0, [0.25])])

    assert sender.points(CONTRIBUTION)[0] == 0.5
