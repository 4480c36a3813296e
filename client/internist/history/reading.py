"""Reads runs back from a server: `internist.read().run("gpt-3f2a").frame(metric="loss")`."""

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

from internist.errors import ConfigurationError, NotInternist, RequestRefused
from internist.history.curves import Curve, History, number
from internist.history.frames import Frame, Library, frame
from internist.schema.alerts import AlertsPage
from internist.schema.views import Coverage, Run, Usage, Verdicts
from internist.schema.windows import Points, PointsPage, SeriesPage, SeriesView
from internist.ship.connection import DEFAULT_SERVER, Connection
from internist.ship.credentials import token_for

PATIENCE_S: Final = 60.0
_MOST_BYTES: Final = 256 << 20
_PIXELS: Final = 10_000
"""Points of a series in one answer; more come in several."""
_WINDOWS: Final = 16
_PAGE: Final = 1_000
_NOT_FOUND, _NOT_ALLOWED = 404, 405
_T = TypeVar("_T")


class Server:
    """A server that runs are read from. Use it in a `with` block, or let it go.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def runs(self, *, project: str | None = None, name: str | None = None) -> list[Run]:
        """Runs, newest first.

        Args:
            project: only of this project.
            name: a part of the run's name or id.
        """
        found: list[Run] = []
        while True:
            page = self._connection.read(
                "runs", tuple[Run, ...], project=project, name=name, limit=_PAGE, offset=len(found)
            )
            found += page
            if len(page) < _PAGE:
                return found

    def run(self, run: str) -> "StoredRun":
        """A run by its id, or by its name where no other run has it.

        Raises:
            ConfigurationError: there is none, or several.
        """
        try:
            return StoredRun(self._connection, self._connection.read(f"runs/{quote(run, safe='')}", Run))
        except RequestRefused as error:
            if error.status != _NOT_FOUND:
                raise
        named = [one for one in self.runs(name=run) if one.name == run]
        if len(named) == 1:
            return StoredRun(self._connection, named[0])
        if named:
            raise ConfigurationError(f"{len(named)} runs are called {run!r}: {', '.join(one.id for one in named)}")
        raise ConfigurationError(f"{self._connection.server} has no run {run!r}, by id or by name")

    def open_alerts(self) -> AlertsPage:
        """Alerts of all runs that are open, newest first."""
        return self._connection.read("alerts", AlertsPage, state=["firing"], limit=_PAGE)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StoredRun:
    """A run on a server.

    Attributes:
        view: what the runs table shows of it, as it was when it was read.
    """

    def __init__(self, connection: Connection, view: Run) -> None:
        self._connection = connection
        self.view = view

    @property
    def id(self) -> str:
        """Its id."""
        return self.view.id

    def series(self, *, metric: str | Sequence[str] | None = None, subject: str | None = None) -> list[SeriesView]:
        """Its series in forward order.

        Args:
            metric: names of metrics; all without.
            subject: a regular expression that is searched for in subjects.
        """
        found: list[SeriesView] = []
        while True:
            page = self._read(
                "series", SeriesPage, metric=_listed(metric), subject=subject, limit=_PAGE, offset=len(found)
            )
            found += page.series
            if len(found) >= page.total or not page.series:
                return found

    def curves(
        self,
        *,
        metric: str | Sequence[str] | None = None,
        subject: str | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Curve]:
        """Series with all their points: as `series`, of the steps from `first` to `last`."""
        chosen = [one for one in self.series(metric=metric, subject=subject) if one.last_step is not None]
        newest = max((one.last_step for one in chosen if one.last_step is not None), default=0)
        curves: list[Curve] = []
        for place in range(0, len(chosen), _WINDOWS):
            batch = chosen[place : place + _WINDOWS]
            pieces = list(self._pieces([one.id for one in batch], first, newest if last is None else last))
            for one in batch:
                points = [window for window in pieces if window.series.id == one.id]
                curves.append(_curve(one, points))
        return curves

    def frame(
        self,
        metric: str | Sequence[str] | None = None,
        *,
        subject: str | None = None,
        first: int = 0,
        last: int | None = None,
        library: Library | None = None,
    ) -> Any:
        """Points as a table: a row each, with metric, kind, subject, index, step, time and value.

        Args:
            metric: names of metrics; all without.
            subject: a regular expression that is searched for in subjects.
            first: first step.
            last: last step; None: the newest.
            library: `pandas`, `polars` or `arrow`; None: pandas where it is installed, else polars, else arrow.

        Returns:
            A data frame or a table of that library; both are made of Arrow's columns.

        Raises:
            ModuleNotFoundError: the library, or pyarrow, is not installed.
        """
        curves = self.curves(metric=metric, subject=subject, first=first, last=last)
        return frame(Frame.of([History(self.id, self.view.name, self.view.project, curves=curves)]), library)

    def history(self, *, metric: str | Sequence[str] | None = None, subject: str | None = None) -> History:
        """Everything that exports are made of."""
        curves = self.curves(metric=metric, subject=subject)
        return History(self.id, self.view.name, self.view.project, dict(self.view.config), curves)

    def verdicts(self, limit: int = 500) -> Verdicts:
        """What the judge says: cards, blocks, and series, worst first."""
        return self._read("verdicts", Verdicts, limit=limit)

    def coverage(self) -> Coverage:
        """What of the model is measured, and what is not and why."""
        return self._read("coverage", Coverage)

    def alerts(self) -> AlertsPage:
        """Alerts, open ones first."""
        return self._connection.read("alerts", AlertsPage, run=self.id, limit=_PAGE)

    def points(self, series: Sequence[int], *, pixels: int) -> PointsPage:
        """Windows of series over all steps, at most so many points wide."""
        return self._read("points", PointsPage, series=list(series), pixels=pixels)

    def delete(self) -> None:
        """Delete it with all that the server holds of it.

        Raises:
            RequestRefused: the server will not, for example because the run is under way.
            ConfigurationError: the server is of a version that cannot delete runs.
        """
        try:
            self._connection.delete(f"runs/{quote(self.id, safe='')}", Usage)
        except NotInternist as error:
            if error.status != _NOT_ALLOWED:
                raise
            raise ConfigurationError(f"{self._connection.server} is of a version that cannot delete runs") from error

    def _pieces(self, ids: list[int], first: int, last: int) -> Iterable[Points]:
        """Windows of series, each of consecutive steps and none of them thinned, in order."""
        page = self._read("points", PointsPage, series=ids, from_step=first, to_step=last, pixels=_PIXELS)
        thinned = [window.series.id for window in page.windows if window.thinned]
        yield from (window for window in page.windows if not window.thinned)
        if thinned:
            middle = (first + last) // 2
            yield from self._pieces(thinned, first, middle)
            yield from self._pieces(thinned, middle + 1, last)

    def _read(self, what: str, reply: type[_T], **asked: object) -> _T:
        return self._connection.read(f"runs/{quote(self.id, safe='')}/{what}", reply, **asked)


def read(server: str | None = None, token: str | None = None) -> Server:
    """A server, to read its runs.

    Args:
        server: its address; default: INTERNIST_SERVER, else http://127.0.0.1:8237.
        token: what it asks for; default: INTERNIST_TOKEN, else what `internist login` kept.

    Raises:
        ConfigurationError: the address or the token cannot be one.
    """
    address = server or os.environ.get("INTERNIST_SERVER") or DEFAULT_SERVER
    return Server(Connection(address, token_for(address, token), timeout=PATIENCE_S, most=_MOST_BYTES))


def _curve(series: SeriesView, windows: Sequence[Points]) -> Curve:
    steps = [step for window in windows for step in window.steps]
    times = [time for window in windows for time in window.times_ms]
    values = [number(value) for window in windows for value in window.values]
    return Curve(series.metric, series.kind, series.subject, series.index, steps, times, values)


def _listed(metric: str | Sequence[str] | None) -> list[str] | None:
    return [metric] if isinstance(metric, str) else None if metric is None else list(metric)
