"""Messages by receiver: each has its own tries, its own end, and hears every message once."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from internist.schema.wire import Note
from internist_server import receivers_command
from internist_server.alerts.address_book import Address
from internist_server.cli import read_settings
from internist_server.errors import SettingsError
from internist_server.receivers import retire_receivers
from internist_server.settings import Settings
from internist_server.store import deliveries, notifications
from tests.server.sending import EPOCH_MS, Sender

PATIENCE_S = 20.0
BAD, GOOD = Address("http://127.0.0.1:1/", True, "bad"), Address("http://127.0.0.1:2/", True, "good")
HOUR_MS = 3_600_000


@pytest.fixture
def database(database_url, serve):
    """With one message that nobody has been told of."""
    sender = Sender(serve(database_url))
    sender.send([sender.record(note=Note("disk", "", "error", 1, EPOCH_MS))])
    database = sender.api.app.state.services.database
    with database.write() as session:
        notifications.queue_moment(session, sender.run, "user", 1, now_ms=EPOCH_MS)
        assert deliveries.has_work(session, BAD.key, now_ms=EPOCH_MS)
        deliveries.address(session, lambda _: (BAD, GOOD), now_ms=EPOCH_MS)
    return database


def try_once(database, address, error, *, now_ms):
    with database.write() as session:
        found = deliveries.claim(session, address.key, now_ms=now_ms)
        if found is not None:
            deliveries.settle(session, found.id, address.key, error, now_ms=now_ms)
    return found is not None


def states(database):
    with database.read() as session:
        return {one.receiver: one.state for one in deliveries.list_deliveries(session, states=(), limit=10)}


def test_a_receiver_that_fails_has_no_other_told_twice(database):
    assert try_once(database, GOOD, None, now_ms=EPOCH_MS)
    now_ms, waits = EPOCH_MS, []
    while try_once(database, BAD, "answered 503", now_ms=now_ms):
        assert not try_once(database, GOOD, None, now_ms=now_ms)
        with database.read() as session:
            (one,) = deliveries.list_deliveries(session, states=("failing", "given up"), limit=10)
        waits.append(one.due_at_ms - now_ms)
        now_ms = one.due_at_ms

    assert states(database) == {"bad": "given up", "good": "delivered"}
    assert len(waits) == deliveries.GIVE_UP_AFTER
    tries = waits[:-1]  # the last one waits for nothing
    assert tries == sorted(tries) and (tries[0], tries[-1]) == (deliveries.RETRY_MS, deliveries.LONGEST_RETRY_MS)
    assert (one.attempts, one.error) == (deliveries.GIVE_UP_AFTER, "answered 503")


def test_what_is_claimed_is_not_claimed_again_before_its_lease_ends(database):
    with database.write() as session:
        assert deliveries.claim(session, BAD.key, now_ms=EPOCH_MS) is not None
        assert deliveries.claim(session, BAD.key, now_ms=EPOCH_MS + deliveries.LEASE_MS - 1) is None
        assert deliveries.claim(session, GOOD.key, now_ms=EPOCH_MS) is not None
        assert deliveries.claim(session, BAD.key, now_ms=EPOCH_MS + deliveries.LEASE_MS) is not None


def test_what_waits_is_due_although_the_clock_was_set_back(database):
    assert try_once(database, BAD, "answered 503", now_ms=EPOCH_MS)

    assert try_once(database, BAD, None, now_ms=EPOCH_MS - HOUR_MS)


def test_what_waits_for_a_receiver_that_there_is_no_more_is_given_up(database):
    settings = Settings(webhook_url=(GOOD.url,))

    retire_receivers(database, settings, (), clock=lambda: EPOCH_MS)

    assert states(database) == {"bad": "given up", "good": "waiting"}
    with database.read() as session:
        assert deliveries.counts(session) == {("bad", "given up"): 1, ("good", "waiting"): 1}


@dataclass
class Hook:
    """A webhook receiver on this machine that answers with this."""

    status: int
    bodies: list[bytes] = field(default_factory=list)
    heard: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@pytest.fixture
def hooks():
    """One that takes messages and one that does not."""
    made = [Hook(200), Hook(503)]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(hook)) for hook in made]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for hook, server, thread in zip(made, servers, threads, strict=True):
        hook.url = f"http://127.0.0.1:{server.server_address[1]}/"
        thread.start()
    yield made
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)


def handler(hook):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            hook.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(hook.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            hook.heard.set()

        def log_message(self, format, *args):
            pass

    return Handler


def test_a_server_tells_each_receiver_and_says_which_one_does_not_listen(database_url, serve, clock, hooks):
    api = serve(database_url, webhook_url=tuple(hook.url for hook in hooks))
    sender = Sender(api)
    sender.send([sender.record(note=Note("disk", "", "error", 1, EPOCH_MS))])
    assert all(hook.heard.wait(PATIENCE_S) for hook in hooks)

    (failing,) = until(lambda: api.get("/api/v1/deliveries", params={"state": "failing"}).json())
    (taken,) = until(lambda: api.get("/api/v1/deliveries", params={"state": "delivered"}).json())

    assert (failing["receiver"], failing["error"]) == (hooks[1].url.rstrip("/"), "answered 503")
    assert (taken["receiver"], taken["attempts"], len(hooks[0].bodies)) == (hooks[0].url.rstrip("/"), 1, 1)
    text = api.get("/metrics").text
    assert f'internist_notifications_undelivered{{receiver="{failing["receiver"]}",state="failing"}} 1.0' in text
    assert f'internist_notifications_delivered_total{{receiver="{taken["receiver"]}"}} 1.0' in text


def until(ask):
    """What is there once another thread has written it."""
    for _ in range(2_000):
        if found := ask():
            return found
    raise AssertionError("it did not come")


def test_receivers_can_be_tested_before_anything_is_wrong(hooks, monkeypatch, capsys):
    monkeypatch.setenv("INTERNIST_WEBHOOK_URL", ",".join(hook.url for hook in hooks))

    assert receivers_command.command(["test"]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["took it", "answered 503"]
    assert all(b"a test of this receiver" in hook.bodies[0] for hook in hooks)
    hooks[1].status = 200
    assert receivers_command.command(["test", "--json"]) == 0
    assert [one["failure"] for one in json.loads(capsys.readouterr().out)] == [None, None]


def test_without_receivers_a_test_says_where_to_name_them(monkeypatch, capsys):
    monkeypatch.delenv("INTERNIST_WEBHOOK_URL", raising=False)

    assert receivers_command.command(["list"]) == 1
    assert "INTERNIST_APPRISE_URLS" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # a module that Apprise's own plugins import
@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("INTERNIST_WEBHOOK_URL", "hooks.example.org", "expected addresses such as https://host/hook"),
        ("INTERNIST_WEBHOOK_URL", '["http://a/"', "expected a JSON list"),
        ("INTERNIST_APPRISE_URLS", "mailto://u:secret@h?to=a@x,b@x", "has commas"),
    ],
)
def test_an_address_that_is_none_is_refused_at_the_start(monkeypatch, name, given, reason):
    monkeypatch.setenv(name, given)

    with pytest.raises(SettingsError, match=reason) as refused:
        read_settings({})

    assert "secret" not in str(refused.value)


def test_commas_in_addresses_survive_in_json(monkeypatch):
    monkeypatch.setenv("INTERNIST_APPRISE_URLS", '["mailto://u:p@h?to=a@x.org,b@x.org", "json://h"]')

    assert Settings().apprise_urls == ("mailto://u:p@h?to=a@x.org,b@x.org", "json://h")
