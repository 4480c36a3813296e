"""The ASGI app: the API, the board beside it, and the threads that work in the background."""

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

import httpx
from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from internist_server import observability
from internist_server.alerts.notify import Notifier
from internist_server.alerts.poster import Poster
from internist_server.alerts.rule_files import read_rules
from internist_server.auditing import Audit
from internist_server.auth import TokenGate
from internist_server.boards import Boards
from internist_server.browsers import BrowserGuard
from internist_server.changes import Changes
from internist_server.clocks import ServerClock, as_server_clock
from internist_server.compactor import Compactor
from internist_server.handling import Handling
from internist_server.ingest import Ingest
from internist_server.journal import Journal
from internist_server.keyring import Keyring
from internist_server.overload import Lanes, Overload
from internist_server.readiness import Readiness
from internist_server.receivers import make_notifiers, make_pushers, retire_receivers
from internist_server.routes import (
    alerts,
    catalogue,
    checks,
    deliveries,
    documents,
    frames,
    health,
    login,
    problems,
    rules,
    runs,
    scaling,
    silences,
    stream,
    tokens,
    windows,
)
from internist_server.routes.access import require_access
from internist_server.routes.asked import require_plain
from internist_server.routes.services import Services
from internist_server.rulebook import RuleBook
from internist_server.scaling import Scalings
from internist_server.settings import Settings, require_allowed, require_safe
from internist_server.store.database import Database
from internist_server.store.retention import Retention
from internist_server.throttle import Throttle
from internist_server.underpath import UnderPath

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
LAST_S: Final = 1.5
"""Seconds in which threads may end what they are at; what they leave undone is undone in the database, too."""
_ROUTES: Final = (
    frames, runs, checks, windows, stream, scaling, alerts, silences, deliveries, rules, tokens, catalogue, health,
    login,
)  # fmt: skip
_API_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/login", "/logout"})


def create_app(settings: Settings, *, board: bool = True, clock: Callable[[], int] | None = None) -> Journal:
    """The whole server as one ASGI app. The database must have been migrated.

    Args:
        settings: of this server.
        board: whether the dashboard is served, too.
        clock: ms since 1970; None: the machine's.

    Raises:
        SettingsError: the settings would expose the server.
        RulesError: the file of rules is wrong.
    """
    require_safe(settings)
    api = create_api(settings, clock=clock)
    services: Services = api.state.services
    gate = partial(TokenGate, keyring=services.keyring, throttle=services.throttle)
    pages = _create_board(gate(api), settings.base_path) if board else api
    overload = Overload(Dispatcher(api, pages), max_request_bytes=settings.max_request_bytes, lanes=services.lanes)
    guarded: ASGIApp = BrowserGuard(gate(overload), settings)
    if settings.base_path:
        guarded = UnderPath(guarded, settings.base_path)
    return Journal(guarded, writes=settings.access_log, on_close=overload.close)


def create_api(settings: Settings, *, clock: Callable[[], int] | None = None) -> FastAPI:
    """The HTTP API alone, without the token's gate."""
    clock = ServerClock() if clock is None else as_server_clock(clock)
    book = RuleBook(read_rules(settings.rules) if settings.rules is not None else None)
    require_allowed(settings, (one.webhook_url for one in book.receivers if one.webhook_url is not None))
    database = Database(settings.database_url)
    changes = Changes()
    notifiers = make_notifiers(database, settings, book.receivers, clock=clock)
    pushers = make_pushers(database, settings, clock=clock)
    for pusher in pushers:
        changes.follow(pusher.changed)
    ingest = Ingest(
        database,
        changes,
        max_series=settings.max_series_per_run,
        book=book,
        policy=settings.policy if notifiers else None,
        on_queued=partial(_wake, notifiers),
        clock=clock,
    )
    handling = Handling(database, ingest, book, clock=clock)
    retention = Retention(
        settings.keep_points_days, settings.keep_points_days_of, settings.keep_points_mib, settings.keep_points_mib_of
    )
    ticker, compactor = Ticker(ingest), Compactor(database, retention=retention, clock=clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threads: list[Ticker | Compactor | Poster] = [ticker, compactor, *notifiers, *pushers]
        if notifiers:
            retire_receivers(database, settings, book.receivers, clock=clock)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.stop()
            until = time.monotonic() + LAST_S  # of all of them together
            for thread in threads:
                thread.join(timeout=max(0.0, until - time.monotonic()))
            database.close()

    api = FastAPI(
        title="Internist",
        version=version("internist"),
        description="Measures of training runs, what the judge says of them, and alerts.",
        lifespan=lifespan,
        dependencies=[Depends(require_plain), Depends(require_access)],
        docs_url=None,  # its pages load scripts from other hosts
        redoc_url=None,
    )
    keyring, audit = Keyring(database, settings.token, clock=clock), Audit(database, clock=clock)
    api.state.services = Services(
        settings, database, ingest, handling, book, changes, Boards(), Scalings(), keyring, Throttle(), audit, clock,
        Readiness(database, settings.database_url), Lanes.usual(), CapacityLimiter(2),
    )  # fmt: skip
    for module in _ROUTES:
        api.include_router(module.router)
    problems.install(api)
    documents.install(api)
    return api


class Dispatcher:
    """Sends each request to the API or to the board. The lifespan is the API's."""

    def __init__(self, api: ASGIApp, pages: ASGIApp) -> None:
        self._api = api
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        is_api = scope["type"] == "lifespan" or scope["path"].startswith("/api/") or scope["path"] in _API_PATHS
        await (self._api if is_api else self._pages)(scope, receive, send)


class Ticker(threading.Thread):
    """Lets time pass for ingest: silent ranks, lost and stalled runs."""

    def __init__(self, ingest: Ingest, *, every_s: float = TICK_S) -> None:
        super().__init__(name="internist-ticker", daemon=True)
        self._ingest = ingest
        self._every_s = every_s
        self._stopping = threading.Event()

    def run(self) -> None:
        """Tick until stopped."""
        while not self._stopping.wait(self._every_s):
            try:
                with observability.ticking():
                    self._ingest.tick()
            except Exception:
                log.exception("a tick failed; the next one follows in %s s", self._every_s)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()


def _wake(notifiers: Sequence[Notifier]) -> None:
    """Tell all who deliver that a message is queued."""
    for notifier in notifiers:
        notifier.wake()


def _create_board(api: ASGIApp, base_path: str) -> ASGIApp:
    """The dashboard, which reads the API in process, with its viewer's own credentials."""
    module: Any = import_module("internist_dashboard.app")
    board: ASGIApp = module.create_board(httpx.ASGITransport(app=api), base_path=base_path)
    return board
