"""Thresholds of the user's own, step by step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from internist_server.alerts.rules import Rule
from internist_server.alerts.thresholds import Thresholds
from tests.server.judged_runs import series

NORM, LOSS = series(1, "gradient.global_norm", ""), series(3, "loss", "")
HIGH = Rule(name="high", metric="gradient.*", above=5.0)
ABSENT = Rule(name="waits", metric="loss", absent=30)


def watch(points, *rules, on=(NORM,)):
    """Changes over points of (step, value of the first series; None: not measured), as (step, state)."""
    thresholds, found = Thresholds(rules, on), []
    for step, value in points:
        found += judge(thresholds, step, value)
    return [(one.step, one.state) for one in found]


def judge(thresholds, step, value, *, skipped=False, of=1):
    values = np.full(of, np.nan if value is None else value, np.float32)
    present = np.zeros(of, bool)
    present[0] = value is not None
    return thresholds.judge(step, values, present, skipped=skipped)


def test_a_value_over_its_threshold_fires_at_once_and_resolves_at_the_first_one_that_is_not():
    assert watch([(0, 1), (10, 7), (20, 8), (30, 5)], HIGH) == [(10, "firing"), (30, "resolved")]


def test_a_value_under_its_threshold_and_one_that_is_nan_are_beyond_it():
    low = Rule(name="low", above=10.0, below=1.0)

    assert watch([(0, 0.5), (10, 2), (20, np.nan), (30, 2)], low) == [
        (0, "firing"), (10, "resolved"), (20, "firing"), (30, "resolved"),
    ]  # fmt: skip


def test_a_rule_waits_for_its_samples_both_ways():
    patient = HIGH.model_copy(update={"for_": 2})

    assert watch([(0, 7), (1, 7), (2, 1), (3, 7), (4, 1), (5, 1)], patient) == [
        (0, "pending"), (1, "firing"), (5, "resolved"),
    ]  # fmt: skip


def test_a_rule_waits_for_its_steps_however_densely_they_are_sampled():
    patient = HIGH.model_copy(update={"for_": "100 steps"})
    dense = [(step, 7) for step in range(101)]

    assert watch(dense, patient) == [(0, "pending"), (100, "firing")]
    assert watch([*dense, *((step, 1) for step in range(101, 202))], patient)[-1] == (200, "resolved")


def test_a_recovery_keeps_a_value_that_comes_back_a_little_firing():
    careful = HIGH.model_copy(update={"recovery": 2.0})

    assert watch([(0, 7), (1, 4), (2, 7), (3, 1.9)], careful) == [(0, "firing"), (3, "resolved")]


def test_a_gradient_that_is_infinite_where_the_scaler_skipped_the_step_passes_nothing():
    thresholds = Thresholds([HIGH], [NORM])

    assert judge(thresholds, 0, np.inf, skipped=True) == []
    assert [one.state for one in judge(thresholds, 1, np.inf)] == ["firing"]


def test_a_series_that_stops_is_told_of_and_of_its_return():
    points = [(0, 1.0), *((step, None) for step in range(10, 70, 10)), (70, 1.0)]

    assert watch(points, ABSENT, on=(LOSS,)) == [(30, "firing"), (70, "resolved")]


def test_a_series_that_never_comes_is_told_of_without_one():
    thresholds = Thresholds([ABSENT], [NORM])
    found = [one for step in range(0, 50, 10) for one in judge(thresholds, step, 1.0)]

    (change,) = found
    assert (change.step, change.state, change.series, change.condition) == (30, "firing", None, "absent")
    assert change.message == "the run: loss has not been measured for 30 steps, up to step 30; expected every 30"
    thresholds.add_series([LOSS])
    assert [(one.rule, one.state) for one in judge(thresholds, 60, 1.0, of=2)] == [("waits", "resolved")]


def test_a_rule_that_is_changed_or_taken_away_ends_what_it_opened():
    thresholds = Thresholds([HIGH], [NORM])
    judge(thresholds, 0, 7)

    thresholds.change_rules([HIGH.model_copy(update={"above": 6.0, "severity": "critical"})])

    ended, begun = judge(thresholds, 1, 7)
    assert (ended.state, ended.message) == ("resolved", "rule high: it was changed or taken away, before step 1")
    assert (begun.state, begun.severity, begun.band_high) == ("firing", "critical", 6.0)
    thresholds.change_rules([])
    assert [one.state for one in judge(thresholds, 2, 7)] == ["resolved"]


def test_what_is_told_of_a_rule_changes_without_ending_it():
    thresholds = Thresholds([HIGH], [NORM])
    judge(thresholds, 0, 7)

    thresholds.change_rules([HIGH.model_copy(update={"labels": {"team": "a"}, "receivers": ("ada",)})])

    assert judge(thresholds, 1, 7) == []


def test_a_message_says_what_is_how_far_beyond_which_edge():
    (change,) = judge(Thresholds([HIGH], [series(1, "gradient.rms", "blocks.0.fc.weight", index=3)]), 10, 7.5)

    assert change.message == "blocks.0.fc.weight [3]: gradient.rms is 7.5, over 5, since step 10"
    assert (change.ratio, change.band_high, change.value) == (1.5, 5.0, 7.5)


VALUES = (None, 0.0, 4.5, 7.0, -3.0, np.nan)
EVENTS = ("", "", "", "restart", "rules", "series")
MOVES = st.lists(st.integers(0, 60 * len(EVENTS) * len(VALUES) ** 3 - 1), max_size=25)
"""Each number is a move: a gap in steps, an event, and what becomes of three series."""


RULES = [
    HIGH,
    Rule(name="patient", metric="*", above=4.0, **{"for": 3}),
    Rule(name="steps", metric="gradient.*", below=0.5, **{"for": "40 steps"}),
    Rule(name="careful", above=5.0, recovery=1.0),
    ABSENT,
    Rule(name="never", metric="nothing.*", absent=50),
]


@settings(max_examples=60, deadline=None)  # a busy machine is no failure
@given(MOVES, st.lists(st.sampled_from(RULES), unique_by=lambda rule: rule.name))
def test_no_order_of_values_leaves_two_alerts_open_for_one_series_and_rule_or_loses_an_end(moves, rules):
    known = [NORM, series(2, "gradient.rms", "a"), LOSS]
    thresholds, shown, step, now = Thresholds(rules, known[:1]), 1, 0, list(rules)
    open_alerts = set()

    def take(found):
        for one in found:
            key = (one.series, one.rule)
            if one.state == "resolved":
                open_alerts.remove(key)  # what ends has begun
            elif one.state == "pending" or one.opened_step == one.pending_step:
                assert key not in open_alerts
                open_alerts.add(key)
            else:
                assert key in open_alerts

    for move in moves:
        move, gap = divmod(move, 60)
        move, event = divmod(move, len(EVENTS))
        values = [VALUES[move // len(VALUES) ** place % len(VALUES)] for place in range(3)]
        event, step = EVENTS[event], step + 1 + gap
        if event == "restart":
            thresholds = Thresholds(now, known[:shown], state=thresholds.state())
        elif event == "rules":
            other = RULES[step % len(RULES)]
            now = [*now[1:], *([] if other in now else [other])]
            thresholds.change_rules(now)
        elif event == "series" and shown < 3:
            thresholds.add_series(known[shown : shown + 1])
            shown += 1
        present = np.array([value is not None for value in values[:shown]])
        take(thresholds.judge(step, np.array([value or 0.0 for value in values[:shown]], np.float32), present))
    thresholds.change_rules([])
    take(thresholds.judge(step + 1, np.zeros(shown, np.float32), np.zeros(shown, bool)))

    assert open_alerts == set()
