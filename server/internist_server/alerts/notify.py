"""Notifications: what is said about a group of alerts, and the thread that delivers it to webhooks and chats."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import apprise
import httpx

from internist.schema.alerts import Alert
from internist.schema.rules import Severity
from internist_server.alerts.address_book import Address
from internist_server.alerts.addresses import receiver_name, run_url
from internist_server.alerts.labels import NEVER, annotations, fault, fingerprint, labels, time
from internist_server.alerts.poster import Poster, post
from internist_server.errors import DeliveryError

logger = logging.getLogger(__name__)

WEBHOOK_VERSION = "4"
"""Version of Alertmanager's webhook body."""
TIMEOUT_S = 10.0
MAX_MEMBERS = 100
"""Members that a webhook body lists; the rest is counted in `truncatedAlerts`."""
MAX_LINES = 10
"""Members that a chat message lists."""
_CAUSES: dict[str, int] = {"own": 0, "weight": 0, "learning_rate": 0, "feature": 0, "model": 1}


@dataclass(frozen=True, slots=True)
class Notification:
    """News of one (run, condition): its alerts began to fire, or none fires any more."""

    id: int
    run: str
    run_name: str
    project: str
    condition: str
    status: Literal["firing", "resolved"]
    alerts: tuple[Alert, ...]
    """Members, in the order to list them."""
    attempts: int
    """Deliveries tried so far."""


def order_members(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """What shows in a module before what shows in the whole model; then the earliest, by id: the judge hands on what it
    sees at one step with the first cause first."""

    def rank(alert: Alert) -> tuple[int, int, int]:
        return (_CAUSES.get(alert.cause, 0), alert.pending_step or 0, alert.id)

    return tuple(sorted(alerts, key=rank))


def group_key(notification: Notification) -> str:
    """What identifies the group a notification belongs to."""
    return f"{{}}:{{run={json.dumps(notification.run)}, condition={json.dumps(notification.condition)}}}"


def idempotency_key(notification: Notification) -> str:
    """The same for every delivery of one piece of news, so that a receiver can drop a repetition."""
    return f"{group_key(notification)}/{notification.status}/{notification.id}"


def webhook_body(notification: Notification, *, external_url: str, receiver: str) -> dict[str, object]:
    """The body of a webhook call, in the form of Alertmanager's version 4."""
    link = run_url(notification.run, external_url=external_url)
    summary = {"summary": headline(notification), "advice": _advice(notification)}
    shown = notification.alerts[:MAX_MEMBERS]
    return {
        "version": WEBHOOK_VERSION,
        "groupKey": group_key(notification),
        "truncatedAlerts": len(notification.alerts) - len(shown),
        "status": notification.status,
        "receiver": receiver,
        "groupLabels": {"run": notification.run, "condition": notification.condition},
        "commonLabels": _common([labels(alert) for alert in notification.alerts]),
        "commonAnnotations": _common([annotations(alert, link) for alert in notification.alerts]) | summary,
        "externalURL": external_url.rstrip("/"),
        "alerts": [_member(notification, alert, link) for alert in shown],
    }


def headline(notification: Notification) -> str:
    """The news in one line: how loud, what is wrong, with which run, and the first member."""
    name = notification.run_name or notification.run
    wrong = f"{fault(notification.condition)} in {name}"
    if notification.status == "resolved":
        return f"resolved: {wrong}"
    first = notification.alerts[0].message if notification.alerts else "no members"
    return f"{_severity(notification)}: {wrong}: {first}"


def text(notification: Notification, *, external_url: str) -> str:
    """The news for a chat service: members, what to try, and where to look."""
    lines = [f"- {alert.message}" for alert in notification.alerts[:MAX_LINES]]
    more = len(notification.alerts) - len(lines)
    lines += [f"- and {more} more"] * (more > 0)
    if notification.status == "firing" and _advice(notification):
        lines.append(f"Try: {_advice(notification)}.")
    return "\n".join([*lines, run_url(notification.run, external_url=external_url)])


class Notifier(Poster):
    """Delivers to one receiver what `claim` returns, one after the other, and tells `settle` how it went. No receiver
    can end it, and none keeps another from its messages."""

    def __init__(
        self,
        address: Address,
        *,
        claim: Callable[[], Notification | None],
        settle: Callable[[int, str | None], None],
        external_url: str,
        may_be_local: bool = True,
        poll_s: float = 1.0,
    ) -> None:
        """A thread that is not started yet.

        Args:
            address: whom it tells.
            claim: the oldest notification that is due for the receiver; None: none is.
            settle: called with a notification's id and None when the receiver took it, else with what went wrong: it is
                then due again after a while, under the same idempotency key.
            external_url: this server's address as readers see it.
            may_be_local: whether a webhook may be on this machine or its link.
            poll_s: seconds between two looks at what is due, unless woken.
        """
        super().__init__("internist-notifier", timeout_s=TIMEOUT_S, may_be_local=may_be_local)
        self._address, self._claim, self._settle = address, claim, settle
        self._external_url, self._poll_s = external_url, poll_s

    def go_round(self, client: httpx.Client) -> None:
        """Delivers what is due."""
        try:
            while not self._stopping.is_set() and (notification := self._claim()) is not None:
                self._settle(notification.id, self._deliver(client, notification))
        except Exception:
            logger.exception("notifications could not be read or settled; trying again in %s s", self._poll_s)

    def wait(self) -> None:
        """Until something is queued, or it is time to look."""
        self._due.wait(self._poll_s)

    def _deliver(self, client: httpx.Client, notification: Notification) -> str | None:
        """What went wrong, or None."""
        failure = deliver(client, self._address, notification, external_url=self._external_url)
        if failure is not None:
            name, number, run = self._address.name, notification.id, notification.run
            logger.warning("notification %d of run %s failed at %s: %s", number, run, name, failure)
        return failure


def deliver(client: httpx.Client, address: Address, notification: Notification, *, external_url: str) -> str | None:
    """Tell one receiver; what went wrong, or None. Whatever its library raises, it is a delivery that failed."""
    try:
        if address.is_webhook:
            send(client, address.url, notification, external_url=external_url)
        else:
            tell(address.url, notification, external_url=external_url)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def send(client: httpx.Client, url: str, notification: Notification, *, external_url: str) -> None:
    """Delivers to a webhook.

    Raises:
        DeliveryError: it answered with an error.
        httpx.HTTPError: it did not answer.
    """
    body = webhook_body(notification, external_url=external_url, receiver=receiver_name(url))
    post(client, url, body, headers={"Idempotency-Key": idempotency_key(notification)})


def tell(url: str, notification: Notification, *, external_url: str) -> None:
    """Delivers to a chat service.

    Raises:
        DeliveryError: the address is none that Apprise knows, or the service did not take the message.
    """
    service = apprise.Apprise()
    if not service.add(url):
        raise DeliveryError("not an address that Apprise knows")
    kind = apprise.NotifyType.SUCCESS
    if notification.status == "firing":
        kind = apprise.NotifyType.FAILURE if _severity(notification) == "critical" else apprise.NotifyType.WARNING
    if not service.notify(
        title=headline(notification), body=text(notification, external_url=external_url), notify_type=kind
    ):
        raise DeliveryError("did not take the message")


def _member(notification: Notification, alert: Alert, link: str) -> dict[str, object]:
    is_over = notification.status == "resolved" or alert.state not in ("pending", "firing")
    of_alert = labels(alert)
    return {
        "status": "resolved" if is_over else "firing",
        "labels": of_alert,
        "annotations": annotations(alert, link),
        "startsAt": time(alert.opened_at_ms),
        "endsAt": time(alert.closed_at_ms) if is_over else NEVER,
        "generatorURL": link,
        "fingerprint": fingerprint(of_alert),
    }


def _common(all_labels: Sequence[dict[str, str]]) -> dict[str, str]:
    """The labels that all have, with the same value."""
    if not all_labels:
        return {}
    return {name: value for name, value in all_labels[0].items() if all(one.get(name) == value for one in all_labels)}


def _severity(notification: Notification) -> Severity:
    loudest: Severity = "info"
    order: tuple[Severity, ...] = ("info", "warning", "critical")
    for alert in notification.alerts:
        loudest = max(loudest, alert.severity, key=order.index)
    return loudest


def _advice(notification: Notification) -> str:
    return next((alert.advice for alert in notification.alerts if alert.advice), "")
