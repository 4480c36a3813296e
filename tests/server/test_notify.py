"""Notifications: what is sent, and that it arrives, also at receivers that fail first."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from internist.schema.alerts import Alert
from internist.schema.conditions import CONDITION
from internist.schema.rules import RUN_RULE
from internist_server.alerts import rules
from internist_server.alerts.address_book import Address, AddressBook, require_usable
from internist_server.alerts.labels import fingerprint
from internist_server.alerts.notify import (
    Notification,
    Notifier,
    deliver,
    headline,
    idempotency_key,
    order_members,
    text,
    webhook_body,
)
from internist_server.errors import SettingsError

PATIENCE_S = 20.0
"""How long a test waits for another thread before it fails."""

ALERT = Alert(
    id=7,
    run="r1",
    run_name="gpt",
    project="demo",
    attempt="a1",
    rule="update_out_of_band",
    condition="update",
    severity="critical",
    state="firing",
    series=3,
    metric="update.own",
    subject="blocks.2.attn",
    index=None,
    kind="module",
    module="blocks.2.attn",
    block="blocks.2",
    cause="own",
    value=0.15,
    ratio=31.0,
    worst_ratio=33.0,
    basis="baseline",
    band_low=0.002,
    band_high=0.01,
    pending_step=400,
    opened_step=420,
    closed_step=None,
    opened_at_ms=1_760_000_000_000,
    closed_at_ms=None,
    message="blocks.2.attn: update.own is 31x its baseline",
    advice="its learning rate",
    acknowledged_by=None,
    acknowledged_at_ms=None,
    notified=False,
)
NEWS = Notification(
    id=1, run="r1", run_name="gpt", project="demo", condition="update", status="firing", alerts=(ALERT,), attempts=0
)


def test_what_began_first_is_listed_first_and_what_shows_in_the_whole_model_last():
    loss = replace(ALERT, id=1, cause="model", pending_step=90, worst_ratio=900.0)
    later = replace(ALERT, id=2, pending_step=120, worst_ratio="inf")
    feature, weight = replace(ALERT, id=3, cause="feature", pending_step=100), replace(ALERT, id=4, pending_step=100)

    ordered = order_members([later, loss, weight, feature])

    assert [alert.id for alert in ordered] == [3, 4, 2, 1]


def test_the_webhook_body_is_alertmanagers_version_4():
    body = webhook_body(NEWS, external_url="http://host:8237/", receiver="hook")

    assert set(body) == {
        "version",
        "groupKey",
        "truncatedAlerts",
        "status",
        "receiver",
        "groupLabels",
        "commonLabels",
        "commonAnnotations",
        "externalURL",
        "alerts",
    }
    assert (body["version"], body["status"], body["receiver"]) == ("4", "firing", "hook")
    assert body["groupLabels"] == {"run": "r1", "condition": "update"}
    assert body["externalURL"] == "http://host:8237"
    (member,) = body["alerts"]  # type: ignore[misc]
    assert set(member) == {"status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"}
    assert member["labels"]["alertname"] == "update_out_of_band"
    assert member["labels"]["module"] == "blocks.2.attn"
    assert member["annotations"]["description"] == ALERT.message
    assert datetime.fromisoformat(member["startsAt"]).timestamp() == 1_760_000_000
    assert member["endsAt"] == "0001-01-01T00:00:00Z"
    assert member["generatorURL"] == "http://host:8237/runs/r1"
    assert member["fingerprint"] == fingerprint(member["labels"])


def test_every_label_and_annotation_of_a_body_is_text_and_the_body_is_strict_json():
    news = replace(NEWS, alerts=(replace(ALERT, value="nan", ratio="inf", worst_ratio="inf", index=3),))

    body = webhook_body(news, external_url="http://host", receiver="hook")

    json.dumps(body, allow_nan=False)
    (member,) = body["alerts"]  # type: ignore[misc]
    assert all(isinstance(value, str) for value in (*member["labels"].values(), *member["annotations"].values()))
    assert (member["annotations"]["value"], member["annotations"]["ratio"]) == ("nan", "inf")


def test_a_resolved_member_says_when_it_ended():
    news = replace(NEWS, status="resolved", alerts=(replace(ALERT, state="resolved", closed_at_ms=1_760_000_060_000),))

    (member,) = webhook_body(news, external_url="http://host", receiver="hook")["alerts"]  # type: ignore[misc]

    assert member["status"] == "resolved"
    assert datetime.fromisoformat(member["endsAt"]).timestamp() == 1_760_000_060


def test_only_labels_that_all_members_share_are_common():
    news = replace(NEWS, alerts=(ALERT, replace(ALERT, id=8, subject="blocks.2.mlp")))

    labels = webhook_body(news, external_url="http://host", receiver="hook")["commonLabels"]

    assert "module" not in labels and labels["block"] == "blocks.2"  # type: ignore[operator,index]


def test_a_long_list_of_members_is_cut_and_counted():
    news = replace(NEWS, alerts=tuple(replace(ALERT, id=i) for i in range(130)))

    body = webhook_body(news, external_url="http://host", receiver="hook")

    assert (len(body["alerts"]), body["truncatedAlerts"]) == (100, 30)  # type: ignore[arg-type]
    assert "and 120 more" in text(news, external_url="http://host")


def test_the_message_says_what_where_and_what_to_try():
    assert headline(NEWS) == (
        "critical: Steps move the output too much or too little in gpt: blocks.2.attn: update.own is 31x its baseline"
    )


@pytest.mark.parametrize("condition", [*CONDITION, *RUN_RULE, "user"])
def test_every_headline_says_what_is_wrong_and_not_what_should_hold(condition):
    said = headline(replace(NEWS, condition=condition))

    known = CONDITION.get(condition) or RUN_RULE.get(condition)
    assert said.startswith(f"critical: {known.fault if known else 'An alert'}") and " in gpt: " in said


def test_a_message_for_people_says_what_to_try_and_where_to_look():
    assert "Try: its learning rate." in text(NEWS, external_url="http://host")
    assert "http://host/runs/r1" in text(NEWS, external_url="http://host")


def test_the_idempotency_key_is_the_same_for_each_delivery_and_differs_between_firing_and_resolved():
    assert idempotency_key(NEWS) == idempotency_key(replace(NEWS, attempts=3))
    assert idempotency_key(NEWS) != idempotency_key(replace(NEWS, status="resolved"))
    assert idempotency_key(NEWS).isascii()


@dataclass
class Receiver:
    """A webhook receiver on this machine, which answers with these codes first and with 200 afterwards."""

    failures: list[int] = field(default_factory=list)
    calls: list[tuple[dict[str, str], dict[str, object]]] = field(default_factory=list)
    url: str = ""
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.calls.append((dict(self.headers), body))
            state.paths.append(self.path)
            self.send_response(state.failures.pop(0) if state.failures else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield state
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE_S)


@dataclass
class Queue:
    """Notifications as the store keeps them for one receiver: due until they are delivered."""

    waiting: list[Notification]
    settled: list[tuple[int, str | None]] = field(default_factory=list)
    expected: int = 1
    done: threading.Event = field(default_factory=threading.Event)

    def claim(self) -> Notification | None:
        return self.waiting[0] if self.waiting else None

    def settle(self, id: int, error: str | None) -> None:
        self.settled.append((id, error))
        if error is None:
            self.waiting = [one for one in self.waiting if one.id != id]
        if len(self.settled) >= self.expected:
            self.done.set()


def webhook(url: str, name: str = "hook") -> Address:
    return Address(url, True, name)


@pytest.fixture
def start() -> Iterator[Callable[..., Notifier]]:
    started: list[Notifier] = []

    def start(queue: Queue, address: Address, *, poll_s: float = 0.01) -> Notifier:
        notifier = Notifier(
            address, claim=queue.claim, settle=queue.settle, external_url="http://host:8237", poll_s=poll_s
        )
        started.append(notifier)
        notifier.start()
        return notifier

    yield start
    for notifier in started:
        notifier.stop()
        notifier.join(PATIENCE_S)
        assert not notifier.is_alive()


def test_a_notification_reaches_its_webhook_once(receiver, start):
    queue = Queue([NEWS])

    start(queue, webhook(receiver.url))

    assert queue.done.wait(PATIENCE_S)
    assert queue.settled == [(1, None)]
    ((headers, body),) = receiver.calls
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"] == idempotency_key(NEWS)
    assert body == webhook_body(NEWS, external_url="http://host:8237", receiver=receiver.url.removesuffix("/hook"))


def test_a_receiver_that_fails_first_gets_it_again_under_the_same_key(receiver, start):
    receiver.failures = [503, 500]
    queue = Queue([NEWS], expected=3)

    start(queue, webhook(receiver.url))

    assert queue.done.wait(PATIENCE_S)
    assert [error is None for _, error in queue.settled] == [False, False, True]
    assert "answered 503" in str(queue.settled[0][1])
    assert len({headers["Idempotency-Key"] for headers, _ in receiver.calls}) == 1


def test_a_receiver_that_is_not_there_does_not_keep_another_from_its_messages(receiver, start):
    bad, good = Queue([NEWS], expected=2), Queue([NEWS, replace(NEWS, id=2)], expected=2)

    start(bad, webhook("http://127.0.0.1:1/"))
    start(good, webhook(receiver.url))

    assert good.done.wait(PATIENCE_S) and bad.done.wait(PATIENCE_S)
    assert good.settled == [(1, None), (2, None)]
    assert all(error is not None for _, error in bad.settled)


def test_an_answer_without_an_end_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = httpx.Client(timeout=PATIENCE_S)
        thread = threading.Thread(target=answer_without_end, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        assert deliver(client, webhook(url), NEWS, external_url="http://h") is None

        client.close()
        thread.join(PATIENCE_S)


def answer_without_end(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nand so on")
        connection.settimeout(PATIENCE_S)
        while connection.recv(1 << 16):
            pass


@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # a module that Apprise's own plugins import
def test_a_chat_service_gets_the_message_through_apprise(receiver, start):
    queue = Queue([NEWS])

    start(queue, Address(receiver.url.replace("http://", "json://"), False, "chat"))

    assert queue.done.wait(PATIENCE_S)
    assert queue.settled == [(1, None)]
    assert receiver.calls[0][1]["title"] == headline(NEWS)
    assert receiver.calls[0][1]["type"] == "failure"


@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")
def test_an_address_nobody_knows_is_settled_with_an_error_that_keeps_its_secrets(start):
    queue = Queue([NEWS])

    start(queue, Address("nowhere://token-secret/x", False, "nowhere://"))

    assert queue.done.wait(PATIENCE_S)
    error = str(queue.settled[0][1])
    assert "not an address that Apprise knows" in error and "secret" not in error


def test_a_receiver_that_a_rule_names_is_told_alone_and_others_of_what_names_nobody():
    oncall = rules.Receiver(name="oncall", webhook_url="http://h/oncall", default=False)
    team = rules.Receiver(name="team", webhook_url="http://h/team")
    book = AddressBook(["http://h/all", "http://h/team"], [], [oncall, team])
    named = replace(ALERT, receivers=("oncall",))

    assert [one.url for one in book.told([ALERT])] == ["http://h/all", "http://h/team"]
    assert [one.name for one in book.told([named])] == ["oncall"]
    assert [one.url for one in book.told([named, ALERT])] == ["http://h/all", "http://h/team", "http://h/oncall"]
    assert len(book.everyone) == 3


@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")
@pytest.mark.parametrize("address", [Address("nowhere://secret/x", False, "chat"), webhook("ftp://secret@h/", "chat")])
def test_an_address_at_which_nobody_can_be_told_is_refused_without_its_secrets(address):
    with pytest.raises(SettingsError, match="receiver chat is") as refused:
        require_usable([address])

    assert "secret" not in str(refused.value)


def test_labels_and_annotations_of_rules_travel_and_what_the_server_says_stays():
    dressed = replace(ALERT, labels={"team": "a", "run": "x"}, annotations={"runbook": "http://w/"}, bound="upper")

    (member,) = webhook_body(replace(NEWS, alerts=(dressed,)), external_url="http://h", receiver="r")["alerts"]  # type: ignore[misc]

    assert (member["labels"]["team"], member["labels"]["run"], member["labels"]["bound"]) == ("a", "r1", "upper")
    assert member["annotations"]["runbook"] == "http://w/"


def test_a_repetition_is_another_piece_of_news():
    assert idempotency_key(NEWS) != idempotency_key(replace(NEWS, id=2))


def test_a_rule_of_the_users_own_is_called_by_its_name():
    loss = replace(ALERT, rule="loss_high", condition="threshold", message="model: loss is 9, over 5, since step 30")

    said = headline(replace(NEWS, condition="loss_high", alerts=(loss,)))

    assert said == "critical: Rule loss_high fires in gpt: model: loss is 9, over 5, since step 30"


def test_a_failing_store_does_not_end_the_thread(receiver, start, caplog):
    queue = Queue([NEWS])
    failures = iter([RuntimeError("database is locked")])

    def claim() -> Notification | None:
        for failure in failures:
            raise failure
        return queue.claim()

    notifier = Notifier(webhook(receiver.url), claim=claim, settle=queue.settle, external_url="http://h", poll_s=0.01)
    notifier.start()

    assert queue.done.wait(PATIENCE_S)
    notifier.stop()
    notifier.join(PATIENCE_S)
    assert queue.settled == [(1, None)]
    assert "could not be read or settled" in caplog.text


def test_waking_delivers_without_waiting_for_the_next_look(receiver):
    queue = Queue([])
    looked = threading.Event()

    def claim() -> Notification | None:
        looked.set()
        return queue.claim()

    notifier = Notifier(webhook(receiver.url), claim=claim, settle=queue.settle, external_url="http://h", poll_s=3600)
    notifier.start()
    assert looked.wait(PATIENCE_S)
    queue.waiting.append(NEWS)
    notifier.wake()

    assert queue.done.wait(PATIENCE_S)
    notifier.stop()
    notifier.join(PATIENCE_S)
    assert not notifier.is_alive()
