import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from internist.schema.wire import Facts, Series
from internist_server.progress import complete_bound
from internist_server.store.attempts import Attempt
from internist_server.store.ranks import Rank
from internist_server.store.roster import Roster, Waiting
from tests.server.sending import Sender, module_series, start_of

SERIES = [
    module_series(0, "activation.rms", "blocks.0"),
    module_series(1, "activation.rms_max", "blocks.0"),
    Series(2, "loss", "model", ""),
]


def two_ranks(api):
    senders = [Sender(api, start_of(rank=rank, world_size=2)) for rank in (0, 1)]
    for rank, sender in enumerate(senders):
        sender.send(sender.declare(SERIES, counts=(3 - 2 * rank, 1, 1)))
    return senders


def judged_step(sender):
    return sender.get("/verdicts")["step"]


def test_parts_of_two_ranks_become_one_value(api):
    first, second = two_ranks(api)

    first.send([first.frame(0, [4.0, 1.0, 2.0])])
    second.send([second.frame(0, [16.0, 5.0, 4.0])])

    assert first.points("activation.rms")[0] == pytest.approx(7**0.5)
    assert first.points("activation.rms_max") == {0: 5.0}
    assert first.points("loss") == {0: 3.0}


def alerts(sender):
    return sender.api.get("/api/v1/alerts", params={"run": sender.run}).json()["alerts"]


def test_a_replica_that_goes_its_own_way_alarms_at_once(sqlite_api):
    checksum = [Series(0, "weight.replicas_differ", "model", "model", facts=Facts(cadence=10))]
    senders = [Sender(sqlite_api, start_of(rank=rank, world_size=2)) for rank in (0, 1)]
    for sender in senders:
        sender.send(sender.declare(checksum))
        sender.send([sender.frame(step, [float(step)]) for step in (0, 10)])
    assert senders[0].points("weight.replicas_differ") == {0: 0.0, 10: 0.0}
    assert alerts(senders[0]) == []

    for rank, sender in enumerate(senders):
        sender.send([sender.frame(20, [20.0 + rank])])

    assert senders[0].points("weight.replicas_differ")[20] == 1.0
    assert [(alert["rule"], alert["severity"]) for alert in alerts(senders[0])] == [("replicas_differ", "critical")]


PARAMETER = "weight.rms", "parameter", "head.weight"


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        (Facts(placement="disjoint"), Facts(placement="disjoint"), "its own alone"),
        (Facts(placement="replicated"), Facts(placement="sharded_matrix"), "replicated there and sharded_matrix here"),
        (Facts(parameters=4), Facts(parameters=6), "4 entries there and 6 here"),
    ],
)
def test_two_tensors_of_one_name_are_not_merged(sqlite_api, here, there, why):
    first, second = (Sender(sqlite_api, start_of(rank=rank, world_size=2)) for rank in (0, 1))
    first.send(first.declare([Series(0, *PARAMETER, facts=here)]))
    first.send([first.frame(0, [4.0])])
    answer = second.post([*second.declare([Series(0, *PARAMETER, facts=there)]), second.frame(0, [16.0])]).json()

    assert why in answer["refused"][0]["reason"]
    assert "rename" in answer["refused"][0]["reason"]
    assert first.points("weight.rms") == {0: 2.0}


def test_replicas_and_pieces_of_one_tensor_are_merged(sqlite_api):
    facts = Facts(placement="sharded_matrix", parameters=4)
    upper = Series(1, "weight.spectral_norm", "parameter", "head.weight", bound="upper", facts=facts)
    for rank, value in enumerate((3.0, 4.0)):
        sender = Sender(sqlite_api, start_of(rank=rank, world_size=2))
        sender.send(sender.declare([Series(0, *PARAMETER, facts=facts), upper], counts=(1, 1)))
        sender.send([sender.frame(0, [value, value**2])])

    assert sender.points("weight.rms")[0] == pytest.approx(3.5**0.5)
    assert sender.points("weight.spectral_norm")[0] == pytest.approx(5.0)


def test_a_run_that_goes_on_in_pieces_keeps_its_series(sqlite_api):
    first = Sender(sqlite_api, start_of(rank=0, world_size=2))
    first.send(first.declare([Series(0, *PARAMETER, facts=Facts())]))
    first.send([first.frame(0, [4.0])])
    pieces = Facts(placement="sharded_matrix")
    for rank in (0, 1):
        later = Sender(sqlite_api, start_of(rank=rank, world_size=2, attempt="run1-b", parent="run1-a", start_step=1))
        later.send(later.declare([Series(0, *PARAMETER, facts=pieces)], counts=(1,)))
        later.send([later.frame(1, [9.0])])

    assert later.points("weight.rms") == {0: 2.0, 1: 3.0}


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3)], ids=["smaller", "larger"])
def test_a_run_that_is_started_again_with_other_ranks_keeps_its_series_and_waits_for_the_new_ones_alone(
    sqlite_api, before, after
):
    def train(world, steps, **start):
        """Steps of so many ranks, of which each has one token more than the one before it."""
        ranks = [Sender(sqlite_api, start_of(rank=rank, world_size=world, **start)) for rank in range(world)]
        for rank, sender in enumerate(ranks):
            sender.send(sender.declare(SERIES, counts=(rank + 1, 1, 1)))
            sender.send([sender.frame(step, [(rank + 1.0) ** 2, rank + step, 1.0]) for step in steps])
        return ranks

    first = train(before, range(0, 100, 10))
    assert judged_step(first[0]) == 90
    known = {(one["metric"], one["subject"]): one["id"] for one in first[0].get("/series")["series"]}
    later = train(after, range(50, 150, 10), attempt="run1-b", parent="run1-a", start_step=50)

    seen = {(one["metric"], one["subject"]): one["id"] for one in later[0].get("/series")["series"]}
    assert seen == known
    rms = later[0].points("activation.rms")
    for step in range(0, 150, 10):  # one history: the first ranks' until it resumed, then the others'
        world = before if step < 50 else after
        tokens, squares = (sum((rank + 1) ** power for rank in range(world)) for power in (1, 3))
        assert rms[step] == pytest.approx((squares / tokens) ** 0.5)
        assert later[0].points("activation.rms_max")[step] == world - 1 + step
    assert judged_step(later[0]) == 140
    for sender in later[:-1]:
        sender.send([sender.frame(150, [1.0, 1.0, 1.0])])
    assert judged_step(later[0]) == 140
    later[-1].send([later[-1].frame(150, [1.0, 1.0, 1.0])])
    assert judged_step(later[0]) == 150


def test_a_nan_of_one_rank_shows(api):
    first, second = two_ranks(api)

    first.send([first.frame(0, [np.nan, 1.0, np.nan])])
    second.send([second.frame(0, [16.0, np.nan, 4.0])])

    assert [first.points(series.metric)[0] for series in SERIES] == ["nan"] * 3


def test_a_step_is_judged_when_both_ranks_have_delivered_it(api):
    first, second = two_ranks(api)

    first.send([first.frame(step, [1.0, 1.0, 1.0]) for step in (0, 10, 20)])
    assert judged_step(first) is None
    second.send([second.frame(0, [1.0, 1.0, 1.0])])
    assert judged_step(first) == 0
    second.send([second.frame(20, [1.0, 1.0, 1.0])])

    assert judged_step(first) == 20


def test_ranks_may_come_in_any_interleaving(sqlite_url, serve):
    """However the frames of two ranks are mixed, the judge says the same."""
    api = serve(sqlite_url)
    boards = []
    for number, order in enumerate(itertools.permutations(["a0", "a1", "b0", "b1"])):
        if order.index("a0") > order.index("a1") or order.index("b0") > order.index("b1"):
            continue
        senders = {
            name: Sender(api, start_of(f"run{number}", rank=rank, world_size=2)) for rank, name in enumerate("ab")
        }
        for sender in senders.values():
            sender.send(sender.declare(SERIES))
        for name in order:
            half = range(0, 100, 10) if name[1] == "0" else range(100, 200, 10)
            sender = senders[name[0]]
            sender.send([sender.frame(step, [1.0 + step / 100, 2.0, 3.0]) for step in half])
        board = senders["a"].get("/verdicts")
        boards.append([(one["state"], one["step"], one["value"], one["ratio"]) for one in board["members"]])

    assert len(boards) == 6
    assert all(board == boards[0] for board in boards)


def test_two_servers_on_one_database_take_ranks_at_the_same_time(database_url, serve):
    senders = [Sender(serve(database_url), start_of(rank=rank, world_size=2)) for rank in (0, 1)]

    def ship(sender):
        sender.send(sender.declare(SERIES))
        for begin in range(0, 400, 40):
            sender.send([sender.frame(step, [1.0 + step / 1000, 2.0, 3.0]) for step in range(begin, begin + 40, 10)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ship, senders))

    for sender in senders:
        assert judged_step(sender) == 390
        assert sender.points("activation.rms_max") == dict.fromkeys(range(0, 400, 10), 2.0)
        assert len(sender.get("/heatmap", metric="activation.rms")["rows"]) == 1


def test_a_silent_rank_is_waited_for_30_s(api, clock):
    first, second = two_ranks(api)
    second.send([second.frame(0, [1.0, 1.0, 1.0])])
    first.send([first.frame(step, [1.0, 1.0, 1.0]) for step in (0, 10)])
    ingest = api.app.state.services.ingest

    clock.advance(29)
    ingest.tick()
    assert judged_step(first) == 0
    clock.advance(2)
    ingest.tick()

    assert judged_step(first) == 10


def test_a_step_judged_without_a_rank_says_how_many_delivered(sqlite_api, clock):
    first, second = two_ranks(sqlite_api)
    for sender in (first, second):
        sender.send([sender.frame(0, [np.nan, 1.0, 1.0])])
    first.send([first.frame(10, [np.nan, 1.0, 1.0])])
    clock.advance(31)

    sqlite_api.app.state.services.ingest.tick()

    with sqlite_api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT step, ranks_delivered, ranks_expected FROM judgements").all()
    assert [tuple(row) for row in rows] == [(0, 2, 2), (10, 1, 2)]


def test_a_late_part_is_stored_and_marked(sqlite_api, clock):
    first, second = two_ranks(sqlite_api)
    first.send([first.frame(0, [1.0, 1.0, 1.0])])
    clock.advance(31)
    sqlite_api.app.state.services.ingest.tick()

    second.send([second.frame(0, [1.0, 9.0, 1.0])])

    assert first.points("activation.rms_max") == {0: 9.0}
    with sqlite_api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT rank, late FROM frames ORDER BY rank").all()
    assert [tuple(row) for row in rows] == [(0, 0), (1, 1)]


def test_a_rank_that_never_spoke_is_waited_for_from_the_beginning(sqlite_api, clock):
    only = Sender(sqlite_api, start_of(world_size=8))
    only.send([*only.declare(SERIES), only.frame(0, [1.0, 1.0, 1.0])])
    assert judged_step(only) is None

    clock.advance(31)
    only.send([only.frame(10, [1.0, 1.0, 1.0])])

    assert judged_step(only) == 10


def test_finishing_judges_what_is_left(api):
    sender = Sender(api)
    sender.send([*sender.declare(SERIES[:1]), *sender.declare(SERIES[2:])])
    sender.send([sender.frame(0, [1.0]), sender.frame(1, [2.0], plan=1)])
    assert judged_step(sender) == 0

    sender.send([sender.finish(2)])

    assert judged_step(sender) == 1
    assert sender.get()["state"] == "finished"


def test_scalars_that_no_sampled_frame_follows_are_judged_after_30_s(sqlite_api, clock):
    sender = Sender(sqlite_api)
    sender.send([*sender.declare(SERIES[:1]), *sender.declare(SERIES[2:])])
    sender.send([sender.frame(0, [1.0]), sender.frame(3, [np.nan], plan=1)])
    assert judged_step(sender) == 0
    clock.advance(31)

    sqlite_api.app.state.services.ingest.tick()

    assert judged_step(sender) == 3
    assert sender.get()["verdict"] == "violated"


def test_a_failed_rank_fails_the_run(sqlite_api):
    first, second = two_ranks(sqlite_api)

    first.send([first.finish(0, "failed")])
    assert first.get()["state"] == "live"
    second.send([second.finish(0)])

    assert first.get()["state"] == "failed"


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (("killed", "finished"), "killed"),
        (("finished", "killed"), "killed"),
        (("killed", "failed"), "failed"),
        (("failed", "killed"), "failed"),
        (("killed", "killed"), "killed"),
    ],
)
def test_the_gravest_end_of_its_ranks_is_the_end_of_the_run(sqlite_api, outcomes, state):
    senders = two_ranks(sqlite_api)

    for sender, outcome in zip(senders, outcomes, strict=True):
        sender.send([sender.finish(0, outcome)])

    assert senders[0].get()["state"] == state


def attempt(world_size):
    return Attempt(1, "run", "a", 1, None, world_size, 10, 0, 0, "standard", (), None, None)


@pytest.mark.parametrize(
    ("ranks", "now_s", "bound"),
    [
        ([Rank(0, 0, last_step=20, sampled_step=20), Rank(1, 0, last_step=10, sampled_step=10)], 1, 10),
        ([Rank(0, 0, last_step=20, sampled_step=20), Rank(1, 0, last_step=15, sampled_step=10)], 1, 14),
        ([Rank(0, 0, last_step=20, sampled_step=20), Rank(1, 0)], 1, -1),
        ([Rank(0, 40_000, last_step=20, sampled_step=20), Rank(1, 0)], 41, 20),
        ([Rank(0, 0, last_step=20, sampled_step=20), Rank(1, 0, finished_at_ms=1)], 1, 20),
        ([Rank(0, 0, last_step=20, sampled_step=20)], 29, -1),
        ([Rank(0, 31_000, last_step=20, sampled_step=20)], 31, 20),
        ([Rank(0, 0, finished_at_ms=1), Rank(1, 0, finished_at_ms=1)], 1, -1),
        ([Rank(0, 0, last_step=20, finished_at_ms=1), Rank(1, 0, heartbeat_step=25, finished_at_ms=1)], 1, 25),
    ],
)
def test_the_last_complete_step_follows_from_what_ranks_have_sent(ranks, now_s, bound):
    roster = Roster(ranks, waiting=Waiting(1, 0))

    assert complete_bound(attempt(2), roster, now_ms=now_s * 1000) == bound


def test_ranks_are_told_the_largest_powers_of_those_that_train_class_by_class(api):
    first, second = two_ranks(api)

    assert first.beat(10, powers=(0, 3, 1, 0))["directives"] == []
    told = second.beat(10, powers=(2, 1, 1))["directives"]
    assert [(one["until_step"], one["powers"]) for one in told] == [(-1, [2, 3, 1, 0])]
    assert first.send([first.frame(0, [1.0, 1.0, 1.0])])["directives"] == told

    assert second.beat(20, powers=(0, 0, 0, 0))["directives"][0]["powers"] == [0, 3, 1, 0]
    second.send([second.finish(20)])
    assert first.beat(20, powers=(0, 3, 1, 0))["directives"] == []


@pytest.mark.parametrize("powers", [(-1,), (63,), (0,) * 17])
def test_powers_that_make_no_sense_are_refused(api, powers):
    first, _ = two_ranks(api)

    with pytest.raises(AssertionError, match="whole numbers from 0 to 62"):
        first.beat(10, powers=powers)
