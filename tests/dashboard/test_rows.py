"""The rows of the heat map: collapsed, opened, held."""

import numpy as np
import pytest

from internist.schema.windows import Heatmap, HeatmapRow
from internist_dashboard.filters import compiled, subject_of
from internist_dashboard.rows import cells, collapse
from internist_server.patterns import searcher


def row(subject, ratios, *, values=None, block=None, order=0, series=(1,)):
    return HeatmapRow(subject, block, order, series, tuple(ratios), tuple(values or [1.0] * len(ratios)))


def heatmap(*rows, steps=(0, 10, 20)):
    return Heatmap("r", "a", "update.own", "activation", tuple(steps), rows, "baseline", ("update.own",))


TWO_BLOCKS = heatmap(
    row("embed", [0.0, 0.0, 0.0], order=0),
    row("blocks.0.attn", [0.1, 0.1, -0.2], block="blocks.0", order=1),
    row("blocks.0.mlp", [-1.5, 0.0, 0.1], block="blocks.0", order=2),
    row("blocks.1.attn", [0.2, 3.0, 0.2], block="blocks.1", order=3),
    row("blocks.1.mlp", [0.2, None, 0.2], block="blocks.1", order=4),
)


def test_blocks_are_collapsed_and_the_farthest_member_speaks():
    rows = collapse(TWO_BLOCKS)

    assert [r.label for r in rows] == ["embed", "blocks.0", "blocks.1"]
    assert rows[1].ratios == (-1.5, 0.1, -0.2)
    assert rows[2].ratios == (0.2, 3.0, 0.2)


def test_an_opened_block_shows_its_members_by_short_names():
    rows = collapse(TWO_BLOCKS, opened=["blocks.1"])

    assert [r.label for r in rows] == ["embed", "blocks.0", "blocks.1", "attn", "mlp"]
    assert [r.is_child for r in rows] == [False, False, False, True, True]
    assert rows[2].is_open and rows[2].block == "blocks.1"
    assert len({r.key for r in rows}) == len(rows)


def test_a_filter_leaves_matching_modules_alone():
    rows = collapse(TWO_BLOCKS, pattern=compiled("attn|embed"))

    assert [r.label for r in rows] == ["embed", "blocks.0.attn", "blocks.1.attn"]


def test_a_filter_that_is_no_pattern_is_searched_as_written():
    found = compiled("blocks.(")

    assert found is not None and found.search("x blocks.( y") and not found.search("blocks.0")


def test_a_block_that_the_server_rolled_up_can_be_opened():
    rolled = heatmap(row("blocks.0", [0.0, 0.0, 0.0], block="blocks.0", series=(1, 2, 3)))

    assert collapse(rolled)[0].block == "blocks.0"


def test_nan_wins_over_every_ratio_of_its_block():
    sick = heatmap(
        row("blocks.0.a", [5.0, 5.0, 5.0], block="blocks.0"),
        row("blocks.0.b", [None, "nan", 0.1], values=[1.0, "nan", 1.0], block="blocks.0", order=1),
    )

    assert collapse(sick)[0].values[1] == "nan"


def test_a_value_is_held_until_its_rows_next_is_due_and_no_longer():
    rare = heatmap(
        row("w", [0.5, None, 0.7, None, None, None, None], values=[1.0, None, 1.0, None, None, None, None]),
        steps=(0, 10, 20, 30, 40, 50, 60),
    )

    held = cells(collapse(rare), rare.steps)

    assert np.isfinite(held.ratios[0]).tolist() == [True, True, True, True, True, True, False]
    assert held.measured_at[0, 1] == 0 and held.measured_at[0, 3] == 20


def test_measured_nan_is_marked_and_absent_is_not():
    mixed = heatmap(row("m", [0.1, None, None], values=[1.0, "nan", None]), steps=(0, 10, 100))

    found = cells(collapse(mixed), mixed.steps)

    assert found.nonfinite.tolist() == [[False, True, False]]
    assert np.isnan(found.ratios[0, 2])


@pytest.mark.parametrize(
    ("text", "subject", "matches"),
    [
        ("MLP", "blocks.0.mlp", True),
        ("a|b", "xB", True),
        ("(", "f(x)", True),
        ("(", "f", False),
        ("(?s)a.b", "a\nb", True),
        ("", "anything", None),
    ],
)
def test_a_filter_finds_the_same_here_and_on_the_server(text, subject, matches):
    here, there = compiled(text), subject_of(text)

    assert (here and bool(here.search(subject))) == matches
    assert (there and searcher(there, what="subjects")(subject)) == matches
