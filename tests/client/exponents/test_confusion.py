"""A part of the confusion table: single mistakes, made for real in small models, are named first."""

from dataclasses import replace

import pytest

from benchmarks.scaling_confusion import judge, table
from benchmarks.scaling_provoked import BROKEN, PROVOCATIONS, members
from internist.scaling.causes import MISTAKES

STEPS = 4
"""Of each training: the table's take ten or more, and these name the same, with either seed alone, too."""
SOME = (
    "correct, AdamW",
    "correct in depth, AdamW",
    "hidden rate not scaled, AdamW",
    "Kimi factor and 1/r_n",
    "output multiplier missing, AdamW",
    "embedding rate not raised, SGD",
    "head init variance 1/fan_in, SGD",
    "attention scale 1/sqrt(d)",
    "Adam eps not scaled",
    "branch multiplier missing",
    "branch multiplier 1/sqrt(L), no norms",
)


@pytest.mark.parametrize("name", SOME)
def test_the_mistake_made_is_the_one_named_first(name):
    provoked = replace(PROVOCATIONS[name].quick(), steps=STEPS)
    row = judge(provoked, list(members(provoked, 2)), 0.0)

    assert row.holds, table([row])


def test_every_family_of_the_table_expects_a_known_mistake():
    known = {mistake.id for mistake in MISTAKES}

    assert {cause for provoked in BROKEN for cause in provoked.expects} <= known
