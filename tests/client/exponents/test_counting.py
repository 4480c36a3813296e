"""Power counting: the exponents of setups, held against the tables they are to reproduce."""

import pytest

from internist.scaling.causes import MISTAKES
from internist.scaling.counting import Setup, count, right_setup
from internist.scaling.expected import QUANTITIES

EMBEDDING = ("update.own_mean", "embedding", "early")
HIDDEN = ("update.own_mean", "hidden", "early")
OWN_LOGITS = ("update.own_mean", "head", "early")
LOGITS = ("update.feature_mean", "head", "early")
AT_INIT = ("activation.rms", "head", "init")
STREAM = ("activation.rms", "residual", "init")
CHANGE = ("update.feature_mean", "residual", "early")
STANDARD_HEAD = {"init_head": -0.5}


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        # standard parametrisation, constant rate: rows of the table of width exponents
        (Setup("sgd", "sgd", **STANDARD_HEAD), {EMBEDDING: -0.5, HIDDEN: 0.5, OWN_LOGITS: 1.0, AT_INIT: 0.0}),
        (
            Setup("sgd", "sgd", -1.0, -1.0, -1.0, **STANDARD_HEAD),
            {EMBEDDING: -1.5, HIDDEN: -0.5, OWN_LOGITS: 0.0, AT_INIT: 0.0},
        ),
        (Setup("adam", "adam", **STANDARD_HEAD), {EMBEDDING: 0.0, HIDDEN: 1.0, OWN_LOGITS: 1.0, AT_INIT: 0.0}),
        (Setup("matrix", "adam", **STANDARD_HEAD), {HIDDEN: 0.0, OWN_LOGITS: 1.0, AT_INIT: 0.0}),
        (Setup("matrix", "adam", lr_hidden=0.5, **STANDARD_HEAD), {HIDDEN: 0.5, OWN_LOGITS: 1.0}),
    ],
)
def test_standard_setups_have_the_exponents_in_width_of_the_table(setup, expected):
    counted = count("width", setup)

    assert {key: counted[key] for key in expected} == {key: (value, value) for key, value in expected.items()}


def test_hidden_and_embedding_updates_reach_the_logits_as_the_table_says():
    low, high = count("width", Setup("adam", "adam", **STANDARD_HEAD))[LOGITS]

    assert (low, high >= 1.5) == (0.5, True)


@pytest.mark.parametrize(("branch", "stream", "change"), [(0.0, 0.5, 1.0), (-0.5, 0.0, 0.5), (-1.0, 0.0, 0.0)])
def test_branch_multipliers_have_the_exponents_in_depth_of_the_table(branch, stream, change):
    counted = count("depth", Setup(multiplier_branch=branch))

    assert counted[STREAM] == (stream, stream)
    assert counted[CHANGE][1] == change


def test_sgd_without_its_rate_falls_with_depth():
    assert count("depth", Setup("sgd", "sgd", multiplier_branch=-1.0))[HIDDEN] == (-1.0, -1.0)


@pytest.mark.parametrize("hidden", ["adam", "sgd", "matrix"])
@pytest.mark.parametrize("rest", ["adam", "sgd"])
@pytest.mark.parametrize("axis", ["width", "depth"])
def test_a_right_setup_has_the_expected_exponents(axis, hidden, rest):
    counted = count(axis, right_setup(axis, hidden, rest))

    for quantity in QUANTITIES:
        key = quantity.metric, quantity.role, quantity.window
        expected = quantity.width if axis == "width" else quantity.depth
        if expected is not None and key in counted:
            assert counted[key] == (expected, expected), quantity.label


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.id)
def test_every_mistake_changes_what_is_measured(mistake):
    hidden, rest = mistake.hidden or "adam", mistake.rest or "adam"
    right = right_setup(mistake.axis, hidden, rest, branch_matrices=mistake.branch_matrices or 2)

    assert count(mistake.axis, right.changed(dict(mistake.powers))) != count(mistake.axis, right)


def test_mistakes_have_ids_of_their_own():
    assert len({m.id for m in MISTAKES}) == len(MISTAKES)
