"""The way from queued notifications to their receivers."""

from collections.abc import Callable

from internist_server.alerts.notify import Notification, Notifier, order_members
from internist_server.settings import Settings
from internist_server.store import notifications
from internist_server.store.database import Database


def make_notifier(database: Database, settings: Settings, *, clock: Callable[[], int]) -> Notifier | None:
    """The thread that delivers notifications; None without receivers."""
    if not has_receivers(settings):
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
    )


def has_receivers(settings: Settings) -> bool:
    """Whether anyone wants to be told of alerts."""
    return bool(settings.webhook_url or settings.apprise_urls)


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
