"""The scaling page's drawing: forest marks, log-log plots, rows and sentences; nothing is told by colour alone."""

import math
from dataclasses import replace

import pytest

from internist.schema.scaling import (
    Cause,
    Diagnosis,
    Excluded,
    Exponent,
    FamilyMember,
    ScalingFamily,
    ScalingReport,
)
from internist_dashboard import scaling_figures, scaling_items
from internist_dashboard.filters import compiled
from internist_dashboard.scaling_figures import LIMIT, Span, forest, loglog, signed, span_of, with_interval

SIZES = (64, 128, 256)
MEMBERS = tuple(FamilyMember(f"r{w}", f"w{w}", w, 2, 0, "adamw") for w in SIZES)
EXPONENT = Exponent(
    metric="update.own_mean", role="hidden", axis="width", window="early", exponent=1.0, standard_error=0.01,
    low95=0.97, high95=1.03, low90=0.98, high90=1.02, expected=0.0, verdict="FAIL", reason="+1.00 off",
    curvature=None, curvature_warning=False, sizes=SIZES, values=(1.0, 2.0, 4.0), members=("w64", "w128", "w256"),
    judged=True, label="hidden matrices",
)  # fmt: skip
CALM = replace(EXPONENT, role="embedding", label="embedding", exponent=0.01, low95=-0.02, high95=0.04, low90=-0.01,
               high90=0.03, verdict="PASS")  # fmt: skip
UNJUDGED = replace(CALM, role="attention", label="attention logits", judged=False, expected=None, reason="shown only")
REPORT = ScalingReport(MEMBERS, (), (CALM, UNJUDGED, EXPONENT), (), "FAIL", "1 of 2 exponents is wrong.")
FAMILY = ScalingFamily("f1", "gpt · adamw", "gpt", MEMBERS, SIZES, (2,), True, "", "/api/v1/scaling?family=f1")
ROUNDING = 1e-9


def text_of(node):
    """All text in a component, in order."""
    if node is None:
        return ""
    if isinstance(node, str | int | float):
        return str(node)
    if isinstance(node, list | tuple):
        return " ".join(text_of(one) for one in node)
    return text_of(getattr(node, "children", None))


def classes(node):
    """Class names in a component, in order."""
    if isinstance(node, list | tuple):
        return [name for one in node for name in classes(one)]
    if not hasattr(node, "children"):
        return [getattr(node, "className", "")] if hasattr(node, "className") else []
    return [getattr(node, "className", "") or "", *classes(node.children)]


def marks(node, name):
    return [one for one in node.children if one.className.split()[0] == name]


def percent(mark, side="left"):
    return float(mark.style[side].rstrip("%")) / 100


def test_the_interval_the_point_and_the_band_share_one_scale():
    span = Span(-1.0, 1.5)

    drawn = forest(EXPONENT, span, state="violated")

    (band,), (wide,), (narrow,), (point,) = (marks(drawn, f"forest-{name}") for name in ("band", "95", "90", "point"))
    assert percent(band) == pytest.approx(0.36) and percent(band, "width") == pytest.approx(0.08)
    assert percent(point) == pytest.approx(0.8)
    assert percent(wide) < percent(narrow) < percent(point)
    assert percent(wide, "width") > percent(narrow, "width")


def test_what_lies_beyond_the_scale_is_drawn_at_its_edge():
    span = span_of([replace(EXPONENT, exponent=7.0, low95=-40.0, high95=54.0)])

    assert span.low >= -LIMIT * 1.1 and span.high <= LIMIT * 1.1
    assert (span.share(99.0), span.share(-99.0)) == (1.0, 0.0)


def test_the_scale_covers_every_interval_and_band_and_has_ticks_at_halves():
    span = span_of([EXPONENT, replace(CALM, expected=-0.5, low95=-1.6)])

    assert span.low < -1.6 and span.high > 1.03
    assert span.ticks[0] == -1.5 and 0 in span.ticks and all((2 * tick).is_integer() for tick in span.ticks)


def test_an_exponent_without_an_interval_is_a_point_alone():
    drawn = forest(replace(EXPONENT, low95="-inf", high95="inf", low90="-inf", high90="inf"), Span(-1, 1), state="ok")

    assert not marks(drawn, "forest-95") and marks(drawn, "forest-point")
    assert with_interval(replace(EXPONENT, low95="-inf", high95="inf")) == "+1.00"


def test_an_exponent_that_is_not_known_has_no_mark_and_says_so():
    unknown = replace(EXPONENT, exponent="nan", low95="nan", high95="nan", low90="nan", high90="nan")

    assert not marks(forest(unknown, Span(-1, 1), state="unmeasured"), "forest-point")
    assert with_interval(unknown) == "—"


def test_those_who_do_not_see_hear_the_interval():
    label = getattr(forest(EXPONENT, Span(-1, 1), state="violated"), "aria-label")

    assert label == "exponent +1.00 ± 0.03, 95 % interval +0.97 to +1.03, expected 0 ± 0.1"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.984, "+0.98"), (-0.5, "−0.50"), (0.001, "0.00"), (-0.0, "0.00"), (1.0, "+1.00")]
)
def test_exponents_carry_their_sign(value, shown):
    assert signed(value) == shown


def test_the_fit_runs_through_the_middle_of_the_points_with_the_slope_it_names():
    chart = loglog(EXPONENT, MEMBERS, scheme="light")

    (fit,) = (trace for trace in chart.data if trace.name == "fit")
    slope = math.log(fit.y[1] / fit.y[0]) / math.log(fit.x[1] / fit.x[0])
    assert slope == pytest.approx(1.0, abs=ROUNDING)
    assert math.sqrt(fit.y[0] * fit.y[1]) == pytest.approx(2.0)
    assert "fit +1.00" in [note.text for note in chart.layout.annotations]


def test_what_was_expected_is_a_dashed_line_and_both_axes_are_logarithmic():
    chart = loglog(EXPONENT, MEMBERS, scheme="dark")

    (expected,) = (trace for trace in chart.data if trace.name == "expected")
    assert expected.line.dash == "dash" and expected.y[0] == expected.y[1]
    assert (chart.layout.xaxis.type, chart.layout.yaxis.type) == ("log", "log")
    assert list(chart.layout.xaxis.ticktext) == ["64", "128", "256"]


def test_each_size_of_the_other_axis_has_a_symbol_of_its_own():
    deep = tuple(FamilyMember(f"d{w}", f"d{w}", w, 8, 0, "adamw") for w in SIZES)
    both = replace(
        EXPONENT, sizes=SIZES * 2, values=(1.0, 2.0, 4.0) * 2, members=EXPONENT.members + tuple(m.name for m in deep)
    )

    chart = loglog(both, MEMBERS + deep, scheme="light")

    points = [trace for trace in chart.data if trace.mode == "markers"]
    assert [trace.name for trace in points] == ["depth 2", "depth 8"]
    assert len({trace.marker.symbol for trace in points}) == 2 and chart.layout.showlegend


def test_what_has_no_place_on_a_logarithmic_axis_is_not_drawn():
    chart = loglog(replace(EXPONENT, values=(0.0, "nan", 4.0)), MEMBERS, scheme="light")

    (points,) = (trace for trace in chart.data if trace.mode == "markers")
    assert list(points.x) == [256]
    empty = loglog(replace(EXPONENT, values=(0.0, 0.0, 0.0)), MEMBERS, scheme="light")
    assert not empty.data


def test_rows_come_worst_first_and_what_is_not_judged_is_folded():
    page = scaling_items.tables(REPORT, open_row=None, pattern=None)

    shown = text_of(page)
    assert shown.index("hidden matrices") < shown.index("embedding") < shown.index("1 more, shown but not judged")
    assert shown.index("not judged") < shown.index("attention logits")


def test_a_verdict_has_a_shape_and_a_word_besides_its_colour():
    shown = text_of(scaling_items.tables(REPORT, open_row=None, pattern=None))

    assert all(mark in shown for mark in ("■", "●", "○")) and "FAIL" in shown and "PASS" in shown
    inconclusive = replace(REPORT, exponents=(replace(EXPONENT, verdict="INCONCLUSIVE"),))
    assert "◐" in text_of(scaling_items.tables(inconclusive, open_row=None, pattern=None))


def test_the_filter_keeps_quantities_by_words_metric_and_verdict():
    def shown(text):
        return text_of(scaling_items.tables(REPORT, open_row=None, pattern=compiled(text)))

    assert "embedding" not in shown("hidden") and "hidden matrices" in shown("own_mean")
    assert "No exponent matches" in shown("nothing of the kind")


def test_the_worst_exponent_is_drawn_unless_the_address_names_another():
    assert scaling_items.chosen(REPORT, None) is EXPONENT
    assert scaling_items.chosen(REPORT, scaling_items.key(CALM)) is CALM
    assert scaling_items.chosen(REPORT, "no.such.row") is EXPONENT
    assert scaling_items.chosen(replace(REPORT, exponents=()), None) is None


def test_the_diagnoses_are_sentences_and_say_what_the_runs_recorded():
    causes = (
        Cause("a", "the multiplier is missing", "output multiplier", ""),
        Cause("b", "the rate is not divided", "learning rate of the head", "0.003 at every width"),
    )
    report = replace(REPORT, diagnoses=(Diagnosis(1, "width", "logits: +1.00: one of two", causes, 1.0, ("logits",)),))

    shown = text_of(scaling_items.diagnoses(report))

    assert shown.startswith("logits: +1.00: one of two") and "look the same in every exponent" in shown
    assert "not recorded: output multiplier" in shown and "learning rate of the head: 0.003 at every width" in shown


@pytest.mark.parametrize(
    ("verdict", "words"), [("PASS", "nothing is off"), ("FAIL", "no known mistake"), ("INCONCLUSIVE", "is known")]
)
def test_without_a_diagnosis_it_is_said_what_that_means(verdict, words):
    assert words in text_of(scaling_items.diagnoses(replace(REPORT, verdict=verdict)))


def test_members_that_were_left_out_are_named_with_the_reason():
    report = replace(REPORT, excluded=(Excluded("r9", "lost", "its loss is NaN"),))

    assert "left out: its loss is NaN" in text_of(scaling_items.family_facts(report))


def test_a_family_that_cannot_be_checked_cannot_be_picked_and_says_why():
    short = replace(FAMILY, id="f2", checkable=False, reason="1 more width would do")

    options = scaling_items.options([FAMILY, short])

    assert [one["disabled"] for one in options] == [False, True]
    assert "1 more width would do" in str(options[1]["label"])
    assert "1 more width would do" in text_of(scaling_items.choice([short], []))


def test_without_families_the_lines_to_copy_are_shown():
    shown = text_of(scaling_items.choice([], [Excluded("r", "cnn", "its width cannot be read")]))

    assert "internist.watch(model, optimizer" in shown and "its width cannot be read" in shown


def test_the_choice_of_families_is_buttons():
    shown = scaling_items.choice([FAMILY, replace(FAMILY, id="f2")], [])

    assert "Which family?" in text_of(shown) and "width 64, 128, 256" in text_of(shown)


def test_every_verdict_has_a_shape():
    assert set(scaling_items.STATES) == {"PASS", "FAIL", "INCONCLUSIVE"}
    assert set(scaling_items.WINDOWS) == {"init", "early", "late"}
    assert "violated" in " ".join(classes(scaling_items.sentence(REPORT)))
    assert scaling_figures.axis(Span(-1, 1)).children
