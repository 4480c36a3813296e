"""Answers that many boards ask for at once are made once: equal questions of equal viewers, within a moment."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internist_dashboard.viewer import VIEWER

PATHS: Final = ("/_dash-update-component", "/_board/")
MOMENT_S: Final = 2.0
"""How long an answer serves others. What changes it, a cursor, is part of the question."""
MAX_BYTES: Final = 32 * 2**20
MAX_QUESTION: Final = 256 * 2**10

Key = tuple[str, str, bytes, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is sent."""

    messages: tuple[Message, ...]
    size: int
    made_at: float


class SharedAnswers:
    """ASGI middleware: whoever asks what is being answered waits for that answer; only reads are asked of the board."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._under_way: dict[Key, asyncio.Future[Answer | None]] = {}
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
        key = (scope["path"], query, question, _who(scope))
        answer = self._known(key) if len(question) <= MAX_QUESTION else None
        waiting = self._under_way.get(key)
        if answer is None and waiting is not None:
            answer = await asyncio.shield(waiting)
        if answer is None:
            answer = await self._make(key, scope, question)
        for message in answer.messages:
            await send(message)

    async def _make(self, key: Key, scope: Scope, question: bytes) -> Answer:
        under_way: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = under_way
        answer: Answer | None = None
        try:
            answer = await _asked(self._app, scope, question)
            if answer.messages[0]["status"] == 200 and len(question) <= MAX_QUESTION:
                self._keep(key, answer)
        finally:
            self._under_way.pop(key, None)
            under_way.set_result(answer)
        return answer

    def _known(self, key: Key) -> Answer | None:
        answer = self._answers.get(key)
        return answer if answer is not None and time.monotonic() - answer.made_at < MOMENT_S else None

    def _keep(self, key: Key, answer: Answer) -> None:
        self._forget(key)
        self._answers[key] = answer
        self._bytes += answer.size
        oldest = time.monotonic() - MOMENT_S
        while self._answers and (self._bytes > MAX_BYTES or next(iter(self._answers.values())).made_at < oldest):
            self._forget(next(iter(self._answers)))

    def _forget(self, key: Key) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._bytes -= answer.size


async def _asked(app: ASGIApp, scope: Scope, question: bytes) -> Answer:
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
    return Answer(tuple(messages), sum(len(one.get("body", b"")) for one in messages), time.monotonic())


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
