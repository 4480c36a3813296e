"""Runs side by side."""

from dataclasses import replace

import numpy as np

from internist.schema.windows import Heatmap, HeatmapRow
from internist_dashboard import compare_items
from internist_dashboard.compare_figures import COLOURS, overlay
from internist_dashboard.difference import difference, heat
from tests.dashboard.test_figures import STEPS, points
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
    one = points([1.0] * 10)
    lines = [(replace(RUN, name=f"run-{n}"), one, one) for n in range(len(COLOURS) + 1)]

    chart = overlay(lines, metric="loss", axis="time", scheme="light")

    assert len({(trace.line.color, trace.line.dash) for trace in chart.data}) == len(lines)
    assert {trace.x[0] for trace in chart.data} == {0.0}


def test_a_metric_that_none_sends_is_said_to_be_missing():
    assert "None of these runs sends" in overlay([], metric="loss", axis="step", scheme="dark").to_json()


def test_lines_lie_over_the_tokens_that_each_run_has_seen():
    seen = points([step * 1000.0 for step in STEPS], metric="tokens")

    (trace,) = overlay([(RUN, points([1.0] * 10), seen)], metric="loss", axis="tokens", scheme="light").data

    assert list(trace.x) == [step * 1000.0 for step in STEPS]


def of(values, *, steps=(0, 10, 20), name="blocks.0"):
    row = HeatmapRow(name, name, 0, (1,), (0.0,) * len(steps), tuple(values))
    return Heatmap("r", "a", "update.own", "", steps, (row,), None, ("update.own",))


def test_a_difference_is_one_run_over_the_other_at_the_same_steps():
    found = difference(of([4.0, 4.0, 4.0]), of([1.0, 2.0], steps=(0, 10)))

    assert found.rows == ("blocks.0",)
    assert found.ratios[0, :2].tolist() == [2.0, 1.0]
    assert np.isnan(found.ratios[0, 2])  # the other run had ended


def test_what_one_run_alone_has_or_what_is_no_number_has_no_difference():
    nowhere = difference(of([1.0] * 3), of([1.0] * 3, name="blocks.1"))
    lost = difference(of(["nan", "inf", 0.0]), of([1.0] * 3))

    assert nowhere.rows == () and np.isnan(lost.ratios).all()
    assert "of no part" in heat(nowhere, metric="m", names=("a", "b"), scheme="dark", is_narrow=False).to_json()
