"""Answers that many boards ask for are made once: equal questions of equal viewers within a moment, and what a chart is
drawn from for as long as nothing is new of its run."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internist_dashboard.viewer import VIEWER

PATHS: Final = ("/_dash-update-component", "/_board/")
MOMENT_S: Final = 2.0
"""How long an answer serves others that may change without the question."""
LASTS_S: Final = 600.0
"""How long a chart serves others at one cursor, which rises with every change of its run."""
CHARTS: Final = ("loss-graph.figure", "heat-sent.data", "logit-sent.data", "optimizer-graph.figure")
"""Outputs of which a run, its cursor, the window and the page's other inputs are all that they depend on."""
MAX_BYTES: Final = 32 * 2**20
MAX_QUESTION: Final = 256 * 2**10

Key = tuple[str, str, bytes, str]
Waiting = asyncio.Future["Answer | None"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is sent."""

    messages: tuple[Message, ...]
    size: int
    until: float
    """When it serves nobody any more, by the clock that only rises."""


class SharedAnswers:
    """ASGI middleware: whoever asks what is being answered waits for that answer; only reads are asked of the board."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._under_way: dict[Key, Waiting] = {}
        self._answers: OrderedDict[Key, Answer] = OrderedDict()
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from what is known or under way; else ask, and let others have it."""
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
            return
        question = await _body(receive)
        # Of a callback the body is the question: its address names the one browser that asks.
        query = "" if scope["method"] == "POST" else scope.get("query_string", b"").decode("latin-1")
        at_cursor = chart_question(question) if len(question) <= MAX_QUESTION else None
        key = (scope["path"], query, question if at_cursor is None else at_cursor, _who(scope))
        answer = self._known(key) if len(question) <= MAX_QUESTION else None
        waiting = self._under_way.get(key)
        if answer is None and waiting is not None:
            answer = await asyncio.shield(waiting)
        if answer is None:
            lasts_s = MOMENT_S if at_cursor is None else LASTS_S
            answer = await self._make(key, scope, question, lasts_s=lasts_s)
        for message in answer.messages:
            await send(message)

    async def _make(self, key: Key, scope: Scope, question: bytes, *, lasts_s: float) -> Answer:
        under_way: Waiting = asyncio.get_running_loop().create_future()
        self._under_way[key] = under_way
        answer: Answer | None = None
        try:
            answer = await _asked(self._app, scope, question, lasts_s=lasts_s)
            if answer.messages[0]["status"] == 200 and len(question) <= MAX_QUESTION:
                self._keep(key, answer)
        finally:
            self._under_way.pop(key, None)
            under_way.set_result(answer)
        return answer

    def _known(self, key: Key) -> Answer | None:
        answer = self._answers.get(key)
        return answer if answer is not None and time.monotonic() < answer.until else None

    def _keep(self, key: Key, answer: Answer) -> None:
        self._forget(key)
        self._answers[key] = answer
        self._bytes += answer.size
        now = time.monotonic()
        for old in [known for known, one in self._answers.items() if one.until < now]:
            self._forget(old)
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._answers)))

    def _forget(self, key: Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._bytes -= answer.size


def chart_question(body: bytes) -> bytes | None:
    """What a callback asks for a chart: its output, its inputs and its run; None where it asks for something else, or
    knows no cursor."""
    try:
        asked = orjson.loads(body)
        output, inputs = asked["output"], {one["id"]: one.get("value") for one in asked["inputs"]}
        run = next(one["value"]["run"] for one in asked["state"] if one["id"] == "page")
        tick = inputs.pop("tick")
        cursor = int(tick["cursor"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, StopIteration):
        return None
    if "again" in tick or not any(chart in output for chart in CHARTS):
        return None
    return orjson.dumps([output, run, cursor, inputs], option=orjson.OPT_SORT_KEYS)


async def _asked(app: ASGIApp, scope: Scope, question: bytes, *, lasts_s: float) -> Answer:
    messages: list[Message] = []
    is_read = False

    async def read() -> Message:
        nonlocal is_read
        if is_read:  # the one who asked may be gone; others may wait for the answer
            await asyncio.Event().wait()
        is_read = True
        return {"type": "http.request", "body": question, "more_body": False}

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, read, keep)
    size = sum(len(one.get("body", b"")) for one in messages)
    return Answer(tuple(messages), size, time.monotonic() + lasts_s)


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _who(scope: Scope) -> str:
    """What an answer depends on beside its question: what the viewer may see, whether it can sign out, the address,
    and what encodings are taken."""
    viewer = VIEWER.get()
    grant = f"{viewer.grant} {viewer.is_signed_in}" if viewer.grant is not None else sorted(viewer.headers.items())
    takes = next((value for name, value in scope["headers"] if name == b"accept-encoding"), b"").decode("latin-1")
    return f"{grant} {viewer.origin} {takes}"
