import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from internist.schema.wire import VERSION, Directive, Frame, FramesReply, Note, Plan, RunStart, Series
from internist.ship import records
from internist.ship.connection import Connection
from internist.ship.reader import SpoolReader
from internist.ship.sender import Sender
from internist.ship.spool import Spool
from tests.client.ship.small_server import SmallServer, json_answer

PATIENCE_S = 20.0
START = RunStart(
    version=VERSION, run="r", attempt="a", rank=0, world_size=1, project="p", name="n", every=10, started_at_ms=1
)


class Training:
    """What the recorder is to the sender: measures steps, hands them over when drained, and knows the progress."""

    def __init__(self, root: Path, address: str | None, *, timeout: float = 5.0, clumsy: bool = False, **settings):
        self.clumsy = clumsy
        self.spool = Spool(root, START)
        self.spool.append(series=(Series(0, "loss", "model", ""),), plan=Plan(0, (0,)))
        self.measured: list[int] = []
        self.step = 0
        self.drained = threading.Event()
        self.directed = threading.Event()
        self.directives: list[Directive] = []
        connection = None if address is None else Connection(address, timeout=timeout)
        self.sender = Sender(
            self.spool,
            START,
            connection,
            drain=self.drain,
            progress=lambda: (self.step, 5),
            on_directives=self.follow,
            **settings,
        )

    def measure(self, count: int, size: int = 4) -> None:
        for _ in range(count):
            self.measured.append(self.step)
            self.step += 1
        self.size = size
        self.drained.clear()
        self.sender.wake()

    def drain(self) -> float | None:
        if self.measured:
            step = self.measured.pop(0)
            self.spool.append(frame=Frame(plan=0, step=step, measured_at_ms=1, values=bytes(self.size)))
        if not self.measured:
            self.drained.set()
        return 0.0 if self.measured else None

    def follow(self, directives: Sequence[Directive]) -> None:
        if self.clumsy:
            raise ZeroDivisionError("clumsy")
        self.directives += directives
        self.directed.set()


@pytest.fixture
def train(tmp_path):
    trainings = []

    def start(address, **settings) -> Training:
        training = Training(tmp_path / str(len(trainings)), address, **settings)
        trainings.append(training)
        training.sender.start()
        return training

    yield start
    for training in trainings:
        training.sender.close(0.0)
        training.spool.close()


@pytest.fixture
def server():
    with SmallServer() as server:
        yield server


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def eventually(holds: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def test_every_frame_arrives_once_and_in_order(server, train, caplog):
    training = train(server.address)
    training.measure(50)
    assert server.wait_for(lambda: server.steps() == list(range(50)))
    training.measure(10)

    assert training.sender.close(PATIENCE_S)
    assert server.steps() == list(range(60))
    assert [record.sequence for _, record in server.arrived] == list(range(63))
    assert training.sender.url == f"{server.address}/runs/r"
    assert training.spool.acknowledged == training.spool.last_sequence
    assert caplog.records == []


@pytest.mark.parametrize("has_log", [True, False])
def test_the_address_of_the_run_is_told_once_in_the_log_or_where_there_is_none_on_the_terminal(
    server, train, caplog, capsys, monkeypatch, has_log
):
    monkeypatch.setattr(logging.getLogger("internist"), "propagate", has_log)
    with caplog.at_level(logging.INFO, "internist"):
        training = train(server.address)
        training.measure(2)
        assert server.wait_for(lambda: server.steps() == [0, 1])
        training.sender.restart(0)  # introduces the rank again
        assert training.sender.close(PATIENCE_S)

    line = f"run r, n: {server.address}/runs/r"
    assert caplog.messages == ([line] if has_log else [])
    assert capsys.readouterr().err == ("" if has_log else f"internist: {line}\n")


def test_what_is_appended_outside_of_a_drain_is_shipped_when_woken(server, train):
    training = train(server.address)
    assert server.wait_for(lambda: len(server.arrived) == 3)
    training.spool.append(note=Note("t", "x", "info", 1, 1))
    training.sender.wake()

    assert server.wait_for(lambda: server.arrived[-1][1].note is not None)


def test_slices_are_the_bytes_of_the_file(server, train):
    training = train(server.address)
    training.measure(20, size=200_000)
    assert training.sender.close(PATIENCE_S)

    sent = [request.body for request in server.requests if request.path.endswith("/frames")]
    assert b"".join(sent) == (training.spool.directory / "000001.spool").read_bytes()
    assert max(map(len, sent)) <= 1 << 20


def test_without_a_server_one_line_says_what_to_type_and_frames_arrive_once_it_runs(train, caplog):
    port = free_port()
    training = train(f"http://127.0.0.1:{port}")
    training.measure(30)
    assert training.drained.wait(PATIENCE_S)
    assert eventually(lambda: caplog.records)

    with SmallServer(port) as server:
        assert server.wait_for(lambda: server.steps() == list(range(30)))
        assert eventually(lambda: len(caplog.records) == 2)
        assert training.sender.close(PATIENCE_S)
    absent, back = (record.getMessage() for record in caplog.records)
    assert "type `internist serve`" in absent
    assert str(training.spool.directory) in absent
    assert back == f"run r: frames arrive at http://127.0.0.1:{port} again"


def test_a_server_that_comes_back_with_less_is_sent_what_it_lacks(train):
    first = SmallServer()
    with first:
        training = train(first.address)
        training.measure(10)
        assert first.wait_for(lambda: len(first.steps()) == 10)
    training.measure(5)

    with SmallServer(first.port) as second:
        assert second.wait_for(lambda: second.steps() == list(range(15)))


def test_a_server_that_comes_back_is_not_sent_what_it_has(train):
    first = SmallServer()
    with first:
        training = train(first.address)
        training.measure(10)
        assert first.wait_for(lambda: len(first.steps()) == 10)
    training.measure(5)

    second = SmallServer(first.port)
    second.acknowledged, second.stored = first.acknowledged, first.stored
    with second:
        assert second.wait_for(lambda: second.steps() == list(range(10, 15)))


def test_a_server_that_has_forgotten_the_run_is_told_again(server, train):
    training = train(server.address)
    training.measure(5)
    assert server.wait_for(lambda: len(server.steps()) == 5)
    server.acknowledged.clear()
    server.stored.clear()
    server.arrived.clear()
    training.measure(5)

    assert server.wait_for(lambda: server.steps() == list(range(10)))


def test_acknowledging_what_was_never_sent_loses_nothing(server, train):
    def boast(request):
        if not request.path.endswith("/frames"):
            return None
        honest = server._honest(request)
        assert honest[0] == 200
        return json_answer(FramesReply(10**30, 0, 0))

    server.misbehave = boast
    training = train(server.address)
    for total in (10, 20, 30):
        training.measure(10)
        assert server.wait_for(lambda total=total: server.steps() == list(range(total)))
    assert eventually(lambda: training.spool.acknowledged == training.spool.last_sequence)


def test_a_start_that_claims_everything_is_there_loses_nothing_that_comes_later(server, train, caplog):
    def boast(request):
        if request.path.endswith("/runs"):
            started = {"run": "r", "attempt": "a", "number": 1, "acknowledged": 10**18, "url": "javascript:"}
            server.acknowledged["r", "a", 0] = -1
            return json_answer(started)
        return None

    server.misbehave = boast
    training = train(server.address)
    assert eventually(lambda: "INTERNIST_ATTEMPT" in caplog.text)
    training.measure(5)

    assert server.wait_for(lambda: server.steps() == list(range(5)))
    assert training.sender.url is None


@pytest.mark.parametrize("acknowledged", [-1, -(10**12)])
def test_a_server_that_acknowledges_nothing_is_not_stormed(server, train, caplog, acknowledged):
    server.misbehave = lambda request: (
        json_answer(FramesReply(acknowledged, 0, 0)) if request.path.endswith("/frames") else None
    )
    training = train(server.address)
    training.measure(5)
    assert eventually(lambda: caplog.records)

    assert training.drained.wait(PATIENCE_S)
    assert not training.sender.close(0.5)
    assert len(server.requests) < 8
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, "text/html", b"<html>Welcome</html>"), "is not an Internist server"),
        ((200, "application/json", b"{}"), "is not an Internist server"),
        ((401, "application/json", b'{"detail": "no token"}'), "INTERNIST_TOKEN"),
        ((507, "application/json", b'{"detail": "disk full"}'), "507: disk full"),
        ((409, "application/json", b'{"detail": "newer version"}'), "newer version"),
    ],
)
def test_each_kind_of_refusal_is_told_once_and_frames_wait(server, train, caplog, answer, told):
    server.misbehave = lambda _: answer
    training = train(server.address)
    training.measure(5)
    assert training.drained.wait(PATIENCE_S)
    assert eventually(lambda: caplog.records)

    assert not training.sender.close(0.6)
    assert len(caplog.records) == 1
    assert told in caplog.text
    assert training.spool.last_sequence == 7


def test_a_server_that_hangs_neither_stops_the_draining_nor_the_end(train):
    released = threading.Event()
    with SmallServer() as server:
        server.misbehave = lambda _: released.wait(PATIENCE_S) and None
        training = train(server.address, timeout=PATIENCE_S)
        assert server.wait_for(lambda: bool(server.requests))
        training.measure(20)
        assert training.drained.wait(PATIENCE_S)

        begun = time.monotonic()
        assert not training.sender.close(0.3)
        assert time.monotonic() - begun < 2
        released.set()


def test_refused_records_are_told_once_per_reason_and_cost_nothing_else(server, train, caplog):
    server.refuse = lambda record: "odd step" if record.frame and record.frame.step % 2 else None
    training = train(server.address)
    training.measure(10)

    assert training.sender.close(PATIENCE_S)
    assert server.steps() == [0, 2, 4, 6, 8]
    assert [record.getMessage() for record in caplog.records] == ["run r: the server refused records: odd step"]


def test_a_record_that_the_server_finds_too_large_is_given_up_and_the_rest_arrives(server, train, caplog):
    def choke(request):
        return json_answer({"detail": "too large"}, 413) if len(request.body) > 50_000 else None

    server.misbehave = choke
    training = train(server.address)
    training.measure(10)
    assert training.drained.wait(PATIENCE_S)
    training.measure(1, size=60_000)
    assert training.drained.wait(PATIENCE_S)
    training.measure(10)

    assert training.sender.close(PATIENCE_S)
    assert server.steps() == [*range(10), *range(11, 21)]
    assert len(caplog.records) == 1
    assert "too large" in caplog.text


def test_a_server_that_refuses_every_slice_is_not_stormed_and_gets_all_once_it_is_mended(server, train, caplog):
    broken = True

    def refuse(request):
        if broken and request.path.endswith("/frames"):
            return json_answer({"detail": "cannot read this"}, 400)
        return None

    server.misbehave = refuse
    training = train(server.address)
    training.measure(100)
    assert eventually(lambda: "are sent again" in caplog.text)
    assert len(server.requests) < 60
    broken = False

    assert server.wait_for(lambda: server.steps() == list(range(100)))


def test_a_busy_server_is_asked_again_when_it_wants_and_nothing_is_said_or_cut(server, train, caplog):
    times = []

    def busy(request):
        if request.path.endswith("/frames"):
            times.append(time.monotonic())
            if len(times) < 3:
                return json_answer({"error": "busy", "detail": "come again"}, 503)
        return None

    server.retry_after, server.misbehave = "1", busy
    training = train(server.address)
    training.measure(10, size=10_000)  # so much that a smaller slice would be tried, if its size were to blame

    assert server.wait_for(lambda: server.steps() == list(range(10)))
    assert all(later - sooner >= 1.0 for sooner, later in pairwise(times[:3]))
    assert len([one for one in server.requests if one.path.endswith("/runs")]) == 1
    assert caplog.records == []


def test_directives_reach_the_training(server, train):
    server.directives = (Directive(40, "incident"),)
    training = train(server.address)

    assert training.directed.wait(PATIENCE_S)
    assert training.directives[0] == Directive(40, "incident")


def test_the_first_heartbeat_follows_the_start_at_once(server, train):
    train(server.address)

    assert server.wait_for(lambda: len(server.requests) >= 3)
    assert [request.path.rpartition("/")[2] for request in server.requests[:3]] == ["runs", "heartbeat", "frames"]


def test_heartbeats_carry_the_progress(server, train):
    training = train(server.address, heartbeat_s=0.05)
    training.measure(3)
    assert server.wait_for(lambda: sum(request.path.endswith("/heartbeat") for request in server.requests) >= 3)

    last = [request.body for request in server.requests if request.path.endswith("/heartbeat")][-1]
    assert last == b'{"attempt":"a","rank":0,"step":3,"step_age_ms":5,"pause":"","powers":[]}'


def test_a_callback_that_raises_is_told_once_and_stops_nothing(server, train, caplog):
    server.directives = (Directive(1, "x"),)
    training = train(server.address, clumsy=True)
    training.measure(5)

    assert server.wait_for(lambda: len(server.steps()) == 5)
    assert eventually(lambda: sum("ZeroDivisionError" in r.getMessage() for r in caplog.records) == 1)
    server.directives = ()
    training.measure(5)
    assert server.wait_for(lambda: len(server.steps()) == 10)


def test_a_drain_that_raises_is_told_once_and_the_next_one_is_tried(tmp_path, caplog):
    spool = Spool(tmp_path, START)
    calls, third = [], threading.Event()

    def drain() -> float | None:
        calls.append(1)
        if len(calls) == 3:
            third.set()
            return None
        tried.set()
        raise ValueError("broken")

    sender = Sender(spool, START, None, drain=drain, progress=lambda: (0, 0), on_directives=print)
    sender.start()
    for _ in range(2):
        tried = threading.Event()
        sender.wake()
        assert tried.wait(PATIENCE_S)
    sender.wake()
    assert third.wait(PATIENCE_S)
    sender.close(PATIENCE_S)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_offline_everything_stays_in_the_spool(train):
    training = train(None)
    training.measure(5)

    assert not training.sender.close(PATIENCE_S)
    data, _ = SpoolReader(training.spool.directory).read(-1, 1 << 20)
    assert [step for one in map(records.glance, records.bodies(data)) if (step := one.step) is not None] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_sender_that_was_never_started_can_be_closed(tmp_path):
    training = Training(tmp_path, "http://127.0.0.1:9")
    training.measure(3)

    assert not training.sender.close(1.0)
    assert training.spool.last_sequence == 5


def test_ranks_other_than_the_first_keep_quiet_about_the_server(tmp_path, caplog):
    start = RunStart(
        version=VERSION, run="r", attempt="a", rank=1, world_size=2, project="p", name="n", every=1, started_at_ms=1
    )
    spool = Spool(tmp_path, start)
    connection = Connection(f"http://127.0.0.1:{free_port()}")
    with caplog.at_level(logging.INFO, logger="internist"):
        sender = Sender(
            spool, start, connection, drain=lambda: None, progress=lambda: (0, 0), on_directives=lambda _: None
        )
        sender.start()
        assert eventually(lambda: caplog.records)
        sender.close(0.0)

    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_an_idle_sender_takes_no_processor_time(server, train):
    training = train(server.address)
    training.measure(5)
    assert server.wait_for(lambda: len(server.steps()) == 5)
    assert eventually(lambda: training.spool.acknowledged == training.spool.last_sequence)
    server.stop()
    server.stop = lambda: None

    before = time.process_time()
    threading.Event().wait(1.0)
    assert time.process_time() - before < 0.03


def test_the_random_numbers_of_the_training_are_not_touched(train):
    import random

    before = random.getstate()
    training = train(f"http://127.0.0.1:{free_port()}")
    training.measure(3)
    assert training.drained.wait(PATIENCE_S)
    assert not training.sender.close(1.0)

    assert random.getstate() == before
