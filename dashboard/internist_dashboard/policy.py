"""What a browser may do with a page of the board: run its own scripts, speak to its own server, nothing else."""

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INLINE: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
)


def policy(hashes: Iterable[str]) -> str:
    """The Content-Security-Policy of a page whose inline scripts have these hashes, quoted as browsers want them."""
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src 'self'", *hashes)),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'self'",
        )
    )


def hashes_of(page: str) -> list[str]:
    """The hashes of a page's inline scripts."""
    return [f"'sha256-{base64.b64encode(_digest(script)).decode()}'" for script in _INLINE.findall(page)]


class Guarded:
    """ASGI middleware: every answer with the headers that keep browsers from guessing, every page with its policy."""

    def __init__(self, app: ASGIApp, hashes: Iterable[str]) -> None:
        self._app = app
        self._policy = policy(hashes).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its answer gets the headers."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_ALWAYS]
                if any(name == b"content-type" and b"text/html" in value for name, value in headers):
                    headers.append((b"content-security-policy", self._policy))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_guarded)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
