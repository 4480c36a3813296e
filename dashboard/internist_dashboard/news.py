"""What is new of a run since what a page has drawn: a few numbers for each chart, small enough for every tick."""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import FastAPI, Query, Response
from plotly.io.json import to_json_plotly

from internist.schema.views import Number, Run
from internist.schema.windows import Heatmap, Points
from internist_dashboard import cards, components
from internist_dashboard.api import Api
from internist_dashboard.errors import BoardError
from internist_dashboard.filters import compiled, subject_of
from internist_dashboard.rows import MOST_ROWS, cells, collapse
from internist_dashboard.words import against

PATH: Final = "/_board/runs/{run}/news"
COLUMNS: Final = 60
"""New steps that a page can take as news; where there are more, it asks for everything anew."""
MAX_SERIES: Final = 256
_DIGITS: Final = 5


def register(server: FastAPI, api: Api) -> None:
    """The route of the news, beside the pages."""

    @server.get(PATH, include_in_schema=False)
    async def read_news(
        run: str,
        after: int,
        lines: str = "",
        heads: str = "",
        metric: str | None = None,
        opened: str = Query("", alias="open"),
        text: str = Query("", alias="filter"),
    ) -> Response:
        try:
            said = await news(
                api, run, after=after, lines=_numbers(lines), heads=_numbers(heads), metric=metric,
                opened=[name for name in opened.split(",") if name], text=text,
            )  # fmt: skip
        except BoardError as error:
            return Response(orjson.dumps({"error": str(error)}), 503, media_type="application/json")
        return Response(said, media_type="application/json")


async def news(
    api: Api, name: str, *, after: int, lines: Sequence[int], heads: Sequence[int], metric: str | None,
    opened: Sequence[str], text: str,
) -> bytes:  # fmt: skip
    """The news of a run as JSON.

    Args:
        api: whom to ask.
        name: the run.
        after: the last step that is drawn.
        lines: series that are drawn as lines.
        heads: series that are drawn as rows of logits.
        metric: of the heat map; None: no heat map is drawn.
        opened: its blocks that are open.
        text: the page's filter.
    """
    run = await api.run(name)
    last = run.last_step if run.last_step is not None else after
    asked = [*lines, *heads]
    points, heatmap = await asyncio.gather(
        _points(api, name, asked, first=after + 1, last=last), _heatmap(api, name, metric, opened, text, after, last)
    )
    by_id = {one.series.id: one for one in points}
    return orjson.dumps(
        {
            "cursor": run.cursor,
            "epoch": epoch(run),
            "last": last,
            "badge": orjson.loads(to_json_plotly(components.run_badge(run))),
            "facts": {key: value for key, value in cards.told(run).items() if isinstance(value, str)},
            "lines": {str(one): _line(by_id[one]) for one in lines if one in by_id},
            "heads": {str(one): _highs(by_id[one]) for one in heads if one in by_id},
            "heat": None if heatmap is None else _heat(heatmap, opened, text),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def epoch(run: Run) -> str:
    """Differs where more of a page has changed than its numbers: then it is drawn anew."""
    said = (run.state, run.verdict, run.sentence, run.violated, run.drifting, run.open_alerts, run.series,
            len(run.attempts))  # fmt: skip
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


async def _points(api: Api, name: str, asked: Sequence[int], *, first: int, last: int) -> tuple[Points, ...]:
    if not asked or first > last:
        return ()
    return (await api.points(name, asked[:MAX_SERIES], first=first, last=last, pixels=COLUMNS)).windows


async def _heatmap(
    api: Api, name: str, metric: str | None, opened: Sequence[str], text: str, after: int, last: int
) -> Heatmap | None:
    if metric is None or after >= last:
        return None
    return await api.heatmap(
        name, metric=metric, first=after + 1, last=last, pixels=COLUMNS, rows=MOST_ROWS, opened=opened,
        subject=subject_of(text),
    )  # fmt: skip


def _heat(heatmap: Heatmap, opened: Sequence[str], text: str) -> dict[str, Any]:
    """New columns, a row of the heat map each; whether any cell is not finite, which is drawn with marks."""
    rows = collapse(heatmap, opened=opened, pattern=compiled(text))[:MOST_ROWS]
    numbers = cells(rows, heatmap.steps)
    return {
        "x": heatmap.steps,
        "rows": len(rows),
        "against": against(heatmap.basis),
        "ratios": [[_short(x) for x in row] for row in numbers.ratios.tolist()],
        "values": [[_short(x) for x in row] for row in numbers.values.tolist()],
        "marked": bool(numbers.nonfinite.any()),
    }


def _line(points: Points) -> dict[str, Any]:
    return {"x": points.steps, "y": [_real(x) for x in points.values], "marked": any(points.nonfinite)}


def _highs(points: Points) -> dict[str, Any]:
    return {"x": points.steps, "y": [_real(x) for x in points.high], "marked": any(points.nonfinite)}


def _real(value: Number) -> float | None:
    return None if value is None else _short(float(value))


def _short(x: float) -> float | None:
    """A value to the digits that a chart shows; JSON has no other numbers than finite ones."""
    return float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.isdecimal() and len(part) < 19]
