"""The charts: few traces, one step axis, marks where numbers are none."""

from itertools import pairwise

import numpy as np
import pytest

from internist.schema.alerts import Alert
from internist.schema.windows import Band, Heatmap, HeatmapRow, Points, SeriesView
from internist.schema.wire import Facts
from internist_dashboard import figures, sparkline, ticks
from internist_dashboard.frame import Frame
from internist_dashboard.rows import collapse
from internist_dashboard.theme import DIVERGING_LIMIT, PALETTES, UNJUDGED, diverging, heat_scale

STEPS = tuple(range(0, 100, 10))
FRAME = Frame(0, 90)


def points(values, *, metric="loss", subject="", index=None, band=None, series=7):
    facts = Facts(block=subject or None)
    view = SeriesView(series, metric, "nats", "model", subject, index, "exact", facts, 90, 1.0)
    lost = tuple(int(value in ("nan", "inf", "-inf")) for value in values)
    return Points(view, STEPS, STEPS, tuple(values), tuple(values), tuple(values), lost, band, False)


def alert(*, step=50, severity="critical"):
    return Alert(
        1, "r", "r", "p", "a", "rule", "update", severity, "firing", 7, "update.own", "blocks.2", None, "module",
        "blocks.2", "blocks.2", "own", 0.6, 31.0, 31.0, "baseline", 0.01, 0.04, step, step, None, 0, None, "moved",
        "its rate", None, None, True,
    )  # fmt: skip


def deep(layers):
    rows = tuple(
        HeatmapRow(f"blocks.{i}", f"blocks.{i}", i, (i, i + 1000), (0.1,) * len(STEPS), (1.0,) * len(STEPS))
        for i in range(layers)
    )
    return Heatmap("r", "a", "update.own", "activation", STEPS, rows, "baseline", ("update.own",))


def test_the_heat_map_is_one_trace():
    chart = figures.heat(deep(96), collapse(deep(96)), FRAME)

    assert [trace.type for trace in chart.data] == ["heatmap"]
    assert (chart.data[0].zmin, chart.data[0].zmax) == (UNJUDGED, DIVERGING_LIMIT)


def test_with_96_layers_rows_are_eight_pixels_and_labels_stay_apart():
    chart = figures.heat(deep(96), collapse(deep(96)), FRAME)
    ticks = [chart.layout.yaxis.categoryarray.index(tick) for tick in chart.layout.yaxis.tickvals]

    assert figures.row_height(96) == 8
    assert min(b - a for a, b in pairwise(ticks)) * figures.row_height(96) >= figures.LABEL_PX


def test_with_four_layers_every_row_has_its_label_and_the_map_is_compact():
    chart = figures.heat(deep(4), collapse(deep(4)), FRAME)

    assert len(chart.layout.yaxis.tickvals) == 4
    assert chart.layout.height < 200


def test_nan_becomes_a_dot_and_the_farthest_colour():
    lost = Heatmap(
        "r",
        "a",
        "m",
        "",
        STEPS,
        (HeatmapRow("x", None, 0, (1,), (0.1,) * 9 + (None,), (1.0,) * 9 + ("nan",)),),
        None,
        (),
    )

    chart = figures.heat(lost, collapse(lost), FRAME)

    dots = chart.data[1]
    assert (list(dots.x), list(dots.y)) == ([90], ["x"])
    assert np.asarray(chart.data[0].z)[0, -1] == 2


def test_all_charts_of_a_page_share_the_step_axis():
    charts = [
        figures.loss(points([1.0] * 10), [], [], FRAME),
        figures.heat(deep(4), collapse(deep(4)), FRAME),
        figures.logits([points([5.0] * 10, metric="attention.max_logit", subject="blocks.0", index=0)], FRAME),
    ]

    assert len({tuple(chart.layout.xaxis.range) for chart in charts}) == 1
    assert len({(chart.layout.margin.l, chart.layout.margin.r) for chart in charts}) == 1


def test_an_alert_is_a_mark_on_the_step_axis_and_red_only_when_critical():
    loud = figures.loss(points([1.0] * 10), [], [alert()], FRAME).data[-1]
    mild = figures.loss(points([1.0] * 10), [], [alert(severity="warning")], FRAME).data[-1]

    assert list(loud.x) == [50]
    assert loud.marker.color[0] == PALETTES["light"].violated
    assert mild.marker.color[0] == PALETTES["light"].drifting


def test_a_lost_loss_is_a_gap_in_the_line_and_a_mark_at_the_edge():
    chart = figures.loss(points([1.0] * 5 + ["nan"] * 5), [], [], FRAME)

    assert chart.data[0].y[5] is None
    assert list(chart.data[1].x) == [50, 60, 70, 80, 90]


def test_a_series_is_drawn_with_its_warning_and_critical_edges():
    ten = (1.0,) * 10
    band = Band("baseline", ten, (0.5,) * 10, (2.0,) * 10, (0.25,) * 10, (4.0,) * 10)

    chart = figures.series(points([1.0] * 10, band=band), [alert()], FRAME)

    levels = {trace.y[0] for trace in chart.data}
    assert {0.25, 0.5, 1.0, 2.0, 4.0} <= levels


def test_a_target_band_without_a_lower_edge_is_drawn_above_only():
    none = (None,) * 10
    band = Band("target", none, none, (100.0,) * 10, none, (1000.0,) * 10)

    chart = figures.series(points([6.0] * 10, band=band), [], FRAME)

    assert {trace.y[0] for trace in chart.data} >= {6.0, 100.0, 1000.0}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_diverging_scale_is_neutral_in_the_middle(scheme):
    scale = dict(diverging(scheme))

    assert scale[0.375] == scale[0.625] == PALETTES[scheme].centre
    assert min(scale) == 0 and max(scale) == 1


def test_a_chart_without_data_says_why():
    assert figures.empty("Nothing yet.", FRAME).layout.annotations[0].text == "Nothing yet."


def test_the_sparkline_has_a_bar_for_each_value_and_fills_for_nan():
    shape = sparkline.mask([0.1, None, "inf"])

    assert shape.count("%3Crect") == 2
    assert "height='24.0'" in shape


def test_what_was_measured_and_not_judged_has_a_colour_of_its_own():
    scale = heat_scale("light")

    assert scale[0] == (0.0, PALETTES["light"].unjudged)
    places = [place for place, _ in scale]
    assert places == sorted(places) and places[-1] == pytest.approx(1.0)
    at_minus_two = (-DIVERGING_LIMIT - UNJUDGED) / (DIVERGING_LIMIT - UNJUDGED)
    assert next(colour for place, colour in scale if place >= at_minus_two - 1e-9) == PALETTES["light"].low[0]


def test_names_that_look_like_tags_stand_as_they_are_written():
    name = "<b>bold</b> %{y}"

    chart = figures.series(points([1.0] * 10, metric=name), [], FRAME)

    assert "<b>" not in chart.to_json()
    assert "&lt;b&gt;bold&lt;/b&gt;" in chart.layout.yaxis.title.text


def test_a_logarithmic_axis_has_few_ticks_and_each_its_whole_value():
    assert ticks.logarithmic(0.011, 0.4)["ticktext"] == ["0.01", "0.02", "0.05", "0.1", "0.2"]
    assert ticks.logarithmic(1e-7, 1e7)["tickvals"][0] == 1e-7
    assert all(len(ticks.logarithmic(1, 10.0**n)["tickvals"]) <= ticks.MOST for n in range(1, 30))
