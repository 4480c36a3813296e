"""The ranks' panel: what it says of each."""

from internist.schema.views import Ranks, RankView
from internist_dashboard import rank_items

NOW = 1_790_000_000_000
WELL = RankView(0, {"dp": 0}, "live", NOW, 420, 0, 2.3, 0.4)
ILL = RankView(
    3, {"dp": 3}, "silent", NOW - 90_000, 400, 20, "nan", 0.4, ("loss", "weight.replicas_differ", "monitor.step_ms")
)
RANKS = Ranks("r", "a", 512, 420, 2, (7, 9), 1, 1, NOW, (ILL, WELL))


def test_the_panel_says_how_many_are_silent_and_unlike_the_others():
    assert rank_items.summary(RANKS) == "512 ranks · 2 never seen · 1 silent · 1 unlike the others"
    assert rank_items.summary(Ranks("r", "a", 2, 0, 0, (), 0, 0, NOW, (WELL,))) == "2 ranks"


def test_a_row_says_what_is_to_be_said_of_its_rank_and_nothing_of_one_that_is_well():
    assert rank_items.said(ILL) == "loss, weights unlike the others' · slower than the others · 20 steps behind"
    assert rank_items.said(WELL) == ""

    shown = str(rank_items.table(RANKS))
    assert "NaN" in shown and "90 s ago" in shown
    assert "never seen: 7, 9" in shown and "and 508 more" in shown
