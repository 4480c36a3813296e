"""What may be asked of the board's framework, which fails at what its own pages would not ask: a callback that there
is, with its inputs, and a script that there is."""

from collections.abc import Mapping
from typing import Any, Final

import dash
import orjson
from dash.fingerprint import check_fingerprint
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASKED: Final = "/_dash-update-component"
SCRIPTS: Final = "/_dash-component-suites/"
MAX_BYTES: Final = 4 << 20
"""Of a question: it holds a figure at most."""


class Questions:
    """ASGI middleware: lets through what a page of the board asks, and refuses the rest with a reason."""

    def __init__(self, app: ASGIApp, board: dash.Dash) -> None:
        self._app, self._board = app, board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a question on, or refuse it."""
        path = scope["path"]
        if path.startswith(SCRIPTS) and not self._has_script(path.removeprefix(SCRIPTS)):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
            return
        if path != ASKED:
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        reason = f"a question has at most {MAX_BYTES} bytes" if body is None else refuse(body, self._board.callback_map)
        if reason is not None:
            await JSONResponse({"detail": reason}, 413 if body is None else 422)(scope, receive, send)
            return
        is_read = False

        async def read_again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, read_again, send)

    def _has_script(self, path: str) -> bool:
        package, _, name = path.partition("/")
        known: Mapping[str, set[str]] = self._board.registered_paths
        return package in known and check_fingerprint(name)[0] in known[package]


def refuse(body: bytes, callbacks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a question is none, or None.

    Args:
        body: of the request.
        callbacks: by output, as Dash keeps them; those that browsers answer themselves have no function.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return f"the question is no JSON: {error}"
    if not isinstance(asked, dict) or not isinstance(asked.get("output"), str):
        return "a question names its output"
    found = callbacks.get(asked["output"])
    if found is None or "callback" not in found:
        return "there is nothing that answers this"
    several, outputs = asked["output"].startswith(".."), asked.get("outputs")
    wanted = asked["output"].count("...") + 1 if several else 1
    places = _places(outputs if several else [outputs])
    if places is None or len(places) != wanted:
        return "the outputs are not those of a page"
    for part in ("inputs", "state"):
        if _places(asked.get(part, [])) != [(one["id"], one["property"]) for one in found[part]]:
            return f"the {part} are not those of a page"
    changed = asked.get("changedPropIds", [])
    return None if isinstance(changed, list) and all(isinstance(one, str) for one in changed) else "what changed?"


def _places(given: object) -> list[tuple[str, str]] | None:
    if not isinstance(given, list) or not all(_is_place(one) for one in given):
        return None
    return [(one["id"], one["property"]) for one in given]


def _is_place(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("id"), str) and isinstance(one.get("property"), str)


async def _read(receive: Receive) -> bytes | None:
    """The body of a request; None where it is too large."""
    pieces, size = [], 0
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)
