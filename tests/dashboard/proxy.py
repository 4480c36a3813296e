"""A proxy as notebooks have one: it shows a server under a path, which it takes off what it passes on."""

import asyncio
from dataclasses import dataclass, field

import httpx
from starlette.types import Receive, Scope, Send

PATIENCE_S = 60.0
_OF_ONE_HOP = (b"host", b"connection", b"content-length", b"transfer-encoding", b"keep-alive")


@dataclass
class StrippingProxy:
    """ASGI: passes on what lies under `prefix`, streams included; what was asked beside it is 404 and remembered."""

    server: str
    prefix: str
    beside: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, without its prefix."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        path: str = scope["path"]
        if not path.startswith(f"{self.prefix}/"):
            self.beside.append(path)
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"nothing of the board lies here"})
            return
        raw = scope["raw_path"].decode().removeprefix(self.prefix)
        query = scope["query_string"].decode()
        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_ONE_HOP]
        headers.append((b"host", dict(scope["headers"])[b"host"]))
        async with (
            httpx.AsyncClient(timeout=PATIENCE_S) as client,
            client.stream(
                scope["method"], f"{self.server}{raw}" + (f"?{query}" if query else ""), headers=headers,
                content=await _body(receive),
            ) as answer,
        ):  # fmt: skip
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _OF_ONE_HOP[1:]]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            leaves = asyncio.create_task(receive())
            async for piece in answer.aiter_raw():
                if leaves.done():  # a stream would go on for nobody
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            leaves.cancel()
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
