"""Models sharded by `fully_shard`: every value merged from the ranks is that of one process on the whole batch, and
training is what it would be unwatched."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from internist.schema.metrics import METRICS
from tests.client.optim.gang import Gang
from tests.stacks import sharded_scripts as scripts
from tests.stacks.merging import Key, merged

STEPPED = 1e-3
"""Relative, between two trainings by orthogonalised gradients: sums of these in another order are magnified where
singular values are small. Seen: 4e-4."""
ROUNDING = 1e-5
"""Relative: sums of float32 in another order, and what an optimizer's division makes of them."""
OF_ONE_PROBE = ("activation.spread", "activation.spread_mean", "activation.lipschitz")
"""Over pairs of tokens: a rank sees pairs of its own alone."""
BY_SAMPLE = ("underflow", "saturation")
"""Of a sample of entries, which is another one of pieces."""
OF_WHOLE_MATRICES = ("branch.", "attention.qk_")
"""Products of norms that pieces do not tell."""
BY_REPLAY = ("update.feature", "update.feature_mean")
SPECTRA = tuple(m.name for m in METRICS.values() if m.cadence == "matrix_heavy")
ROWS = ("weight.row_rms_max", "weight.head_norm", "update.row_rms_max", "update.head_norm")

Points = dict[Key, dict[int, float]]


@pytest.fixture(scope="module")
def alone() -> Callable[[str], Points]:
    """One process' points of a kind of model, trained once."""
    known: dict[str, Points] = {}

    def of(kind: str) -> Points:
        if kind not in known:
            known[kind] = merged([scripts.alone(kind)])
        return known[kind]

    return of


def trained(group: Gang, kind: str, watched: str = "after", **options: Any) -> list[dict[str, Any]]:
    return group.run(scripts.__name__, "fsdp_of", kind, watched, options)


def assert_same(watched: list[dict[str, Any]], bare: list[dict[str, Any]]) -> None:
    for mine, other in zip(watched, bare, strict=True):
        assert mine["losses"] == other["losses"]
        assert mine["weights"] == other["weights"]


def assert_merged(found: Points, expected: Points, *, apart: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """Every point of one process is there, exactly or between the bounds of pieces; the metrics and subjects of which
    there is none."""
    lacking: set[tuple[str, str]] = set()
    rounding = ROUNDING
    last = max(step for own in expected.values() for step in own)
    for (metric, subject, index, _), points in expected.items():
        if (
            metric.startswith(("monitor.", *OF_WHOLE_MATRICES))
            or metric.endswith(BY_SAMPLE)
            or metric in (*OF_ONE_PROBE, *BY_REPLAY, *apart)
        ):
            continue
        if metric == "activation.rms_q99":
            above = found.get((metric, subject, index, "upper"))
            lacking |= set() if above is not None else {(metric, subject)}
            assert above is None or all(above[step] >= value * (1 - rounding) for step, value in points.items())
            continue
        own = found.get((metric, subject, index, "exact"))
        for step, value in points.items():
            if metric.startswith("update.own") and step == last:
                continue  # the next forward would tell
            if own is not None:
                assert own[step] == pytest.approx(value, rel=rounding, abs=1e-9), (metric, subject, index, step)
                continue
            if (metric, subject, index, "upper") not in found:
                lacking.add((metric, subject))
                break
            lower, upper = (found[metric, subject, index, bound][step] for bound in ("lower", "upper"))
            assert lower <= value * (1 + rounding), (metric, subject, step)
            assert upper >= value * (1 - rounding), (metric, subject, step)
            assert upper <= (lower + 2.0 if "log_z" in metric else lower * math.sqrt(8)), (metric, subject, step)
    return lacking


WHOLE = ("weight.stable_rank", "update.relative")
"""Ratios that no pieces tell."""


@pytest.mark.parametrize(
    ("world", "kind", "options"),
    [
        (2, "language", {"watched": "before", "reshards": False}),
        (2, "language", {"columns": True, "offloads": True}),
        (4, "language", {"hybrid": True}),
        (4, "odd", {"reshards": True}),
    ],
    ids=["watched before it is sharded", "columns on the host", "hybrid", "uneven"],
)
def test_values_of_pieces_are_merged_to_those_of_one_process(ranks, alone, world, kind, options):
    given = {name: value for name, value in options.items() if name != "watched"}
    bare = trained(ranks(world), kind, "no", **given)
    watched = trained(ranks(world), kind, options.get("watched", "after"), **given)

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    assert not assert_merged(found, alone(kind), apart=WHOLE)
    told = {(family, state) for _, _, family, state, _ in watched[0]["coverage"]}
    assert ("gradient", "measured") in told
    missing = [entry for entry in watched[0]["coverage"] if entry[3] not in ("measured", "excluded")]
    assert {family for _, _, family, *_ in missing} == {"update.feature"}, missing


@pytest.mark.parametrize(
    ("world", "kind", "options"),
    [(4, "language", {"hybrid": True, "columns": True, "watched": "before"}), (4, "odd", {})],
    ids=["columns of one replica, watched before they were cut", "uneven rows"],
)
def test_spectra_that_ranks_work_out_together_are_those_of_one_process(ranks, alone, world, kind, options):
    given = {name: value for name, value in options.items() if name != "watched"}
    bare = trained(ranks(world), kind, "no", **given)
    watched = trained(ranks(world), kind, options.get("watched", "after"), reduces=True, **given)

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    assert not assert_merged(found, alone(kind))
    assert {key[3] for key in found if key[0] in SPECTRA} == {"exact"}
    senders = [any(each.metric == "weight.spectral_norm" for _, each, *_ in rank["parts"]) for rank in watched]
    assert senders == [True] + [False] * (world - 1)


def test_a_rank_that_leaves_costs_the_others_exact_spectra_and_nothing_else(ranks):
    bare = ranks(2).run(scripts.__name__, "left_by_one", False)
    watched = ranks(2).run(scripts.__name__, "left_by_one", True)

    assert_same(watched, bare)
    steps = {key: set(points) for key, points in merged([watched[0]["parts"]]).items()}
    name = "blocks.0.mlp.0.weight"
    assert 0 in steps["weight.spectral_norm", name, None, "exact"]
    last = scripts.STEPS - 1
    assert last in steps["weight.spectral_norm", name, None, "lower"]
    assert last not in steps["weight.spectral_norm", name, None, "exact"]
    assert [len(rank["warnings"]) for rank in watched] == [1, 0]


def test_whole_rows_are_exact_and_cut_ones_a_pair(ranks, alone):
    rows = merged([rank["parts"] for rank in trained(ranks(2), "language")])
    columns = merged([rank["parts"] for rank in trained(ranks(2), "language", columns=True)])

    assert {key[3] for key in rows if key[0] in ROWS} == {"exact"}
    assert {key[3] for key in columns if key[0] in ROWS} == {"lower", "upper"}
    assert {key[3] for key in rows if key[0] in SPECTRA} == {"lower", "upper"}


@pytest.mark.parametrize(
    ("world", "kind", "options"),
    [
        (2, "muon++", {}),
        (4, "muon++", {"hybrid": True}),
        (2, "muon", {"columns": True}),
        (2, "decayed", {}),
    ],
    ids=["weights and updates", "of one replica", "updates alone", "none, where weights decay"],
)
def test_spectra_are_exact_where_an_optimizer_has_the_matrix_whole(ranks, world, kind, options):
    bare, watched = (trained(ranks(world), "language", how, optimizer=kind, **options) for how in ("no", "after"))
    alone = merged([scripts.alone("language", kind)])

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    told = {"muon++": ("weight.", "update."), "muon": ("update.",), "decayed": ()}[kind]
    stepped = {key[1] for key in alone if key[0] == "optimizer.effective_lr"}
    assert stepped
    for (metric, subject, index, bound), points in alone.items():
        if metric not in SPECTRA or subject not in stepped or metric.startswith(("optimizer.", *OF_WHOLE_MATRICES)):
            continue
        is_told = metric.startswith(told) and (metric != "update.relative" or "weight." in told)
        bounds = {key[3] for key in found if key[:2] == (metric, subject)}
        assert bounds == ({"exact"} if is_told else set() if metric in WHOLE else {"lower", "upper"}), (metric, subject)
        for step, value in points.items() if is_told else ():
            assert found[metric, subject, index, bound][step] == pytest.approx(value, rel=STEPPED), (metric, subject)
        if metric == "weight.spectral_norm" and is_told:
            last = watched[0]["norms"][subject]
            assert found[metric, subject, index, bound][scripts.STEPS - 1] == pytest.approx(last, rel=ROUNDING)
    senders = [
        {each.subject for _, each, _, _ in rank["parts"] if each.metric == "update.spectral_norm"} & stepped
        for rank in watched
    ]
    assert kind == "decayed" or sum(map(len, senders)) == len(stepped)  # of each matrix its owner alone


def test_one_bit_that_a_replica_loses_is_seen(ranks):
    watched = ranks(2).run(scripts.__name__, "replicated", 1)

    found = merged([rank["parts"] for rank in watched])["weight.replicas_differ", "model", None, "exact"]
    assert found == {0: 0.0, 1: 0.0, 2: 1.0, 3: 1.0}


def test_weights_in_narrow_precision_are_measured_as_they_are_stored(ranks):
    bare, watched = (trained(ranks(2), "language", how, narrow=True) for how in ("no", "after"))

    assert_same(watched, bare)
    found = merged([rank["parts"] for rank in watched])
    last = scripts.STEPS - 1
    for name, square in zip(watched[0]["names"], watched[0]["squares"], strict=True):
        assert found["weight.rms", name, None, "exact"][last] == pytest.approx(math.sqrt(square), rel=ROUNDING)
        assert found["update.unchanged", name, None, "exact"][last] < 1
