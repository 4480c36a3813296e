"""How the server logs: a line an event on standard error, for people or as JSON, with the request that it is of."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from internist_server.tracing import current_request

LogFormat = Literal["text", "json"]
ALWAYS: Final = ("internist_server.auditing", "internist_server.journal")
"""What writes only what was asked for: it is heard whatever else is quiet."""
_FIELDS: Final = "fields"
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {ord("\n"): "\n    "}


class StandardError(logging.Handler):
    """Writes to what standard error is at that moment: whoever replaced it may have closed the one before."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def set_up_logging(level: str = "INFO", *, form: LogFormat = "text") -> None:
    """Log to standard error from this level on."""
    handler = StandardError()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ALWAYS:
        logging.getLogger(name).setLevel("INFO")


def fields(**found: Any) -> dict[str, Any]:
    """What a line says in numbers and words of its own, for whoever reads logs by program: its `extra`."""
    return {_FIELDS: found}


class TextLines(logging.Formatter):
    """A line for people. One that has several goes on indented: nothing from outside looks like a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        """The first line of a record."""
        record.message = record.message.translate(_CONTROLS)
        request = current_request()
        return super().formatMessage(record) + (f" [{request}]" if request else "")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as its line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current_request():
            line["request_id"] = request
        line |= {name: value for name, value in getattr(record, _FIELDS, {}).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode("utf-8", "replace")
