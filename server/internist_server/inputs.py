"""What anyone may send as text, id or whole number: the one place that says what both databases can keep and readers
can be shown. Requests, records and files of rules are held to it."""

import re
import unicodedata
from typing import Final

from pydantic import AfterValidator

from internist.schema.wire import MAX_NAME_LENGTH
from internist_server.errors import Invalid

LAST_INTEGER: Final = (1 << 62) - 1
"""What a database and JSON's readers hold without loss of sign."""
MAX_ASKED: Final = 4_096
"""Characters of one parameter of a request, whatever it is for."""
_DIGITS: Final = len(str(LAST_INTEGER))
_ID: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
_UNKEPT: Final = ("Cc", "Cs")
"""Control characters, of which PostgreSQL keeps no NUL and terminals obey others, and halves of surrogates."""


def refuse_text(what: str, value: str, *, longest: int = MAX_NAME_LENGTH, allowed: str = "") -> str | None:
    """Why a text is not taken, or None.

    Args:
        what: it is, for the reason.
        value: the text.
        longest: characters that it may have.
        allowed: control characters that it may hold.
    """
    if len(value) > longest:
        return f"{what} has {len(value)} characters; at most {longest}"
    if value.isascii() and value.isprintable():
        return None
    if any(unicodedata.category(sign) in _UNKEPT and sign not in allowed for sign in value):
        return f"{what} has a control character: {shown(value)}"
    return None


def require_text(what: str, value: str, *, longest: int = MAX_NAME_LENGTH) -> str:
    """A text that can be kept.

    Raises:
        Invalid: it cannot.
    """
    reason = refuse_text(what, value, longest=longest)
    if reason is not None:
        raise Invalid(reason)
    return value


def require_id(what: str, value: str) -> str:
    """An id that can stand in a path.

    Raises:
        Invalid: it could not.
    """
    if not _ID.fullmatch(value):
        raise Invalid(f"the id of the {what} is 1 to 128 letters, digits, `.`, `_`, `-`, got {shown(value)}")
    return value


def whole_number(what: str, text: str) -> int:
    """A whole number from 0 that is written in digits.

    Raises:
        Invalid: it is none, or larger than a database keeps.
    """
    is_one = text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) <= LAST_INTEGER
    if not is_one:
        raise Invalid(f"{what} is a whole number from 0 to {LAST_INTEGER}, got {shown(text)}")
    return int(text)


def printable(text: str) -> str:
    """A text with spaces for what cannot be kept."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else " " for sign in text)


def shown(value: str) -> str:
    """A text in a message: quoted, and cut where it is long."""
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _on_one_line(value: str) -> str:
    reason = refuse_text("it", value, longest=len(value))
    if reason is not None:
        raise ValueError(f"expected text on one line, got {shown(value)}")
    return value


def _without_nul(value: str) -> str:
    if refuse_text("it", value, longest=len(value), allowed="\n\r\t") is not None:
        raise ValueError("expected text without control characters: PostgreSQL keeps no NUL")
    return value


LINE: Final = AfterValidator(_on_one_line)
"""Holds a field of a request or a file to text on one line."""
PROSE: Final = AfterValidator(_without_nul)
"""The same for text on several lines."""
