"""The way out of the store: queued notifications to their receivers, what fires to Alertmanagers."""

from collections.abc import Callable, Collection, Sequence

from internist.schema.rules import QUIET_AFTER_S
from internist.schema.views import Alert
from internist_server.alerts.alertmanager import Pusher
from internist_server.alerts.notify import Notification, Notifier, order_members
from internist_server.alerts.rules import Receiver
from internist_server.settings import Settings
from internist_server.store import alerts, notifications
from internist_server.store.database import Database


def make_notifier(
    database: Database, settings: Settings, receivers: Sequence[Receiver], *, clock: Callable[[], int]
) -> Notifier | None:
    """The thread that delivers notifications, to those of the settings and to these; None without receivers."""
    if not (settings.webhook_url or settings.apprise_urls or receivers):
        return None

    def claim() -> list[Notification]:
        with database.read() as session:
            if not notifications.is_due(session, now_ms=clock()):
                return []
        with database.write() as session:
            return [_notification(queued) for queued in notifications.claim(session, now_ms=clock())]

    def settle(notification: int, error: str | None) -> None:
        with database.write() as session:
            notifications.settle(session, notification, error, now_ms=clock())

    return Notifier(
        claim=claim,
        settle=settle,
        webhooks=settings.webhook_url,
        apprise_urls=settings.apprise_urls,
        external_url=settings.address,
        receivers=receivers,
    )


def make_pushers(database: Database, settings: Settings, *, clock: Callable[[], int]) -> list[Pusher]:
    """A thread for each Alertmanager."""

    def read_firing(runs: Collection[str] | None) -> list[Alert]:
        with database.read() as session:
            return alerts.current(session, runs=runs, moments_since_ms=clock() - int(QUIET_AFTER_S * 1000))

    def read_ended(since_ms: int) -> list[Alert]:
        with database.read() as session:
            return alerts.closed_since(session, since_ms)

    return [
        Pusher(
            url,
            read_firing=read_firing,
            read_ended=read_ended,
            external_url=settings.address,
            refresh_s=settings.alertmanager_refresh_s,
            clock=clock,
        )
        for url in settings.alertmanager_url
    ]


def _notification(queued: notifications.Queued) -> Notification:
    return Notification(
        id=queued.id,
        run=queued.run,
        run_name=queued.run_name,
        project=queued.project,
        condition=queued.condition,
        status=queued.status,
        alerts=order_members(queued.alerts),
        attempts=queued.attempts,
    )
