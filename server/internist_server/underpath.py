"""A server that people reach under a path: behind a proxy that takes the path off, or leaves it on."""

from typing import Final
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ROOT_COOKIE: Final = b"; Path=/;"


class UnderPath:
    """ASGI middleware: takes the path off what is asked, and puts it before where answers send the browser.

    A redirect and a cookie of the server name its root; a browser must be told of the root that it sees. Everything
    else that leaves with an address in it is made by the board, which knows the path.
    """

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        self._app = app
        self._base = base_path
        self._raw = quote(base_path).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as if it had come to the root."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path == self._base or path.startswith(f"{self._base}/"):
            raw = scope.get("raw_path") or quote(path).encode()
            # In place: what routes note in the scope is read outside of this, too.
            scope.update(path=path[len(self._base) :] or "/", raw_path=raw[len(self._raw) :] or b"/")

        async def send_under(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [self._under(*header) for header in message.get("headers", ())]}
            await send(message)

        await self._app(scope, receive, send_under)

    def _under(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        if name.lower() == b"location" and value.startswith(b"/") and not value.startswith(self._raw + b"/"):
            return name, self._raw + value
        if name.lower() == b"set-cookie":
            return name, (value + b";").replace(_ROOT_COOKIE, b"; Path=" + self._raw + b";").removesuffix(b";")
        return name, value
