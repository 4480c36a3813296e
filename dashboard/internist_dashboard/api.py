"""The board's read client: the server's API in, types of `internist.schema` out, with the viewer's own credentials."""

from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec

from internist.schema.alerts import AlertsPage, Delivery, Silence
from internist.schema.scaling import Scaling
from internist.schema.views import Coverage, Ranks, Routing, Run, Verdicts
from internist.schema.windows import Heatmap, PointsPage, SeriesPage, SeriesView
from internist_dashboard.errors import NotFound, NotSignedIn, Refused, ServerUnwell
from internist_dashboard.order import NEWEST, Order
from internist_dashboard.viewer import VIEWER

T = TypeVar("T")
TIMEOUT_S = 20.0
PAGE = 1_000
"""Series of one answer."""
UNDELIVERED = 100
"""Messages that no receiver took, of one answer."""
Query = Mapping[str, str | int | Sequence[int] | Sequence[str]]


class Api:
    """Reads of one server, in process or over HTTP."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None, *, base_url: str) -> None:
        self._client = httpx.AsyncClient(
            transport=transport, base_url=f"{base_url.rstrip('/')}/api/v1", timeout=TIMEOUT_S
        )

    async def runs(self, order: Order = NEWEST, *, name: str | None = None, limit: int, offset: int = 0) -> list[Run]:
        """Runs in an order; `name` is a part of their name, project or id, or of a tag."""
        return await self._get(
            "/runs", list[Run], name=name, limit=limit, offset=offset, sort=order.sort,
            reverse=str(order.is_reversed).lower(), archived=str(order.is_archived).lower(),
        )  # fmt: skip

    async def run(self, run: str) -> Run:
        """One run."""
        return await self._get(f"/runs/{quote(run, safe='')}", Run)

    async def verdicts(self, run: str, *, limit: int) -> Verdicts:
        """The verdict board of a run, with at most `limit` members."""
        return await self._get(f"/runs/{quote(run, safe='')}/verdicts", Verdicts, limit=limit)

    async def series(
        self, run: str, *, metric: str | Sequence[str], limit: int, subject: str | None = None
    ) -> tuple[SeriesView, ...]:
        """Series of one metric or of several, in forward order, at most `limit`; where they are many, in pages."""
        found: list[SeriesView] = []
        while len(found) < limit:
            size = min(PAGE, limit - len(found))
            page = await self._get(
                f"/runs/{quote(run, safe='')}/series", SeriesPage,
                metric=metric, subject=subject, limit=size, offset=len(found),
            )  # fmt: skip
            found += page.series
            if len(page.series) < size or len(found) >= page.total:
                break
        return tuple(found)

    async def largest(
        self, run: str, *, metric: str, limit: int, subject: str | None = None
    ) -> tuple[tuple[SeriesView, ...], int]:
        """Series of a metric, and how many there are; of more than `limit` the largest of each subject."""
        page = await self._get(
            f"/runs/{quote(run, safe='')}/series", SeriesPage,
            metric=metric, subject=subject, limit=limit, prefer="largest",
        )  # fmt: skip
        return page.series, page.total

    async def points(
        self, run: str, series: Sequence[int], *, first: int, last: int, pixels: int, bands: bool = False
    ) -> PointsPage:
        """Windows of several series, thinned to about `pixels` points each; `bands`: with their bands."""
        return await self._get(
            f"/runs/{quote(run, safe='')}/points",
            PointsPage,
            series=list(series),
            from_step=first,
            to_step=last,
            pixels=pixels,
            bands=str(bands).lower(),
        )

    async def heatmap(
        self, run: str, *, metric: str | None, first: int, last: int, pixels: int, rows: int,
        opened: Sequence[str] = (), subject: str | None = None,
    ) -> Heatmap:  # fmt: skip
        """Layers x steps of one metric, at most `pixels` columns; without a metric, of the one that says most.

        A row for each block, at most `rows`; for each module of the `opened` ones, or for each that matches `subject`.
        """
        return await self._get(
            f"/runs/{quote(run, safe='')}/heatmap", Heatmap,
            metric=metric, from_step=first, to_step=last, pixels=pixels, limit=rows,
            opened=list(opened) or None, subject=subject,
        )  # fmt: skip

    async def coverage(self, run: str) -> Coverage:
        """What of the model is measured, and what is not and why."""
        return await self._get(f"/runs/{quote(run, safe='')}/coverage", Coverage)

    async def ranks(self, run: str, *, limit: int) -> Ranks:
        """The ranks, those first that something is to be said of."""
        return await self._get(f"/runs/{quote(run, safe='')}/ranks", Ranks, limit=limit)

    async def routing(self, run: str) -> Routing:
        """How each parameter is stepped."""
        return await self._get(f"/runs/{quote(run, safe='')}/routing", Routing)

    async def scaling(self, *, runs: Sequence[str] = (), family: str | None = None) -> Scaling:
        """The scaling check of these runs or of a family; without either, the families there are."""
        return await self._get("/scaling", Scaling, runs=list(runs) or None, family=family)

    async def alerts(self, *, run: str | None = None, limit: int) -> AlertsPage:
        """Alerts of one run or of all: open ones first, then newest first."""
        return await self._get("/alerts", AlertsPage, run=run, limit=limit)

    async def silences(self) -> list[Silence]:
        """Silences in force, the newest first."""
        return await self._get("/silences", list[Silence])

    async def undelivered(self) -> list[Delivery]:
        """Messages that receivers did not take, the newest first."""
        return await self._get("/deliveries", list[Delivery], state=["failing", "given up"], limit=UNDELIVERED)

    async def _get(self, path: str, kind: type[T], **query: str | int | Sequence[int] | Sequence[str] | None) -> T:
        params = {name: value for name, value in query.items() if value is not None}
        return _decoded(await self._send("GET", path, params=params), kind)

    async def _send(self, method: str, path: str, *, params: Query | None = None) -> httpx.Response:
        try:
            response = await self._client.request(method, path, params=params, headers=VIEWER.get().headers)
        except httpx.HTTPError as error:
            raise ServerUnwell(f"The server did not answer ({error}).") from error
        if response.status_code in (401, 403):
            raise NotSignedIn(_reason(response))
        if response.status_code == 404:
            raise NotFound(_reason(response))
        if response.status_code == 422:
            raise Refused(_reason(response))
        if response.is_error:
            raise ServerUnwell(f"The server answered {response.status_code} to {path}: {_reason(response)}")
        return response


def _decoded(response: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise ServerUnwell(f"The server's answer was not understood: {error}.") from error


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200]
    detail = body.get("detail", body) if isinstance(body, dict) else body
    return str(detail)[:300]
