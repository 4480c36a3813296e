import socket
import threading
import time
from dataclasses import replace

import pytest

from internist.errors import (
    BodyTooLarge,
    ConfigurationError,
    ConnectionBroken,
    NotInternist,
    RequestRefused,
    ServerError,
    ServerUnreachable,
    TokenRefused,
)
from internist.schema.wire import PIECE_BYTES, SPOOL_CONTENT_TYPE, VERSION, Directive, Heartbeat, Module, RunStart
from internist.ship.connection import MAX_REPLY_BYTES, Connection, may_be_too_large
from tests.client.ship.small_server import SmallServer, json_answer

START = RunStart(
    version=VERSION, run="r.1", attempt="a", rank=3, world_size=4, project="p", name="n", every=10, started_at_ms=1
)


@pytest.fixture
def server():
    with SmallServer() as server:
        yield server


@pytest.fixture
def connect():
    made = []

    def connect(address, **settings):
        made.append(Connection(address, **settings))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def raw_server(behave):
    """A socket that accepts one client at a time and does what it is told."""
    sock = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            with client:
                behave(client)

    threading.Thread(target=serve, daemon=True).start()
    return sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_start_a_slice_and_a_heartbeat_get_their_replies_over_one_socket(server, connect):
    server.directives = (Directive(9, "incident"),)
    connection = connect(server.address, token="secret")

    started = connection.start_run(START)
    reply = connection.send("r.1", b"", attempt="a", rank=3)
    alive = connection.heartbeat("r.1", Heartbeat("a", 3, 7, 20))
    assert (started.acknowledged, started.url) == (-1, "/runs/r.1")
    assert reply.directives == alive.directives == (Directive(9, "incident"),)
    assert server.connections == 1
    paths = [request.path for request in server.requests]
    assert paths == ["/api/v1/runs", "/api/v1/runs/r.1/frames", "/api/v1/runs/r.1/heartbeat"]
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer secret"}
    assert server.requests[1].query == "attempt=a&rank=3"
    frames = server.requests[1].headers
    assert frames["Content-Type"] == SPOOL_CONTENT_TYPE
    assert (frames["X-Internist-Attempt"], frames["X-Internist-Rank"]) == ("a", "3")


def test_an_address_may_have_a_prefix_or_lack_a_scheme(server, connect):
    assert connect(f"127.0.0.1:{server.port}").start_run(START).run == "r.1"
    assert connect(f"{server.address}/team/").start_run(START).run == "r.1"
    assert server.requests[-1].path == "/team/api/v1/runs"


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://[::1", "http://a:b:c"])
def test_what_is_no_address_is_refused_by_name(address):
    with pytest.raises(ConfigurationError, match="is not a server's address"):
        Connection(address)


def test_a_token_that_no_header_can_carry_is_refused():
    with pytest.raises(ConfigurationError, match="token"):
        Connection("http://x", token="a\nb")


def test_messages_do_not_show_credentials_of_the_address():
    assert Connection("http://user:pass@host:1/x").server == "http://host:1/x"


def test_nothing_there_is_unreachable(connect):
    port = free_port()

    with pytest.raises(ServerUnreachable, match=rf"no Internist server answers at http://127.0.0.1:{port} .*refused"):
        connect(f"http://127.0.0.1:{port}").start_run(START)


def test_an_unknown_host_is_unreachable(connect):
    with pytest.raises(ServerUnreachable, match=r"no Internist server answers at http://nowhere\.invalid"):
        connect("http://nowhere.invalid").start_run(START)


def test_a_server_that_hangs_is_unreachable_after_the_timeout(connect):
    released = threading.Event()
    sock, address = raw_server(lambda _: released.wait(20))
    with sock:
        begun = time.monotonic()
        with pytest.raises(ServerUnreachable, match="timed out"):
            connect(address, timeout=0.2).start_run(START)
        released.set()

    assert time.monotonic() - begun < 5


def test_an_answer_that_drips_is_cut_off(connect):
    over = threading.Event()

    def drip(client):
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while not over.wait(0.05):
                client.sendall(b" ")
        except OSError:
            return

    sock, address = raw_server(drip)
    with sock, pytest.raises(ServerUnreachable, match="did not finish"):
        connect(address, timeout=0.2).start_run(START)
    over.set()


def test_an_endless_answer_is_cut_off(server, connect):
    server.misbehave = lambda _: (200, "application/json", b" " * (MAX_REPLY_BYTES + 1))

    with pytest.raises(NotInternist, match="more than"):
        connect(server.address).start_run(START)


def test_what_does_not_speak_http_is_not_internist(connect):
    sock, address = raw_server(lambda client: (client.recv(65536), client.sendall(b"SSH-2.0-OpenSSH\r\n")))
    with sock, pytest.raises(NotInternist, match="does not speak HTTP"):
        connect(address).start_run(START)


@pytest.mark.parametrize(
    "answer",
    [
        (200, "text/html", b"<html>Welcome to nginx</html>"),
        (200, "application/json", b'{"hello": 1}'),
        (200, "application/json", b'{"run": 1, "attempt": 2}'),
        (200, "application/json", b"[" * 10_000),
        (200, "application/octet-stream", b"\xff\x00"),
        (404, "text/html", b"<html>not found</html>"),
        (404, "application/json", b'{"detail": "Not Found"}'),
        (405, "application/json", b'{"detail": "Method Not Allowed"}'),
        (400, "text/plain", b"what?"),
        (
            200,
            "application/json",
            json_answer({"run": "x", "attempt": "a", "number": 1, "acknowledged": 1, "url": ""})[2],
        ),
    ],
)
def test_another_program_is_told_from_internist_and_its_address_is_named(server, connect, answer):
    server.misbehave = lambda _: answer

    with pytest.raises(NotInternist, match=server.address):
        connect(server.address).start_run(START)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_its_target_is_named(server, connect, status):
    server.misbehave = lambda _: (status, "text/html", b"http://127.0.0.1:1/elsewhere")

    told = rf"redirects \({status}\) to 'http://127.0.0.1:1/elsewhere', and .* the address of the Internist server"
    with pytest.raises(NotInternist, match=told):
        connect(server.address, token="secret").start_run(START)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_named(server, connect, status):
    server.misbehave = lambda _: json_answer({"detail": "unknown token"}, status)

    with pytest.raises(TokenRefused, match=rf"refused the token \({status}: unknown token\)"):
        connect(server.address).start_run(START)


@pytest.mark.parametrize("status", [500, 502, 503, 507, 429])
def test_a_server_in_trouble_is_no_stranger(server, connect, status):
    server.misbehave = lambda _: (status, "text/html", b"<html>")

    with pytest.raises(ServerError, match=f"answered {status}") as caught:
        connect(server.address).send("r", b"", attempt="a", rank=0)
    assert type(caught.value) is ServerError


@pytest.mark.parametrize("status", [404, 409, 413, 422])
def test_a_refused_request_carries_its_status_and_the_reason(server, connect, status):
    server.misbehave = lambda _: json_answer({"detail": "because"}, status)

    with pytest.raises(RequestRefused, match="because") as caught:
        connect(server.address).send("r", b"", attempt="a", rank=0)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "answer",
    [(413, "text/html", b"<html>nginx</html>"), (413, "", b""), json_answer({"detail": "over the limit"}, 413)],
)
def test_a_body_too_large_is_told_whoever_says_so(server, connect, answer):
    server.misbehave = lambda _: answer

    with pytest.raises(BodyTooLarge, match=r"takes no body of this size \(413: ") as caught:
        connect(server.address).send("r", b"", attempt="a", rank=0)
    assert caught.value.status == 413


def test_a_403_that_is_not_of_our_server_says_whose_it_is(server, connect):
    server.misbehave = lambda _: (403, "text/html", b"<html>Request blocked</html>")

    with pytest.raises(TokenRefused, match=r"not by an Internist server: text/html '<html>Request blocked"):
        connect(server.address).start_run(START)


def test_a_program_that_knows_no_post_is_not_internist(server, connect):
    server.misbehave = lambda _: (501, "text/html", b"<html>Unsupported method</html>")

    with pytest.raises(NotInternist, match="501"):
        connect(server.address).start_run(START)


def test_a_connection_that_is_cut_is_told_from_one_that_was_never_made(connect):
    sock, address = raw_server(lambda client: client.recv(100))
    with sock, pytest.raises(ConnectionBroken):
        connect(address).send("r", bytes(1 << 20), attempt="a", rank=0)

    with pytest.raises(ServerUnreachable) as caught:
        connect(f"http://127.0.0.1:{free_port()}").start_run(START)
    assert type(caught.value) is ServerUnreachable


@pytest.mark.parametrize(
    "answer", [(413, "text/html", b"<html>"), json_answer({"detail": "module has 600 signs"}, 422)]
)
def test_a_start_that_is_refused_for_its_outline_goes_without_it_and_again_the_next_time(server, connect, answer):
    start = replace(START, modules=(Module("m", "Linear", "linear"),), config={"lr": 0.1})
    server.misbehave = lambda request: answer if b"Linear" in request.body else None
    connection = connect(server.address)

    assert connection.start_run(start).run == connection.start_run(start).run == "r.1"
    assert [b"Linear" in request.body for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("error", "size", "may_be"),
    [
        (BodyTooLarge("x", status=413), 10, True),
        (ConnectionBroken("x"), PIECE_BYTES + 1, True),
        (ConnectionBroken("x"), PIECE_BYTES, False),
        (ServerError("x", status=502), PIECE_BYTES + 1, True),
        (NotInternist("x", status=400), PIECE_BYTES + 1, True),
        (TokenRefused("x", status=403), PIECE_BYTES + 1, True),
        (TokenRefused("x", status=401), PIECE_BYTES + 1, False),
        (ServerError("x", status=507), PIECE_BYTES + 1, False),
        (ServerUnreachable("x"), PIECE_BYTES + 1, False),
    ],
)
def test_what_may_be_the_fault_of_a_bodys_size(error, size, may_be):
    assert may_be_too_large(error, size) is may_be


def test_a_kept_socket_that_the_server_closed_is_opened_again(connect):
    served = []

    def one_answer_per_socket(client):
        served.append(client.recv(65536))
        body = json_answer({"directives": []})[2]
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    sock, address = raw_server(one_answer_per_socket)
    connection = connect(address)
    with sock:
        for _ in range(20):
            assert connection.heartbeat("r", Heartbeat("a", 0, 1, 1)).directives == ()
    assert len(served) == 20
