"""Patterns that readers send, matched by RE2: in time linear in the text, whatever the pattern is."""

from collections.abc import Callable
from typing import Any, Final

import re2

from internist_server.errors import Invalid

MAX_LENGTH: Final = 200
"""Characters of a pattern."""
MAX_MEMORY: Final = 1 << 17
"""Bytes of a compiled pattern and its automaton: a few thousand states, each of which a character may cost."""


def searcher(pattern: str, *, what: str) -> Callable[[str], bool]:
    """Whether a text holds a pattern, as a function of the text.

    Args:
        pattern: a regular expression in RE2's syntax: without back-references and look-around.
        what: it is for, as the reader knows it.

    Raises:
        Invalid: it is too long, too large, or no regular expression.
    """
    if len(pattern) > MAX_LENGTH:
        raise Invalid(f"the pattern for {what} has {len(pattern)} characters; at most {MAX_LENGTH}")
    compiled = _compiled(pattern, what)
    return lambda text: compiled.search(text) is not None


def _compiled(pattern: str, what: str) -> Any:
    options = re2.Options()
    options.max_mem, options.never_capture, options.log_errors = MAX_MEMORY, True, False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        told = error.args[0]
        reason = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
        raise Invalid(f"the pattern for {what} is no regular expression of RE2: {reason}") from error
