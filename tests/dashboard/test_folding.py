"""Heat maps as they are sent: few digits, and nothing that is not a number lost."""

import math

import numpy as np
import orjson
import plotly.graph_objects as go
import pytest

from internist_dashboard import figures
from internist_dashboard.folding import DIGITS, RATIO_STEPS, fold
from internist_dashboard.rows import collapse
from tests.dashboard.test_figures import FRAME, deep, points
from tests.dashboard.test_rows import heatmap, row

HALF_A_DIGIT = 0.5 * 10 ** (1 - DIGITS)


def cells(chart: go.Figure, **about):
    return fold(chart, **about)["data"][0]["cells"]


def heat(*ratios, values):
    found = heatmap(row("x", ratios, values=values))
    return cells(figures.heat(found, collapse(found), FRAME), against="its band")


def test_a_cell_is_sent_as_its_value_in_three_digits_and_its_log_ratio_in_steps():
    sent = heat(0.1, -1.5, 4.2, values=[1.23456, 3e-9, 12345.0])

    assert sent["values"][0] == pytest.approx([1.23456, 3e-9, 12345.0], rel=HALF_A_DIGIT)
    assert [step / RATIO_STEPS for step in sent["ratios"][0]] == pytest.approx([0.1, -1.5, 4.2], abs=0.5 / RATIO_STEPS)
    assert sent["ago"] == [[0, 0, 0]] and sent["against"] == "its band"


def test_what_is_not_finite_keeps_its_name_and_what_was_not_judged_has_no_ratio():
    sent = heat(0.0, None, None, values=["inf", "nan", 2.0])

    assert sent["values"] == [["inf", "nan", 2.0]]
    assert sent["ratios"][0][1:] == [None, None]


def test_heads_are_sent_as_their_values_alone():
    sent = cells(figures.logits([points([5.0] * 8 + ["nan", None], metric="attention.max_logit", index=0)], FRAME))

    assert sent == {"values": [[5.0] * 8 + ["nan", None]]}


def test_only_heat_maps_are_folded():
    chart = figures.loss(points([1.0] * 10), [], [], FRAME)

    assert [trace.get("cells") for trace in fold(chart)["data"]] == [None] * len(chart.data)


def test_a_heat_map_of_many_layers_is_sent_in_a_few_bytes_a_cell():
    found = deep(96)
    sent = fold(figures.heat(found, collapse(found), FRAME))

    assert not any(key in sent["data"][0] for key in ("z", "customdata"))
    assert all(x is None or math.isfinite(x) for x in np.ravel(sent["data"][0]["cells"]["ratios"]))
    assert len(orjson.dumps(sent["data"][0]["cells"])) < 12 * 96 * len(found.steps)
