"""Clocks that are wrong, and clocks that are set: neither silences an alert, orders attempts or loses a run."""

import math

import pytest

from internist.schema.rules import LOST_AFTER_S
from internist.schema.wire import Note
from internist_server.clocks import STEP_MS, ServerClock, began_at_ms, offset_by, server_moment
from internist_server.store.vitals import heard_at_ms, step_time_ms
from tests.server.sending import EPOCH_MS, Sender, module_series, start_of
from tests.server.sending import STEP_MS as TRAINED_MS

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SKEWS_MS = [-DAY_MS, -HOUR_MS, HOUR_MS, DAY_MS]
SERIES = [module_series(0, "update.own", "blocks.0"), module_series(1, "activation.rms_max", "blocks.0")]
NOBODY = "http://127.0.0.1:9/"


class Clocks:
    """The server's clock and one that nobody sets; tests let both go on, or set the first."""

    def __init__(self):
        self.wall_ms, self.steady_ms = EPOCH_MS, 0

    def advance(self, seconds):
        self.wall_ms += int(seconds * 1000)
        self.steady_ms += int(seconds * 1000)

    def server(self):
        return ServerClock(lambda: self.wall_ms, lambda: self.steady_ms)


class Machine:
    """A machine that trains, whose clock is off."""

    def __init__(self, api, clock, skew_ms, **start):
        self.clock, self.skew_ms = clock, skew_ms
        self.sender = Sender(api, start_of(started_at_ms=self.now_ms(), **start), clock=self.now_ms)
        self.sender.send(self.sender.declare(SERIES))

    def now_ms(self):
        return self.clock() + self.skew_ms

    def train(self, steps, *, value=1.0):
        for step in steps:
            self.clock.advance(1)
            self.sender.send([self.sender.frame(step, [value, 1.0], at_ms=self.now_ms())])
            self.sender.beat(step)


def alerts(sender):
    return sender.api.get("/api/v1/alerts", params={"run": sender.run}).json()["alerts"]


def told(sender):
    with sender.api.app.state.services.database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT condition, status FROM notifications ORDER BY id").all()
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("tells", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("skew_ms", SKEWS_MS)
def test_a_client_whose_clock_is_off_is_heard_as_any_other(database_url, serve, clock, skew_ms, tells):
    machine = Machine(serve(database_url, webhook_url=NOBODY), clock, skew_ms)
    if not tells:
        machine.sender.clock = None
    machine.train(range(10))
    machine.train([10], value=math.nan)
    machine.sender.send([machine.sender.record(note=Note("disk", "", "error", 10, machine.now_ms()))])

    assert sorted(set(told(machine.sender))) == [("numeric", "firing"), ("user", "firing")]
    assert all(abs(one["opened_at_ms"] - clock()) < 5_000 for one in alerts(machine.sender))
    run = machine.sender.get()
    assert run["steps_per_second"] == pytest.approx(1.0, rel=0.1)
    if tells:
        assert run["attempts"][0]["clock_skew_ms"] == skew_ms


def test_what_a_client_has_kept_for_long_is_recorded_alone_whatever_its_clock_says(database_url, serve, clock):
    machine = Machine(serve(database_url, webhook_url=NOBODY), clock, -HOUR_MS)
    machine.train(range(3))
    waited = machine.sender.frame(3, [math.nan, 1.0], at_ms=machine.now_ms())
    clock.advance(3600)
    machine.sender.beat(3)

    machine.sender.send([waited])

    assert [one["condition"] for one in alerts(machine.sender)] == ["numeric"]
    assert told(machine.sender) == []


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
def test_attempts_follow_each_other_as_the_server_saw_them(sqlite_url, serve, clock, skew_ms):
    api = serve(sqlite_url)
    first = Machine(api, clock, skew_ms, attempt="a").sender
    clock.advance(60)
    second = Machine(api, clock, 0, attempt="b").sender
    clock.advance(60)
    shipped_late = start_of(attempt="c", started_at_ms=clock() - DAY_MS)  # a job of yesterday
    Sender(api, shipped_late, clock=clock)

    first.send([first.frame(1, [math.nan, 1.0])])
    second.send([second.frame(1, [1.0, 1.0])])

    assert first.get("/verdicts")["attempt"] == "b"


def test_a_frame_of_the_year_9999_makes_no_speed(sqlite_url, serve, clock):
    sender = Sender(serve(sqlite_url))
    sender.send([*sender.declare(SERIES), sender.frame(0, [1.0, 1.0], at_ms=clock())])
    sender.send([sender.frame(10, [1.0, 1.0], at_ms=253_402_300_799_000)])
    assert sender.get()["steps_per_second"] is None

    sender.send([sender.frame(step, [1.0, 1.0], at_ms=clock() + step * TRAINED_MS) for step in range(20, 80, 10)])

    assert sender.get()["steps_per_second"] == pytest.approx(1000 / TRAINED_MS)


@pytest.mark.parametrize("step_ms", SKEWS_MS)
def test_a_server_whose_clock_is_set_loses_no_run_and_still_notices_one_that_is_silent(database_url, serve, step_ms):
    clocks = Clocks()
    server = clocks.server()
    client = serve(database_url, clock=server)
    sender = Sender(client)
    sender.send([*sender.declare(SERIES), *(sender.frame(step, [1.0, 1.0]) for step in range(0, 100, 10))])
    sender.beat(90)
    ingest = client.app.state.services.ingest
    clocks.advance(20)

    clocks.wall_ms += step_ms
    ingest.tick()
    assert (sender.get()["state"], alerts(sender)) == ("live", [])
    clocks.advance(10)
    sender.beat(91)
    ingest.tick()
    assert (sender.get()["state"], alerts(sender)) == ("live", [])

    clocks.advance(LOST_AFTER_S + 1)
    ingest.tick()
    assert [one["rule"] for one in alerts(sender)] == ["run_lost"]


@pytest.mark.parametrize("step_ms", [-HOUR_MS, HOUR_MS])
@pytest.mark.parametrize("tells", [True, False], ids=["told", "not told"])
def test_what_goes_wrong_just_after_the_clock_was_set_is_told(sqlite_url, serve, step_ms, tells):
    clocks, right = Clocks(), Clocks()
    client = serve(sqlite_url, clock=clocks.server(), webhook_url=NOBODY)
    sender = Sender(client, clock=(lambda: right.wall_ms) if tells else None)
    sender.send(sender.declare(SERIES))
    sender.beat(0)

    clocks.wall_ms += step_ms
    sender.send([sender.frame(10, [math.nan, 1.0], at_ms=right.wall_ms)])

    assert told(sender) == [("numeric", "firing")]


def test_a_run_that_fell_silent_just_before_the_clock_was_set_back_is_lost_in_time(sqlite_url, serve):
    clocks = Clocks()
    client = serve(sqlite_url, clock=clocks.server())
    sender = Sender(client)
    sender.beat(0)
    clocks.advance(5)
    clocks.wall_ms -= HOUR_MS
    client.app.state.services.ingest.tick()

    clocks.advance(LOST_AFTER_S + 1)
    client.app.state.services.ingest.tick()

    assert [one["rule"] for one in alerts(sender)] == ["run_lost"]


def test_a_server_that_was_down_takes_nobody_for_lost_before_it_has_listened(sqlite_url, serve, clock):
    sender = Sender(serve(sqlite_url))
    sender.beat(0)
    clock.advance(600)

    sender.api = serve(sqlite_url)  # another process, later
    sender.api.app.state.services.ingest.tick()
    assert (sender.get()["state"], alerts(sender)) == ("live", [])
    clock.advance(LOST_AFTER_S + 1)
    sender.api.app.state.services.ingest.tick()

    assert sender.get()["state"] == "lost"
    clock.advance(600)
    sender.api = serve(sqlite_url)  # and what is lost stays so
    sender.api.app.state.services.ingest.tick()
    assert (sender.get()["state"], [one["state"] for one in alerts(sender)]) == ("lost", ["firing"])


def test_a_step_of_the_clock_is_noticed_and_time_that_passes_is_none():
    clocks = Clocks()
    server = clocks.server()
    for _ in range(1000):
        clocks.advance(30)
        clocks.wall_ms += 10  # a clock that is slewed
        server()
    assert server.listening_since_ms == EPOCH_MS

    clocks.wall_ms += STEP_MS + 1

    assert server() == server.listening_since_ms


@pytest.mark.parametrize(
    ("said_ms", "offset_ms", "moment_ms"),
    [
        (1_000, None, 1_000),
        (1_000, 5_000, 1_000),  # within a minute a clock is right
        (1_000, HOUR_MS, HOUR_MS + 1_000),
        (10 * DAY_MS, None, DAY_MS),  # never ahead of its receipt
        (1_000, -HOUR_MS, 0),
    ],
)
def test_a_moment_is_told_in_the_servers_time(said_ms, offset_ms, moment_ms):
    assert server_moment(said_ms, offset_ms, now_ms=DAY_MS) == moment_ms


def test_small_differences_of_two_readings_are_the_way_to_the_server():
    readings = ((None, None), (7, None), (None, 7), (7, 900), (7, 9_000))

    assert [offset_by(kept, reading) for kept, reading in readings] == [None, 7, 7, 7, 9_000]


@pytest.mark.parametrize(
    ("started_ms", "sent_ms", "began_ms"), [(5, None, DAY_MS), (5, 1_005, DAY_MS - 1_000), (9_000, 5, DAY_MS)]
)
def test_an_attempt_began_as_long_ago_as_its_own_clock_says(started_ms, sent_ms, began_ms):
    assert began_at_ms(started_ms, sent_ms, now_ms=DAY_MS) == began_ms


def test_silence_counts_from_when_somebody_listens():
    assert heard_at_ms(100, now_ms=500, since_ms=0) == 100
    assert heard_at_ms(100, now_ms=500, since_ms=300) == 300
    assert heard_at_ms(510, now_ms=500, since_ms=300) == 500  # another server's clock
    assert heard_at_ms(HOUR_MS, now_ms=500, since_ms=300) == 300  # before the clock was set back


def test_a_gap_that_no_step_can_be_is_no_speed():
    assert step_time_ms([(0, 0), (10, 1_000), (20, 2_000), (30, 10**14)]) == 100.0
    assert step_time_ms([(0, 0), (1, 10**14)]) is None
