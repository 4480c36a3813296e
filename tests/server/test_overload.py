"""More is asked than can be done: what waits is bounded, every client has its turn, work for nobody is not begun."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import pytest
import urllib3
import uvicorn

from internist.errors import ServerBusy
from internist.schema.wire import Heartbeat
from internist.ship.connection import Connection, may_be_too_large
from internist_server import connections, overload
from internist_server.connections import BoundedProtocol
from internist_server.lanes import RETRY_AFTER_S, Busy, Lane
from internist_server.overload import Lanes, Overload
from tests.loops import run_apart

PATIENCE_S = 20.0
FRAMES = "/api/v1/runs/{}/frames"


async def settled():
    """Let every task that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_every_client_has_its_turn_however_many_requests_another_has():
    async def scene():
        lane, order = Lane(1, waiting=100, of_one=50), []

        async def request(client):
            await lane.enter(client)
            order.append(client)
            await settled()
            lane.leave()

        await lane.enter("first")
        greedy = [asyncio.create_task(request("greedy")) for _ in range(40)]
        await settled()
        others = [asyncio.create_task(request(f"client {place}")) for place in range(5)]
        await settled()
        lane.leave()
        await asyncio.gather(*greedy, *others)
        return order, lane

    order, lane = run_apart(scene())
    assert max(order.index(f"client {place}") for place in range(5)) <= 6
    assert (len(order), lane.waiting) == (45, 0)


def test_a_lane_holds_so_many_of_all_and_of_one():
    async def scene():
        lane = Lane(1, waiting=3, of_one=2)
        await lane.enter("a")
        waits = [asyncio.create_task(lane.enter(client)) for client in ("a", "a", "b")]
        await settled()
        assert not lane.has_room("a") and not lane.has_room("c")
        with pytest.raises(Busy):
            await lane.enter("c")
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        assert lane.waiting == 0 and lane.has_room("a")

    run_apart(scene())


def test_one_that_waits_for_too_long_is_sent_away_and_takes_nobodys_place():
    async def scene():
        lane = Lane(1, waiting=3, patience_s=0.01)
        await lane.enter("a")
        with pytest.raises(Busy):
            await lane.enter("b")
        lane.leave()
        await lane.enter("c")
        lane.leave()
        return lane

    assert run_apart(scene()).waiting == 0


def test_a_lane_that_is_closed_sends_everyone_away():
    async def scene():
        lane = Lane(1, waiting=3)
        await lane.enter("a")
        wait = asyncio.create_task(lane.enter("b"))
        await settled()
        lane.close()
        with pytest.raises(Busy):
            await wait
        with pytest.raises(Busy):
            await lane.enter("c")

    run_apart(scene())


class Server:
    """The gate before an app that works until it is told to stop."""

    def __init__(self, *, at_once=1, waiting=1, most=100):
        lanes = Lanes(*(Lane(at_once, waiting=waiting, patience_s=PATIENCE_S) for _ in range(4)))
        self.gate = Overload(self.app, max_request_bytes=most, lanes=lanes)
        self.done = asyncio.Event()
        self.began = []

    async def app(self, scope, receive, send):
        self.began.append((scope["path"], (await receive()).get("body")))
        if not scope["path"].startswith("/healthz"):
            await self.done.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(self, path, *pieces, method="POST", length=None, client="1.1.1.1", is_whole=True):
        """A request whose client gets its status, with what it sends: pieces of a body, then whether it goes."""
        request = Request(*pieces, is_whole=is_whole)
        size = length if length is not None else sum(len(piece) for piece in pieces if piece)
        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "client": (client, 1),
            "headers": [(b"content-length", str(size).encode())],
        }  # fmt: skip
        request.task = asyncio.create_task(self.gate(scope, request.receive, request.send))
        return request


class Request:
    def __init__(self, *pieces, is_whole):
        self.pieces, self.gone, self.sent = list(pieces), asyncio.Event(), []
        self.is_whole = is_whole
        self.task = None

    async def receive(self):
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or not self.is_whole}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])


def test_what_there_is_no_room_for_is_told_when_to_come_again_and_health_never_waits():
    async def scene():
        server = Server(at_once=1, waiting=1)
        requests = [server.ask(FRAMES.format(run), b"x") for run in ("a", "b", "c")]
        await settled()
        health = server.ask("/healthz", b"", method="GET")
        heartbeat = server.ask("/api/v1/runs/a/heartbeat", b"x")
        await settled()

        assert [one.status for one in requests] == [None, None, 503]
        assert requests[2].headers[b"retry-after"] == str(RETRY_AFTER_S).encode()
        assert health.status == 200
        assert server.began == [(FRAMES.format("a"), b"x"), ("/healthz", b""), ("/api/v1/runs/a/heartbeat", b"x")]
        server.done.set()
        await asyncio.gather(*(one.task for one in (*requests, health, heartbeat)))
        assert [one.status for one in requests] == [200, 200, 503]

    run_apart(scene())


def test_work_whose_client_has_gone_is_not_begun_and_its_place_is_free():
    async def scene():
        server = Server(at_once=1, waiting=1)
        first, second = (server.ask(FRAMES.format(run), b"x") for run in ("a", "b"))
        await settled()
        second.gone.set()
        await second.task
        third = server.ask(FRAMES.format("c"), b"x")
        await settled()
        server.done.set()
        await asyncio.gather(first.task, third.task)

        assert [path for path, _ in server.began] == [FRAMES.format("a"), FRAMES.format("c")]
        assert second.sent == []

    run_apart(scene())


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(overload, "BODY_S", 0.01)

    async def scene():
        server = Server()
        slow = server.ask(FRAMES.format("a"), b"x", length=3, is_whole=False)
        await slow.task
        return slow, server

    slow, server = run_apart(scene())
    assert (slow.status, server.began) == (408, [])
    assert slow.headers[b"connection"] == b"close"


@pytest.mark.parametrize(("pieces", "length"), [((b"x" * 101,), None), ((b"x" * 60, b"x" * 60), 10)])
def test_a_body_over_the_limit_is_refused_whatever_length_it_claims(pieces, length):
    async def scene():
        server = Server(most=100)
        request = server.ask(FRAMES.format("a"), *pieces, length=length)
        await request.task
        return request.status, server.began

    assert run_apart(scene()) == (413, [])


def test_bodies_that_are_held_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr(overload, "BODY_BYTES", 150)

    async def scene():
        server = Server(at_once=9)
        first, second = (server.ask(FRAMES.format(run), b"x" * 100) for run in ("a", "b"))
        await settled()
        server.done.set()
        await asyncio.gather(first.task, second.task)
        third = server.ask(FRAMES.format("c"), b"x" * 100)
        await third.task
        return first.status, second.status, third.status

    assert run_apart(scene()) == (200, 503, 200)


@contextmanager
def listening(app):
    """An app behind the connections of the server; its address."""
    config = uvicorn.Config(app, port=0, http=BoundedProtocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    started = threading.Event()
    begin = server.startup

    async def startup(sockets=None):
        await begin(sockets)
        started.set()

    server.startup = startup
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


async def busy(scope, receive, send):
    headers = [(b"retry-after", b"7"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"error": "busy", "detail": "come again"}'})


def test_a_client_knows_a_busy_server_from_one_that_a_body_is_too_large_for():
    with listening(busy) as port:
        connection = Connection(f"127.0.0.1:{port}")
        with pytest.raises(ServerBusy) as error:
            connection.heartbeat("r", Heartbeat("a", 0, 1, 0))
        connection.close()

    assert error.value.wait_s == 7.0
    assert not may_be_too_large(error.value, 1 << 20)


def test_a_head_that_does_not_come_is_not_waited_for_and_others_are_served(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with listening(busy) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) for _ in range(20)]
        for place, one in enumerate(slow):
            if place % 2:
                one.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert urllib3.request("GET", f"http://127.0.0.1:{port}/", retries=False).status == 503
        assert [one.recv(1) for one in slow] == [b""] * 20  # closed
        for one in slow:
            one.close()


def test_a_head_without_an_end_is_refused():
    with listening(busy) as port, socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as one:
        one.sendall(b"GET / HTTP/1.1\r\n")
        closed = False
        try:
            for place in range(10_000):
                one.sendall(b"X-%d: %s\r\n" % (place, b"x" * 100))
        except OSError:
            closed = True
        assert closed or one.recv(1) == b""
