"""Static files compressed once: scripts and styles are gzipped on first use and kept, for every later visitor."""

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIXES = ("/_dash-component-suites/", "/assets/")
MAX_FILES = 256
_COMPRESSIBLE = (b"javascript", b"json", b"css", b"svg", b"text")
_LEFT_OUT = (b"if-none-match", b"if-modified-since", b"range", b"accept-encoding")


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as sent: its type, its caching rule, and its gzipped content."""

    content_type: bytes
    cache_control: bytes
    tag: bytes
    """Says whether what a browser has is still this: files without a fingerprint are asked for every time."""
    body: bytes


class CompressedStatics:
    """ASGI middleware in front of the board: serves its static files from memory, gzipped once each."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files: dict[str, StaticFile] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from memory where the file is known and the viewer takes gzip; else ask the board, and remember."""
        if not self._is_static(scope):
            await self._app(scope, receive, send)
            return
        key = f"{scope['path']}?{scope.get('query_string', b'').decode('latin-1')}"
        known = self._files.get(key) or await self._load(key, scope, receive)
        if known is None:
            await self._app(scope, receive, send)
            return
        kept = [(b"cache-control", known.cache_control), (b"etag", known.tag), (b"vary", b"accept-encoding")]
        if any(name == b"if-none-match" and known.tag in value for name, value in scope["headers"]):
            await send({"type": "http.response.start", "status": 304, "headers": kept})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [
            (b"content-type", known.content_type),
            (b"content-encoding", b"gzip"),
            (b"content-length", str(len(known.body)).encode()),
            *kept,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": known.body})

    @staticmethod
    def _is_static(scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(PREFIXES):
            return False
        return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])

    async def _load(self, key: str, scope: Scope, receive: Receive) -> StaticFile | None:
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        # Neither conditional nor compressed: what is kept is the whole file, packed here.
        plain = [(n, v) for n, v in scope["headers"] if n not in _LEFT_OUT]
        await self._app({**scope, "headers": plain}, receive, keep)
        start = messages[0]
        headers = dict(start.get("headers", []))
        content_type = headers.get(b"content-type", b"application/octet-stream")
        if start["status"] != 200 or not any(word in content_type for word in _COMPRESSIBLE):
            return None
        body = b"".join(message.get("body", b"") for message in messages[1:])
        # A fingerprint in the name (component suites) or the query (assets) changes with the content.
        cache = (
            b"public, max-age=31536000, immutable"
            if b"max-age" in headers.get(b"cache-control", b"") or "?m=" in key
            else b"no-cache"
        )
        packed = await asyncio.to_thread(gzip.compress, body, 9, mtime=0)
        tag = f'"{_digest(packed)}"'.encode()
        file = StaticFile(content_type, cache, tag, packed)
        if len(self._files) < MAX_FILES:
            self._files[key] = file
        return file


def fingerprint(path: Path) -> str:
    """Changes with a file's content: in its address, it lets browsers keep the file for good."""
    return _digest(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
