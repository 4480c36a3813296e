"""Wiring: `create_board(transport)` makes the board as an ASGI application."""

import asyncio
import logging
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import dash
import dash_mantine_components as dmc
import httpx
from dash import Input, Output, State, dcc, html
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from internist_dashboard import browser, components, news, theme
from internist_dashboard.api import Api
from internist_dashboard.components import Node
from internist_dashboard.errors import BoardError, NotFound, NotSignedIn
from internist_dashboard.links import link, page_at
from internist_dashboard.order import order_of
from internist_dashboard.pages import alerts, compare, conditions, detail, optimizer, ranks, run, runs, scaling
from internist_dashboard.policy import Guarded, hashes_of
from internist_dashboard.questions import Questions
from internist_dashboard.shared import SharedAnswers
from internist_dashboard.statics import CompressedStatics, fingerprint
from internist_dashboard.viewer import GRANT, VIEWER, viewer_of

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
INDEX = (ASSETS / "index.html").read_text(encoding="utf-8")
PLOTLY = "plotly.min.js"
"""What charts are drawn with: made by `dashboard/charts`, and fetched only where there is a chart."""
COMPRESS_OVER = 1_024
UNUSED = ("dash/deps/polyfill", "dash/dash_table/")
"""Scripts of Dash's that no page needs: for browsers of ten years ago, and for tables that are not drawn."""
OWN_PATHS = ("/_dash-", "/_board/", "/assets/")
"""Everything else is a page."""


class Pages(dash.Dash):  # type: ignore[misc]  # Dash has no types
    """Dash, with the scripts alone that the board's pages need."""

    def interpolate_index(self, **parts: str) -> str:
        """The page that is the same for all addresses."""
        scripts = parts["scripts"].splitlines()
        kept = [one for one in scripts if not any(path in one for path in UNUSED)]
        return str(super().interpolate_index(**{**parts, "scripts": "\n".join(kept)}))


class Board:
    """The board as ASGI: notes who asks, guards what is sent, serves static files from memory, compresses the rest."""

    def __init__(self, server: ASGIApp, board: dash.Dash, hashes: Iterable[str], *, base: str = "") -> None:
        self._base = base
        packed = CompressedStatics(SharedAnswers(GZipMiddleware(server, minimum_size=COMPRESS_OVER, compresslevel=6)))
        self._app = Guarded(Questions(packed, board), hashes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request with the viewer's own credentials at hand."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "the board needs no socket"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not path.startswith(OWN_PATHS):
            # Dash answers pages at its root alone: its catch-all is set up at a lifespan event, which the API receives.
            path = "/assets/favicon.svg" if path == "/favicon.ico" else "/"
        viewer = viewer_of(scope.get("scheme", "http"), scope["headers"], grant=scope.get(GRANT), base=self._base)
        token = VIEWER.set(viewer)
        try:
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
        finally:
            VIEWER.reset(token)


def create_board(
    transport: httpx.AsyncBaseTransport | None, *, base_url: str = "http://internist", base_path: str = ""
) -> Board:
    """The board over a server's API, in process (an ASGI transport) or over HTTP (None and a base URL).

    It serves every path; `/` is the table of runs, `/runs/<id>` one run, `/scaling` families of runs, `/alerts` the
    alerts. People reach it under `base_path`, which is taken off before it is asked.
    """
    index = INDEX.replace("{plotly}", f"{{base}}/assets/{PLOTLY}?m={fingerprint(ASSETS / PLOTLY)}")
    index = index.replace("{base}", escape(base_path))
    api = Api(transport, base_url=base_url)
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = Pages(
        "internist_dashboard",
        server=server,
        backend="fastapi",
        title="Internist",
        update_title=None,
        use_pages=False,
        routes_pathname_prefix="/",
        requests_pathname_prefix=f"{base_path}/",
        assets_folder=str(ASSETS),
        assets_ignore=rf".*\.html|{re.escape(PLOTLY)}",
        index_string=index,
        suppress_callback_exceptions=True,
        add_log_handler=False,
        on_error=_tell,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.backend.websocket_capability = False  # else every page opens a socket that nothing uses
    app.layout = shell()
    news.register(server, api)
    _route(app, api)
    for page in (runs, run, optimizer, ranks, detail, scaling, compare, alerts):
        page.register(app, api)
    conditions.register(app)
    browser.wire(app)
    app._setup_server()  # what it does at its first request, so that it is known from the first on what may be asked
    # Dash's own inline scripts, and the one that chooses the colours before anything is drawn.
    return Board(server, app, [*(f"'{one}'" for one in _dash_hashes(app)), *hashes_of(index)], base=base_path)


def _dash_hashes(app: dash.Dash) -> list[str]:
    return [one.strip("'") for one in app.csp_hashes()]


def shell() -> Node:
    """What all pages share: the theme, the state of the view, the drawer."""
    stores = [
        dcc.Store(id=name)
        for name in (
            "page",
            "tick",
            "scheme",
            "narrow",
            "window",
            "heat",
            "filter",
            "panel",
            "detail-tick",
            "scaling-view",
        )
    ]
    return dmc.MantineProvider(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            *stores,
            html.Div(id="notice", role="alert"),
            html.Div(id="content"),
        ],
        id="mantine",
        theme=theme.MANTINE,
        defaultColorScheme="auto",
    )


async def page_of(path: str, api: Api, search: str | None = None) -> tuple[Node, dict[str, Any]]:
    """The page at a path, and what it is; what cannot be drawn says what happened, what is safe, what to do."""
    parts = [part for part in path.split("/") if part]
    asked = dict(parse_qsl((search or "").lstrip("?")))
    try:
        match parts:
            case []:
                first, text = _place(asked.get("first")), asked.get("filter", "")
                order = order_of(asked)
                found_runs = await runs.page_of_runs(api, order, first=first, search=text)
                page = {"kind": "runs", "headline": runs.headline(found_runs)}
                return runs.layout(found_runs, order, first=first, search=text), page
            case ["runs", name]:
                found = await api.run(unquote(name))
                return run.layout(found, axis=asked.get("axis")), {
                    "kind": "run",
                    "run": found.id,
                    "cursor": found.cursor,
                    "headline": run.headline(found),
                }
            case ["compare"]:
                names = [name for name in asked.get("runs", "").split(",") if name][: compare.MOST_RUNS]
                if not names:
                    raise NotFound("No runs are named to compare: choose some on the page of all runs.")
                chosen = await asyncio.gather(*(api.run(name) for name in names))
                return compare.layout(chosen), {"kind": "compare", "runs": [one.id for one in chosen]}
            case ["scaling"]:
                return scaling.layout(), {"kind": "scaling"}
            case ["conditions", *names] if len(names) < 2:
                chosen_name = unquote(names[0]) if names else None
                return conditions.layout(chosen_name), {"kind": "conditions", "condition": chosen_name}
            case ["alerts"]:
                one = asked.get("run")
                of_run, silences, undelivered = await asyncio.gather(
                    api.alerts(run=one, limit=alerts.LIMIT), api.silences(), api.undelivered()
                )
                headline = alerts.headline(of_run)
                shown = alerts.layout(of_run, silences, undelivered, run=one)
                return shown, {"kind": "alerts", "of": one, "headline": headline}
            case _:
                raise NotFound(f"There is no page {path}.")
    except NotSignedIn:
        what = "This server asks for a token, and none that it knows was shown."
        body = components.problem(
            "Sign in",
            what,
            safe="Training and recording go on.",
            do=html.A("Sign in with a token", href=link(f"/login?next={quote(link(path))}"), className="link"),
        )
    except NotFound as error:
        body = components.problem(
            "Not found",
            str(error),
            safe="Nothing was changed.",
            do=dcc.Link("All runs", href=link("/"), className="link"),
        )
    except BoardError as error:
        body = components.problem(
            "The board cannot reach its server",
            str(error),
            safe="Training goes on; what it measures waits in its spool.",
            do="Check that `internist serve` runs, then load this page again.",
        )
    return html.Div([components.header([]), html.Main(body, className="page", id="main")]), {"kind": "problem"}


def _place(text: str | None) -> int:
    """Where a page of a list begins, as the address says it."""
    return int(text) if text and text.isdecimal() and len(text) < 10 else 0


def _tell(error: Exception) -> None:
    """A callback failed: what is drawn stays, the viewer is told, and what is not the server's silence is logged."""
    if isinstance(error, BoardError):
        what = str(error)
    else:
        logger.error("a callback of the board failed", exc_info=error)
        what = "A part of this page could not be drawn; the server's log says why."
    dash.set_props("notice", {"children": components.notice(what)})


def _route(app: dash.Dash, api: Api) -> None:
    @app.callback(  # type: ignore[untyped-decorator]
        Output("content", "children"),
        Output("page", "data"),
        Output("tick", "data"),
        Output("notice", "children"),
        Input("url", "pathname"),
        State("url", "search"),
    )
    async def show(path: str | None, search: str | None) -> Any:
        content, page = await page_of(page_at(path or "/"), api, search)
        return content, page, {"cursor": page.get("cursor")}, None
