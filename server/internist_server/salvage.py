"""What can be read of a record or a start that cannot be read as a whole: its good lines, without the bad ones."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from internist.schema.wire import CoverageEntry, Module, Record, Route, RunStart, Scalar, Series

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises on bytes that are no such thing."""

_START_LINES: Final = {"modules": Module, "routing": Route}
_RECORD_LINES: Final = {"series": Series, "coverage": CoverageEntry}
_PARTS_WITH_LINES: Final = ("start", "outline")


def salvage_record(body: Any, decoder: Any) -> tuple[Record, str] | None:
    """The record of a body without its bad lines, and what became of those; None if nothing of it can be used.

    Args:
        body: its bytes.
        decoder: reads them as plain Python objects.
    """
    plain = _plain(body, decoder)
    if plain is None:
        return None
    reasons = _sift(plain, _RECORD_LINES)
    for name in _PARTS_WITH_LINES:
        if isinstance(plain.get(name), dict):
            reasons += _sift_start(plain[name])
    is_empty = any(plain.get(name) == [] for name in _RECORD_LINES)
    try:
        record = msgspec.convert(plain, Record)
    except msgspec.ValidationError:
        return None
    return None if is_empty or not reasons else (record, "; ".join(reasons))


def salvage_start(body: Any, decoder: Any) -> tuple[RunStart, str] | None:
    """The start of a body without its bad lines, and what became of those; None if it cannot be used."""
    plain = _plain(body, decoder)
    if plain is None:
        return None
    reasons = _sift_start(plain)
    try:
        return msgspec.convert(plain, RunStart), "; ".join(reasons)
    except msgspec.ValidationError:
        return None


def _plain(body: Any, decoder: Any) -> dict[str, Any] | None:
    try:
        plain = decoder.decode(body)
    except UNREADABLE:
        return None
    return plain if isinstance(plain, dict) else None


def _sift_start(plain: dict[str, Any]) -> list[str]:
    """Take out the bad lines of a start or an outline; the reasons."""
    reasons = _sift(plain, _START_LINES)
    config = plain.get("config")
    if isinstance(config, dict):
        kept = {
            name: value
            for name, value in config.items()
            if _reason(name, str) is None and _reason(value, Scalar) is None
        }
        if len(kept) < len(config):
            reasons.append(f"{len(config) - len(kept)} entries of the config are no single values")
            plain["config"] = kept
    return reasons


def _sift(plain: dict[str, Any], lines: Mapping[str, type]) -> list[str]:
    """Take out the bad lines of each list; the reasons."""
    reasons = []
    for name, kind in lines.items():
        given = plain.get(name)
        if isinstance(given, list):
            bad = [reason for line in given if (reason := _reason(line, kind)) is not None]
            if bad:
                plain[name] = [line for line in given if _reason(line, kind) is None]
                reasons.append(f"{len(bad)} of {len(given)} lines of `{name}` cannot be read: {bad[0]}")
    return reasons


def _reason(value: Any, kind: Any) -> str | None:
    """Why a value is not of a kind, or None."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None
