"""Groups of one and two ranks: sharded and replicated models train as they would unwatched."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.optim.gang import Gang as Group
from tests.stacks import rank_scripts
from tests.stacks.models import BLOCKS, Gpt
from tests.stacks.rank_scripts import STEPS

NAMES = {name for name, _ in Gpt().named_parameters()}


@pytest.fixture(scope="module", params=[1, 2], ids=["one_rank", "two_ranks"])
def group(request) -> Iterator[Group]:
    ranks = Group(request.param)
    yield ranks
    ranks.close()


def run(group: Group, script: rank_scripts.Script) -> list[dict[str, Any]]:
    return group.run(rank_scripts.__name__, script.__name__)


def assert_same(watched: list[dict[str, Any]], bare: list[dict[str, Any]]) -> None:
    for mine, other in zip(watched, bare, strict=True):
        assert mine["losses"] == other["losses"]
        assert mine["weights"] == other["weights"]


@pytest.mark.parametrize("script", [rank_scripts.fsdp_before, rank_scripts.fsdp_after])
def test_a_sharded_model_trains_to_the_same_bits_and_coverage_says_what_is_measured(group, script):
    bare, watched = run(group, rank_scripts.fsdp_bare), run(group, script)

    assert_same(watched, bare)
    for rank in watched:
        assert sorted(set(rank["steps"])) == list(range(STEPS))
        said = {subject: (state, reason) for kind, subject, state, reason in rank["coverage"] if kind == "parameter"}
        updated = {subject for metric, subject, _ in rank["points"] if metric == "update.rms"}
        assert said.keys() == NAMES
        assert {n for n, (state, _) in said.items() if state == "measured"} <= updated
        assert all(state == "measured" or reason for state, reason in said.values())
        called = {subject for metric, subject, _ in rank["points"] if metric == "activation.rms"}
        assert {*BLOCKS, "head", "blocks.0.attn.q"} <= called


def test_watching_before_sharding_keeps_no_whole_parameter_alive(group):
    bare, watched = run(group, rank_scripts.fsdp_bare), run(group, rank_scripts.fsdp_before)

    assert [rank["alive"] for rank in watched] == [rank["alive"] for rank in bare]


@pytest.mark.parametrize("script", [rank_scripts.ddp_inner, rank_scripts.ddp_wrapper])
def test_a_replicated_model_trains_to_the_same_bits_and_is_measured_whole(group, script):
    bare, watched = run(group, rank_scripts.ddp_bare), run(group, script)

    assert_same(watched, bare)
    for place, rank in enumerate(watched):
        points = rank["points"]
        measured = {(metric, subject) for metric, subject, _ in points}
        assert {("activation.rms", name) for name in (*BLOCKS, "head", "blocks.0.attn.q")} <= measured
        expected = [value**0.5 for value in bare[place]["squares"]]
        assert list(points["activation.rms", "blocks.1", None].values()) == pytest.approx(expected, rel=2e-4)
        if place == 0:
            assert {("update.rms", name) for name in NAMES} <= measured
            assert sorted(points["update.rms", "head.weight", None]) == list(range(STEPS))
            assert {("update.feature", name) for name in (*BLOCKS, "head")} <= measured
