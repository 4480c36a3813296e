"""An error as its answer, wherever it is given: a code for programs, a sentence for people, and the request's id."""

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from internist_server.tracing import current_request


def problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as its answer."""
    body = {"error": code, "detail": detail}
    if request := current_request():
        body["request_id"] = request
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
