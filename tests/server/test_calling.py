"""Webhooks that are given by name: what the name leads to is looked at when it is called, and is what is called."""

import socket
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from internist_server.alerts import calling
from internist_server.alerts.address_book import Address
from internist_server.alerts.calling import LocalAddress, addresses_of, open_client
from internist_server.receivers_command import test as try_receivers
from internist_server.settings import Settings

TIMEOUT_S = 10.0
CERTIFICATE = Path(__file__).with_name("hooks.example.org.pem")
"""Of that name, signed by itself, with its key: good for this test and nothing else, until 2126."""
FAR = "192.0.2.7"
"""An address for documentation, where nobody is (RFC 5737)."""
_getaddrinfo = socket.getaddrinfo


@contextmanager
def listening(context=None):
    """A receiver on this machine; its port, and the requests that it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.client_address[0], self.headers["Host"], self.path, body))
            self.send_response(302 if self.path.startswith("/away") else 200)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["169.254.169.254"], ["fe80::1%eth0"], ["0.0.0.0"], ["::ffff:127.0.0.1"],
     ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["fd00:ec2::254"], ["100.100.100.200"], [FAR, "127.0.0.1"]],
)  # fmt: skip
def test_a_name_that_leads_to_this_machine_or_its_link_is_not_called(addresses):
    with (
        open_client(TIMEOUT_S, may_be_local=False, resolve=lambda *_: addresses) as client,
        pytest.raises(LocalAddress, match=r"hooks\.example\.org leads to .*INTERNIST_LOCAL_WEBHOOKS"),
    ):
        client.post("http://hooks.example.org/x", content=b"{}")


def test_a_name_that_leads_elsewhere_the_second_time_is_called_where_it_was_looked_at(monkeypatch):
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        return ["127.0.0.1"]  # whatever is asked again would lead here

    monkeypatch.setattr(calling, "is_local_address", lambda _: False)
    monkeypatch.setattr("socket.getaddrinfo", _no_second_look)
    with listening() as (port, got), open_client(TIMEOUT_S, may_be_local=False, resolve=resolve) as client:
        answer = client.post(f"http://ada:pw@hooks.example.org:{port}/away?a=b", content=b"news")

    assert asked == [("hooks.example.org", port)]
    assert got == [("127.0.0.1", f"hooks.example.org:{port}", "/away?a=b", b"news")]
    assert answer.status_code == 302  # and not followed


def _no_second_look(host, *rest, **more):
    assert host.replace(".", "").isdecimal(), f"{host} was looked up once more"
    return _getaddrinfo(host, *rest, **more)


def test_the_next_address_of_a_name_is_called_where_nobody_is_at_the_first(monkeypatch):
    monkeypatch.setattr(calling, "is_local_address", lambda _: False)
    with (
        listening() as (port, got),
        open_client(TIMEOUT_S, may_be_local=False, resolve=lambda *_: ["::1", "127.0.0.1"]) as client,
    ):
        assert client.post(f"http://hooks.example.org:{port}/", content=b"news").status_code == 200

    assert len(got) == 1


def test_a_name_that_leads_nowhere_is_a_delivery_that_failed():
    with open_client(TIMEOUT_S, may_be_local=False, resolve=lambda *_: []) as client, pytest.raises(httpx.ConnectError):
        client.post("http://hooks.example.org/")
    with pytest.raises(httpx.ConnectError, match=r"no\.such\.invalid cannot be looked up"):
        addresses_of("no.such.invalid", 80)


def test_names_of_this_machine_are_looked_up_as_such():
    assert "127.0.0.1" in addresses_of("localhost", 80)


def test_a_receiver_by_name_on_this_machine_is_told_only_where_that_is_meant(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda _, *rest, **more: _getaddrinfo("127.0.0.1", *rest, **more))
    with listening() as (port, got):
        receiver = Address(f"http://hooks.example.org:{port}/x", True, "oncall")
        beyond = {"host": "0.0.0.0", "token": "t"}

        (failure,) = try_receivers([receiver], Settings(**beyond))
        assert failure is not None and "on this machine or its link" in failure and got == []
        assert try_receivers([receiver], Settings(**beyond, local_webhooks=True)) == [None]
        assert try_receivers([receiver], Settings()) == [None]


def test_a_proxy_of_the_environment_looks_names_up_itself(monkeypatch):
    with listening() as (port, got):
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with open_client(TIMEOUT_S, may_be_local=False, resolve=lambda *_: ["127.0.0.1"]) as client:
            client.post("http://hooks.example.org/x", content=b"news")

    assert got[0][1:3] == ("hooks.example.org", "http://hooks.example.org/x")


def test_the_certificate_that_counts_is_that_of_the_name(monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(calling, "is_local_address", lambda _: False)

    with (
        listening(context) as (port, got),
        open_client(TIMEOUT_S, may_be_local=False, resolve=lambda *_: ["127.0.0.1"]) as client,
    ):
        assert client.post(f"https://hooks.example.org:{port}/", content=b"news").status_code == 200
        with pytest.raises(httpx.ConnectError, match=r"Hostname mismatch|doesn't match"):
            client.post(f"https://other.example.org:{port}/", content=b"news")
    assert len(got) == 1
