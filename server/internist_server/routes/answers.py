"""How a view becomes a response: fast, and without the nulls that JSON libraries make of NaN."""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from internist_server.errors import Invalid
from internist_server.routes.access import audit


class ViewRoute(APIRoute):
    """A route whose function returns a view; its annotation documents the response, orjson writes it.

    Views hold no NaN: the store has made them the strings "nan", "inf", "-inf".
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        """A route as FastAPI makes it, around a function that answers with bytes."""
        super().__init__(path, _answering(endpoint), **settings)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request; one that asks for what this route does not know is refused, not half answered."""
        answer_known = super().get_route_handler()
        known = _askable(self.dependant)

        async def respond(request: Request) -> Response:
            unknown = sorted(set(request.query_params) - known)
            if unknown:
                raise Invalid(
                    f"{unknown[0]!r} is none of what can be asked here: {', '.join(sorted(known)) or 'nothing'}"
                )
            said = await answer_known(request)
            await audit(request, self.name)
            return said

        return respond


def answer(view: object) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(view, default=_of_model), media_type="application/json")


def _of_model(view: object) -> object:
    """What is sent of a model of pydantic's: its fields by the names that requests give them."""
    if isinstance(view, BaseModel):
        return view.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(view).__name__} is no view")


def _askable(dependant: Dependant) -> set[str]:
    """Names of the query parameters of a route and of what it depends on."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*(_askable(one) for one in dependant.dependencies))


def _answering(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def respond_at_once(**arguments: Any) -> Response:
            said = await endpoint(**arguments)
            return said if isinstance(said, Response) else answer(said)

        return respond_at_once

    @functools.wraps(endpoint)
    def respond(**arguments: Any) -> Response:
        said = endpoint(**arguments)
        return said if isinstance(said, Response) else answer(said)

    return respond
