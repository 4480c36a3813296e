"""Examples for the API's description, made of the very types they stand for."""

from typing import Any, Final

import msgspec

from internist.schema.conditions import CONDITIONS, CRITERIA
from internist.schema.metrics import METRICS
from internist.schema.rules import RULES
from internist.schema.views import Change
from internist.schema.wire import Heartbeat
from internist_server.routes import example_alerts, example_checks, example_run
from internist_server.routes.example_checks import TRAJECTORY
from internist_server.routes.example_run import ATTEMPT, NOW, REQUEST, RUN, START

_EXAMPLES: Final[dict[str, object]] = {
    **example_run.ANSWERS,
    **example_alerts.ANSWERS,
    **example_checks.ANSWERS,
    "Catalogue": {
        "metrics": [METRICS["update.own"]],
        "conditions": [CONDITIONS[2]],
        "criteria": [CRITERIA[5]],
        "rules": [RULES[2]],
    },
    "Health": {"status": "ok", "service": "internist"},
}
_CHANGE = Change(RUN, 57, 420, "live", "violated", 1, NOW, NOW, NOW)

REQUESTS: Final[dict[str, Any]] = {
    "RunStart": msgspec.to_builtins(START),
    "FramesRequest": msgspec.to_builtins(REQUEST),
    "Heartbeat": msgspec.to_builtins(Heartbeat(ATTEMPT, 0, 420, 120)),
    "Trajectory": msgspec.to_builtins(TRAJECTORY),
}


def of(name: str) -> dict[str, Any]:
    """A response with its example."""
    return {"content": {"application/json": {"example": msgspec.to_builtins(_EXAMPLES[name])}}}


def stream() -> dict[str, Any]:
    """The live stream's response."""
    text = f"id: 57\nevent: change\ndata: {msgspec.json.encode(_CHANGE).decode()}\n\n"
    return {
        "description": "Server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": text}},
    }


def metrics() -> dict[str, Any]:
    """The response for Prometheus."""
    text = "# TYPE internist_open_alerts gauge\ninternist_open_alerts 1.0\n"
    return {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}, "example": text}},
    }
