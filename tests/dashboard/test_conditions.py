"""A page for each condition, in words and a picture."""

import pytest

from internist.schema.conditions import CONDITIONS, CRITERIA
from internist_dashboard import words
from internist_dashboard.condition_items import BREAKS, STEPS, edges_of, index, picture, told
from internist_dashboard.errors import NotFound
from internist_dashboard.frame import Frame
from internist_dashboard.pages import conditions
from tests.dashboard.test_sentence import text

JUDGED = {criterion.condition for criterion in CRITERIA}


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: one.name)
def test_a_condition_is_explained_and_drawn_as_it_is_judged(condition):
    shown = text(conditions.layout(condition.name))
    chart = picture(condition, Frame(STEPS[0], STEPS[-1]))

    assert words.crossed(condition.summary) in shown and condition.fault in shown
    if condition.name not in JUDGED:
        assert not chart.data
        return
    criterion = next(one for one in CRITERIA if one.condition == condition.name)
    edges = edges_of(criterion)
    line = next(trace for trace in chart.data if trace.name == criterion.metric)
    before = [y for x, y in zip(line.x, line.y, strict=True) if x < BREAKS]
    edge = edges.critical if edges.critical is not None else edges.warning
    assert max(before) <= (edges.warning if edges.warning is not None else edge)
    assert line.y[-1] < edges.low if criterion.vanishing is not None else line.y[-1] > edge
    assert criterion.metric in text(told(condition))


def test_the_index_leads_to_all():
    assert all(f"/conditions/{one.name}" in str(index()) for one in CONDITIONS)


def test_a_condition_that_there_is_not_is_not_found():
    with pytest.raises(NotFound, match="forward"):
        conditions.layout("luck")
