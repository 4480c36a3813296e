"""The optimizer's panel: one strip a metric, the worst parameters of each, and a row for every parameter."""

from itertools import pairwise

from internist.schema.conditions import CRITERIA
from internist.schema.metrics import METRICS
from internist.schema.views import Routing
from internist.schema.windows import Points, SeriesView
from internist.schema.wire import Facts, Route
from internist_dashboard import figures, routing
from internist_dashboard.filters import compiled
from internist_dashboard.frame import Frame
from internist_dashboard.pages.optimizer import LINES, worst

STEPS = tuple(range(0, 100, 10))
FRAME = Frame(0, 90)
MATRIX = Route("blocks.0.fc.weight", "MuonPlusPlus", "muon", "hidden", (8, 4), "hidden", "", "jordan", "cap")
HEAD = Route("head.weight", "MuonPlusPlus", "adamw", "head", (9, 8), "head")
TABLE = Routing("r", "a", (MATRIX, HEAD))


def series(number, metric, subject=MATRIX.parameter, last=0.01):
    unit = METRICS[metric].unit
    return SeriesView(number, metric, unit, "parameter", subject, None, "exact", Facts(), 90, last)


def window(number, metric, values):
    lost = tuple(int(value == "nan") for value in values)
    shown = tuple(values)
    return Points(series(number, metric), STEPS, STEPS, shown, shown, shown, lost, None, False)


def test_every_metric_that_is_drawn_is_in_the_catalogue_and_every_judged_one_can_be_seen():
    judged = {c.metric for c in CRITERIA if c.metric.startswith("optimizer.")} - {
        "optimizer.misrouted",  # an alert names it
        "optimizer.left_out",  # the same, and coverage
        "optimizer.gap_use",  # the gap is drawn
    }

    assert figures.STRIPS.keys() <= METRICS.keys() and routing.TOLD.keys() <= METRICS.keys()
    assert judged <= figures.STRIPS.keys() <= routing.TOLD.keys()


def test_each_metric_has_a_strip_of_its_own_and_strips_do_not_overlap():
    windows = [window(i, metric, [0.1] * 10) for i, metric in enumerate(figures.STRIPS)]
    windows.append(window(99, "optimizer.gap", [0.2] * 10))

    chart = figures.strips(windows, FRAME)

    axes = [chart.layout[f"yaxis{i or ''}"] for i in (0, *range(2, len(figures.STRIPS) + 1))]
    assert [axis.title.text for axis in axes] == [strip.title for strip in figures.STRIPS.values()]
    assert all(above.domain[0] > below.domain[1] for above, below in pairwise(axes))
    assert sum(trace.yaxis in (None, "y") for trace in chart.data) == 2
    assert chart.layout.xaxis.range == FRAME.span


def test_what_is_not_finite_is_a_mark_and_a_gap_in_the_line():
    chart = figures.strips([window(1, "optimizer.audit", [1e-4] * 9 + ["nan"])], FRAME)

    line, marks = chart.data
    assert line.y[-1] is None and (marks.mode, list(marks.x)) == ("markers", [90])


def test_the_worst_are_drawn_the_smallest_gaps_and_the_largest_audits_and_what_is_not_finite_first():
    gaps = [series(i, "optimizer.gap", last=0.01 * i) for i in range(30)]
    audits = [series(100 + i, "optimizer.audit", last="nan" if i == 3 else 1e-5 * i) for i in range(30)]
    absent = series(200, "optimizer.gap", last=None)

    chosen = {one.id for one in worst([*gaps, *audits, absent, series(300, "optimizer.effective_lr")])}

    assert chosen == {*range(LINES), 103, *range(130 - LINES + 1, 130)}


def test_the_table_has_a_row_for_every_parameter_and_a_value_opens_its_series():
    shown = str(routing.table(TABLE, [series(7, "optimizer.gap", last=0.0123)]))

    assert all(text in shown for text in (MATRIX.parameter, HEAD.parameter, "8 × 4", "jordan · cap", "0.0123"))
    assert "'7'" in shown and "muon · hidden" in shown
    assert routing.summary(TABLE) == "Routing · 1 muon · 1 adamw"


def test_the_filter_keeps_rows_by_name_and_many_rows_are_cut_and_counted():
    many = Routing("r", "a", tuple(Route(f"w{i}", "Muon", "muon", "0") for i in range(routing.SHOWN_ROUTES + 5)))

    assert HEAD.parameter not in str(routing.table(TABLE, [], pattern=compiled("fc")))
    assert "and 5 more" in str(routing.table(many, []))


def test_a_parameter_whose_optimizer_was_not_named_has_a_row_too():
    assert "other.weight" in str(routing.table(TABLE, [series(1, "optimizer.gap", "other.weight")]))
