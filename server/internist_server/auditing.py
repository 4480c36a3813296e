"""The audit log: who did what to the server, as a row that stays and as a line for whoever collects logs."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import orjson

from internist.schema.access import Act
from internist_server.inputs import printable
from internist_server.logs import fields
from internist_server.store.access import add_act
from internist_server.store.database import Database

log = logging.getLogger(__name__)

MAX_DETAIL: Final = 1_000
"""Characters that are kept of what was sent."""


class Audit:
    """Writes down what was done. One object serves all threads."""

    def __init__(self, database: Database, *, clock: Callable[[], int]) -> None:
        self._database, self._clock = database, clock

    def record(self, act: str, *, actor: str, address: str, target: str = "", detail: str = "") -> None:
        """Write down that somebody did something, after it was done."""
        told = Act(self._clock(), actor, address, act, target, printable(detail[:MAX_DETAIL]))
        log.info("audit %s", orjson.dumps(told).decode(), extra=fields(audit=asdict(told)))
        with self._database.write() as session:
            add_act(session, told)
