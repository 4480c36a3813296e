"""The API's own description: `/openapi.json`, with the types that FastAPI does not see because bodies are read raw."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from internist.schema.reference import Trajectory
from internist.schema.wire import FramesRequest, Heartbeat, RunStart

_REFERENCE = "#/components/schemas/{name}"


def install(app: FastAPI) -> None:
    """Let the app describe itself in full."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's own way to replace it


def _describe(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = schema["components"]["schemas"]
    _, raw = msgspec.json.schema_components([RunStart, FramesRequest, Heartbeat, Trajectory], ref_template=_REFERENCE)
    for name, component in raw.items():
        schemas.setdefault(name, component)
    schemas["Problem"] = {
        "type": "object",
        "title": "Problem",
        "description": "What went wrong: a code for programs, a sentence for people, and the id of the request, "
        "by which the server's log tells of it.",
        "required": ["error", "detail"],
        "properties": {name: {"type": "string"} for name in ("error", "detail", "request_id")},
    }
    problem = {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Problem")}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    response["content"] = problem
    return schema
