"""A file of rules, read with an eye for mistakes: each with its line, and with the word that was meant."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from internist.schema.wire import Threshold
from internist_server.alerts.rules import Receiver, Rule, RuleFile, rule_of
from internist_server.errors import Invalid, RulesError

_TABLES: dict[str, type[BaseModel]] = {"rule": Rule, "receiver": Receiver}


def read_rules(path: Path) -> RuleFile:
    """The rules of a file.

    Raises:
        RulesError: it cannot be read, or something in it is wrong: one line for each mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_rules(text, name=str(path))


def parse_rules(text: str, *, name: str) -> RuleFile:
    """The rules of a text.

    Raises:
        RulesError: something in it is wrong: one line for each mistake, `NAME:LINE: what`.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{name}: {error}") from error
    try:
        return RuleFile.model_validate(content)
    except ValidationError as error:
        said = sorted(_mistake(one, text.splitlines()) for one in error.errors())
        unique = dict.fromkeys(said)  # a union tells of each of its sides
        raise RulesError("\n".join(f"{name}:{line}: {what}" for line, what in unique)) from error


def said_of(error: ValidationError) -> str:
    """The mistakes of a set of rules that is no file, with their places in it."""
    found = dict.fromkeys(f"{_place(one['loc'])}: {_words(one)}" for one in error.errors())
    return "; ".join(found)


def require_thresholds(thresholds: Sequence[Threshold]) -> None:
    """Refuse thresholds that no run can have.

    Raises:
        Invalid: with the reason.
    """
    names = [threshold.metric for threshold in thresholds]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise Invalid(f"there are two thresholds on {twice!r}")
    for threshold in thresholds:
        try:
            rule_of(threshold)
        except ValidationError as error:
            raise Invalid(f"the threshold on {threshold.metric!r}: {said_of(error)}") from error


def line_of(lines: Sequence[str], place: tuple[int | str, ...]) -> int:
    """The line, from 1, at which a field of a table stands; that of its table where it does not, 1 without one.

    Args:
        lines: of the file, which has been parsed: it is TOML.
        place: such as `("rule", 2, "above")`.
    """
    table = str(place[0]) if place else ""
    if len(place) < 2:
        named = (number for number, line in enumerate(lines, 1) if _table(line) == table or _key(_bare(line)) == table)
        return next(named, 1)
    starts = [number for number, line in enumerate(lines, 1) if _bare(line) == f"[[{table}]]"]
    wanted = int(place[1])
    if wanted >= len(starts):  # an array in line
        return line_of(lines, place[:1])
    start = starts[wanted]
    for number, line in enumerate(lines[start:], start + 1):
        if _bare(line).startswith("[[") or len(place) < 3:
            break
        if _key(_bare(line)) == place[2] or _bare(line) == f"[{table}.{place[2]}]":
            return number
    return start


def _bare(line: str) -> str:
    """A line without spaces and comments."""
    return "".join(line.partition("#")[0].split())


def _table(line: str) -> str:
    """The table that a line begins; empty where it begins none."""
    bare = _bare(line)
    return bare.strip("[]").partition(".")[0] if bare.startswith("[") else ""


def _key(bare: str) -> str:
    """The key of a line `key = value`, or of `key.inner = value`."""
    key, equals, _ = bare.partition("=")
    return key.partition(".")[0].strip("\"'") if equals else ""


def _mistake(error: ErrorDetails, lines: Sequence[str]) -> tuple[int, str]:
    return line_of(lines, error["loc"]), _words(error)


def _words(error: ErrorDetails) -> str:
    """A mistake in words: what is there, what was expected."""
    place = error["loc"]
    if error["type"] == "extra_forbidden":
        return _unknown(place)
    said = error["msg"].removeprefix("Value error, ")
    if len(place) <= 2:
        return said if error["type"] != "missing" else f"there is no {place[-1]!r}"
    if error["type"] == "missing":
        return f"`{place[2]}` is missing"
    return f"`{place[2]}`: {said[0].lower()}{said[1:]}, got {_shown(error['input'])}"


def _unknown(place: tuple[int | str, ...]) -> str:
    word = str(place[-1])
    known = list(_TABLES)
    if len(place) > 2:
        model = _TABLES.get({"rules": "rule"}.get(str(place[0]), str(place[0])), Rule)
        known = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    meant = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(known)}"
    return f"`{word}` is not known{meant}"


def _place(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place) or "rules"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
