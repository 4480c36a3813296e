"""How a view becomes a response: fast, and without the nulls that JSON libraries make of NaN."""

import functools
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import Response
from fastapi.routing import APIRoute


class ViewRoute(APIRoute):
    """A route whose function returns a view; its annotation documents the response, orjson writes it.

    Views hold no NaN: the store has made them the strings "nan", "inf", "-inf".
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        """A route as FastAPI makes it, around a function that answers with bytes."""
        super().__init__(path, _answering(endpoint), **settings)


def answer(view: object) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(view), media_type="application/json")


def _answering(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    def respond(**arguments: Any) -> Response:
        said = endpoint(**arguments)
        return said if isinstance(said, Response) else answer(said)

    return respond
