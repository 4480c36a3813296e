"""The filter box: a regular expression, or text where it is none. RE2 matches it, in time linear in what is searched:
the board runs in the server's process, and nothing that is typed may stop that."""

from typing import Final

import re2

MAX_LENGTH: Final = 196
"""Characters that are looked at: with `_ANY_CASE` as many as the server takes."""
_ANY_CASE: Final = "(?i)"
MAX_MEMORY: Final = 1 << 17
"""Bytes of a compiled pattern and its automaton: a few thousand states, each of which a character may cost."""


class Filter:
    """What is searched for, case ignored. What does not parse is searched as it is written."""

    def __init__(self, text: str) -> None:
        written = text[:MAX_LENGTH].encode("utf-8", "replace").decode()
        options = re2.Options()
        options.max_mem, options.never_capture, options.log_errors = MAX_MEMORY, True, False
        options.case_sensitive = False
        try:
            self._pattern = re2.compile(written, options)
        except re2.error:
            written = re2.escape(written)
            self._pattern = re2.compile(written, options)
        self.asked = _ANY_CASE + written
        """The same as the server is asked."""

    def search(self, text: str) -> bool:
        """Whether a text holds it."""
        return self._pattern.search(text) is not None


def compiled(text: str | None) -> Filter | None:
    """The filter of what is typed; None for none."""
    return Filter(text) if text else None


def subject_of(text: str | None) -> str | None:
    """The filter as the server is asked by it, so that it answers with what matches alone; None for no filter."""
    return Filter(text).asked if text else None
