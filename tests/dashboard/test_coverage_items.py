"""Card and drawer say the same of what is measured; the drawer lists what is missing first, by family."""

import json

from plotly.utils import PlotlyJSONEncoder

from internist.schema.coverage import share
from internist.schema.views import Coverage, Run
from internist.schema.wire import CoverageEntry
from internist_dashboard import cards, coverage_items, words

RUN = Run(
    id="r", project="p", name="n", state="live", state_reason="", created_at_ms=0, last_step=10, last_frame_at_ms=0,
    heartbeat_at_ms=0, server_time_ms=0, steps_per_second=1.0, loss=2.0, learning_rate=0.1, verdict="ok", sentence="",
    violated=0, drifting=0, open_alerts=0, series=1, overhead=0.01, coverage=1.0, config={}, parametrization="standard",
    optimizers=(), attempts=(), cursor=0,
)  # fmt: skip
FROZEN = 5_000


def answer(*entries):
    counts = {state: sum(entry.state == state for entry in entries) for state in {entry.state for entry in entries}}
    return Coverage("r", share(entries), counts, tuple(entries), ())


LORA = answer(
    *(CoverageEntry("parameter", f"base.{i}", "frozen", "requires_grad is False", "gradient") for i in range(FROZEN)),
    CoverageEntry("module", "lora", "measured", "", "activation"),
    CoverageEntry("parameter", "lora.weight", "measured", "", "gradient"),
    CoverageEntry("parameter", "lora.weight", "silent", "not yet its turn", "spectrum"),
)


def text_of(node):
    """All text of a node, in order."""
    children = getattr(node, "children", node)
    if isinstance(children, list | tuple):
        return " ".join(text_of(child) for child in children)
    return "" if children is None else children if isinstance(children, str) else text_of(children)


def headings(node):
    return [text_of(family.children[0]) for family in node.children[1:]]


def test_card_and_drawer_of_a_mostly_frozen_run_show_the_same_share():
    card, drawer = text_of(cards.facts(RUN, LORA)), text_of(coverage_items.listing(LORA, None))

    assert words.share(2 / 3) in card and words.share(2 / 3) in drawer
    assert "1 missing" in card and "1 missing" in drawer


def test_families_that_miss_something_come_first_and_are_open():
    shown = coverage_items.listing(LORA, None)

    assert headings(shown) == [
        "spectrum · spectral norms of a matrix and of its update · 1 of 1 missing",
        "activation · size, outliers and dependency of a module's output · 1, none missing",
        f"gradient · gradient of a parameter · {FROZEN + 1}, none missing",
    ]
    assert [family.open for family in shown.children[1:]] == [True, False, False]


def test_within_a_family_what_is_missing_comes_first_with_its_reason():
    entries = (
        CoverageEntry("module", "a", "measured", "", "attention"),
        CoverageEntry("module", "b", "silent", "its logits were not seen", "attention"),
        CoverageEntry("module", "c", "silent", "its logits were not seen", "attention"),
    )

    [family] = coverage_items.listing(answer(*entries), None).children[1:]

    assert [text_of(group.children[0]) for group in family.children[1:]] == [
        "silent · 2 · its logits were not seen",
        "measured · 1",
    ]


def test_thousands_of_entries_are_counted_and_a_few_are_named():
    drawn = json.dumps(coverage_items.listing(LORA, None), cls=PlotlyJSONEncoder)

    assert f"and {FROZEN - coverage_items.SHOWN_SUBJECTS} more" in drawn
    assert len(drawn) < 20_000


def test_the_filter_finds_a_subject_that_is_not_named():
    drawn = text_of(coverage_items.listing(LORA, "base.4999"))

    assert "base.4999" in drawn and words.share(2 / 3) in drawn


def test_entries_without_a_family_speak_for_all_metrics_of_their_subject():
    shown = coverage_items.listing(answer(CoverageEntry("module", "a", "silent", "never called")), None)

    assert headings(shown) == ["all metrics of a subject · 1 of 1 missing"]


def test_a_run_that_told_nothing_has_no_share():
    assert "—" in text_of(cards.facts(RUN, answer())) and "—" in text_of(coverage_items.listing(answer(), None))
