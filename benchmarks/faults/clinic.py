"""A real server in this process, to which a watched run is shipped in step with its training.

The client writes its spool as it does everywhere; after each sampled step what is new in it goes to the API, is judged,
and what the reply asks for goes back, as if a step took longer than the way there. So what a user would have been told
at each step does not depend on the speed of this machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient

from internist.demo.receiver import Receiver
from internist.monitor.monitor import Monitor
from internist.schema.wire import SPOOL_CONTENT_TYPE, FramesReply, RunStart, RunStarted
from internist.ship.delivery import Delivery
from internist.ship.reader import SpoolReader
from internist.ship.segments import read_start
from internist_migrations.upgrade import upgrade
from internist_server.app import create_api
from internist_server.clocks import system_clock_ms
from internist_server.settings import Settings
from internist_server.store import deliveries, notifications


class Clinic:
    """The server with its receiver of notifications.

    Attributes:
        api: a client of its API.
        bodies: what the receiver was told, in order.
        now_ms: what the server takes for the present; None: the present.
    """

    def __init__(self, settings: Settings, receiver: Receiver) -> None:
        self.now_ms: int | None = None
        self.api = TestClient(create_api(settings, clock=self._clock))
        self.bodies: list[dict[str, Any]] = receiver.bodies

    def get(self, path: str, **query: Any) -> Any:
        """A JSON answer."""
        answer = self.api.get(f"/api/v1{path}", params=query)
        answer.raise_for_status()
        return answer.json()

    def settle(self) -> None:
        """Wait until every notification that was queued is delivered."""
        services = self.api.app.state.services  # type: ignore[attr-defined]  # it is our FastAPI
        while True:
            with services.database.read() as session:
                if not deliveries.counts(session) and not notifications.has_new(session):
                    return

    def _clock(self) -> int:
        return system_clock_ms() if self.now_ms is None else self.now_ms

    # ---- what a delivery asks of a connection ----------------------------------------------------------------------

    server = "in process"

    def start_run(self, start: RunStart) -> RunStarted:
        """Tell the server who speaks."""
        answer = self.api.post(
            "/api/v1/runs", content=msgspec.json.encode(start), headers={"Content-Type": "application/json"}
        )
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=RunStarted)

    def send(self, run: str, body: bytes, *, attempt: str, rank: int) -> FramesReply:
        """Hand over a slice of a spool."""
        answer = self.api.post(
            f"/api/v1/runs/{run}/frames",
            params={"attempt": attempt, "rank": rank},
            content=body,
            headers={
                "Content-Type": SPOOL_CONTENT_TYPE, "X-Internist-Attempt": attempt, "X-Internist-Rank": str(rank)
            },
        )  # fmt: skip
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=FramesReply)


class Shipment:
    """One run's way to the server."""

    def __init__(self, monitor: Monitor, clinic: Clinic) -> None:
        assert monitor._spool is not None and monitor._recorder is not None and monitor._observer is not None
        self._monitor, self._recorder, self._observer = monitor, monitor._recorder, monitor._observer
        directory = monitor._spool.directory
        start = read_start(directory)
        assert start is not None
        self._delivery = Delivery(SpoolReader(directory), start, clinic)  # type: ignore[arg-type]  # all it asks for
        self._delivery.begin()

    @property
    def is_sampled(self) -> bool:
        """Whether the step under way is."""
        return self._observer._due.light

    def ship(self) -> None:
        """Send what there is, and pass on what the server wishes."""
        self._recorder.drain(everything=True)
        while True:
            body, last = self._delivery.read()
            if not body:
                return
            reply = self._delivery.send(body, last)
            if reply is not None and reply.directives and not self._monitor.is_finished:
                self._monitor._direct(reply.directives)


@contextmanager
def clinic(folder: Path) -> Iterator[Clinic]:
    """A server with its database in a folder, and a receiver."""
    for name in [name for name in os.environ if name.startswith("INTERNIST_")]:
        del os.environ[name]
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder / 'internist.db'}"
    upgrade(url)
    receiver = Receiver(lambda _: None)
    try:
        server = Clinic(Settings(database_url=url, webhook_url=(receiver.url,)), receiver)
        with server.api:
            yield server
    finally:
        receiver.close()
