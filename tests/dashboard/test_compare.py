"""Runs side by side."""

from dataclasses import replace

from internist_dashboard import compare_items
from internist_dashboard.compare_figures import COLOURS, overlay
from tests.dashboard.test_figures import points
from tests.dashboard.test_sentence import RUN, text


def test_only_settings_that_differ_are_listed_and_the_others_counted():
    one = replace(RUN, name="a", config={"lr": 1e-3, "width": 64, "seed": 0})
    other = replace(RUN, name="b", config={"lr": 3e-3, "width": 64})

    shown = text(compare_items.differences([one, other]))

    assert "lr0.0010.003" in shown and "seed0—" in shown
    assert "width" not in shown and "2 settings the same everywhere" in shown


def test_the_healthiest_run_stands_first_and_one_that_does_not_live_last():
    runs = [
        replace(RUN, name="lost", state="lost", verdict="ok"),
        replace(RUN, name="sick", verdict="violated"),
        replace(RUN, name="well", verdict="ok"),
    ]

    shown = text(compare_items.standing(runs))

    assert shown.index("well") < shown.index("sick") < shown.index("lost")


def test_lines_are_told_apart_without_colour_and_begin_together_in_time():
    lines = [(replace(RUN, name=f"run-{n}"), points([1.0] * 10)) for n in range(len(COLOURS) + 1)]

    chart = overlay(lines, metric="loss", axis="time", scheme="light")

    assert len({(trace.line.color, trace.line.dash) for trace in chart.data}) == len(lines)
    assert {trace.x[0] for trace in chart.data} == {0.0}


def test_a_metric_that_none_sends_is_said_to_be_missing():
    assert "None of these runs sends" in overlay([], metric="loss", axis="step", scheme="dark").to_json()
