"""The way out of the store: queued notifications to their receivers, what fires to Alertmanagers."""

from collections.abc import Callable, Collection, Sequence

from internist.schema.alerts import Alert
from internist.schema.rules import QUIET_AFTER_S
from internist_server import observability
from internist_server.alerts.address_book import Address, AddressBook
from internist_server.alerts.alertmanager import Pusher
from internist_server.alerts.notify import Notification, Notifier, order_members
from internist_server.alerts.rules import Receiver
from internist_server.settings import Settings
from internist_server.store import alerts, deliveries, notifications
from internist_server.store.database import Database


def book_of(settings: Settings, receivers: Sequence[Receiver]) -> AddressBook:
    """The receivers of the settings, and these."""
    return AddressBook(settings.webhook_url, settings.apprise_urls, receivers)


def make_notifiers(
    database: Database, settings: Settings, receivers: Sequence[Receiver], *, clock: Callable[[], int]
) -> list[Notifier]:
    """A thread for each receiver that delivers its notifications."""
    book = book_of(settings, receivers)
    return [_notifier(database, book, one, settings, clock=clock) for one in book.everyone]


def retire_receivers(
    database: Database, settings: Settings, receivers: Sequence[Receiver], *, clock: Callable[[], int]
) -> None:
    """Give up what waits for receivers that there are no more."""
    book = book_of(settings, receivers)
    with database.write() as session:
        deliveries.give_up_others(session, [one.key for one in book.everyone], now_ms=clock())


def _notifier(
    database: Database, book: AddressBook, address: Address, settings: Settings, *, clock: Callable[[], int]
) -> Notifier:
    def claim() -> Notification | None:
        with database.read() as session:
            if not deliveries.has_work(session, address.key, now_ms=clock()):
                return None
        with database.write() as session:
            deliveries.address(session, book.told, now_ms=clock())
            queued = deliveries.claim(session, address.key, now_ms=clock())
        return None if queued is None else _notification(queued)

    def settle(notification: int, error: str | None) -> None:
        with database.write() as session:
            deliveries.settle(session, notification, address.key, error, now_ms=clock())
        observability.count_delivery(address.name, is_taken=error is None)

    may_be_local = settings.may_call_itself
    return Notifier(address, claim=claim, settle=settle, external_url=settings.address, may_be_local=may_be_local)


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
