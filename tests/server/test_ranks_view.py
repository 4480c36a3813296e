"""What is said of each rank of a run: who is silent, who is behind, who is unlike the others."""

import math

import numpy as np
import pytest

from internist.schema.wire import Facts, Series
from internist_server.values.standouts import in_minority, slower, standing_out
from tests.server.sending import Sender, start_of

SERIES = [
    Series(0, "loss", "model", ""),
    Series(1, "gradient.global_norm", "model", "model"),
    Series(2, "weight.replicas_differ", "model", "model", facts=Facts(cadence=10)),
]
WORLD = 6


def ranks_of(api, *, odd=(2.0, 9.0, 7.0)):
    """Five of six ranks; the fourth tells other numbers."""
    senders = [Sender(api, start_of(rank=rank, world_size=WORLD, mesh={"dp": rank})) for rank in range(WORLD - 1)]
    for rank, sender in enumerate(senders):
        told = odd if rank == 3 else (2.0 + rank / 100, 9.0 + rank / 10, 7.0)
        sender.send([*sender.declare(SERIES), sender.frame(10, told)])
    return senders


def view(sender, **asked):
    return sender.get("/ranks", **asked)


def unlike(found):
    return {one["rank"]: one["unlike"] for one in found["ranks"] if one["unlike"]}


def test_each_rank_is_told_with_its_own_numbers_and_those_that_never_spoke(api):
    first = ranks_of(api)[0]

    found = view(first)

    assert (found["world_size"], found["unseen"], found["first_unseen"], found["step"]) == (WORLD, 1, [5], 10)
    one = next(one for one in found["ranks"] if one["rank"] == 4)
    assert (one["mesh"], one["state"], one["step"], one["behind"]) == ({"dp": 4}, "live", 10, 0)
    assert one["loss"] == pytest.approx(2.04)
    assert one["gradient_norm"] == pytest.approx(math.sqrt(9.4)), "on the wire it is a square"
    assert unlike(found) == {}


def test_the_rank_whose_weights_others_do_not_have_comes_first(api):
    first = ranks_of(api, odd=(2.0, 9.0, 8.0))[0]

    found = view(first, limit=2)

    assert [one["rank"] for one in found["ranks"]] == [3, 0]
    assert unlike(found) == {3: ["weight.replicas_differ"]}
    assert found["unlike"] == 1


def test_a_loss_or_a_gradient_that_stands_out_is_told_of_its_rank(sqlite_api):
    first = ranks_of(sqlite_api, odd=(50.0, math.nan, 7.0))[0]

    assert unlike(view(first)) == {3: ["loss", "gradient.global_norm"]}


def test_a_rank_that_is_behind_or_silent_is_told(sqlite_api, clock):
    senders = ranks_of(sqlite_api)
    for sender in senders[1:]:
        sender.beat(30)
    clock.advance(61)
    for sender in senders[2:]:
        sender.beat(40)

    found = view(senders[0])

    told = [(one["rank"], one["state"], one["behind"]) for one in found["ranks"]]
    assert told[:3] == [(0, "silent", 30), (1, "silent", 10), (2, "live", 0)]
    assert found["silent"] == 2


def test_a_rank_that_has_gone_hides_nobody_whose_weights_differ(sqlite_api, clock):
    senders = ranks_of(sqlite_api)
    clock.advance(61)
    for rank, sender in enumerate(senders):
        if rank != 1:
            sender.send([sender.frame(20, (2.5, 9.0, 8.0 if rank == 3 else 7.0))])

    found = view(senders[0])

    told = {one["rank"]: (one["state"], one["unlike"], one["loss"]) for one in found["ranks"]}
    assert told[3] == ("live", ["weight.replicas_differ"], 2.5)
    assert told[1] == ("silent", [], pytest.approx(2.01)), "what it told last"
    assert found["step"] == 20


@pytest.mark.parametrize("waits", [True, False], ids=["what they wait is known", "steps alone are known"])
def test_the_rank_that_others_wait_for_is_slow(sqlite_api, waits):
    times = [Series(0, "monitor.step_ms", "model", "model"), Series(1, "monitor.waited_ms", "model", "model")]
    for rank in range(4):
        sender = Sender(sqlite_api, start_of(rank=rank, world_size=4))
        # in lockstep all take as long, and who is waited for waits the least
        told = (100.0, 5.0 if rank == 2 else 60.0 + rank) if waits else (100.0 + 80.0 * (rank == 2),)
        sender.send([*sender.declare(times[: len(told)]), sender.frame(10, told)])

    found = view(sender)

    assert unlike(found) == {2: ["monitor.step_ms"]}
    assert found["ranks"][0]["step_ms"] == told[0] + 80.0 * (not waits)
    assert found["ranks"][0]["waited_ms"] == (5.0 if waits else None)


def test_of_two_ranks_the_one_that_takes_a_quarter_longer_is_slow_and_of_four_one_that_stands_out():
    assert slower(np.array([100.0, 130.0])).tolist() == [False, True]
    assert not slower(np.array([100.0, 120.0])).any()
    assert not slower(np.array([100.0, 200.0, 100.0, 200.0])).any(), "half of them"
    assert not slower(np.array([100.0])).any()


def test_few_ranks_stand_out_of_nothing_but_by_what_is_not_finite():
    assert not standing_out(np.array([1.0, 50.0])).any()
    assert standing_out(np.array([1.0, math.nan])).tolist() == [False, True]
    assert not standing_out(np.full(3, math.nan)).any(), "all alike"
    assert not standing_out(np.array([1.0, 1.0, 1.0, 1.0 + 1e-6])).any(), "rounding"
    assert standing_out(np.array([1.0, 1.0, 1.0, 1.1])).tolist() == [False] * 3 + [True]


def test_where_two_replicas_disagree_nobody_knows_which_is_right():
    assert in_minority(np.array([1.0, 2.0])).all()
    assert in_minority(np.array([1.0, 1.0, 2.0])).tolist() == [False, False, True]
    assert not in_minority(np.array([1.0, 1.0])).any()
