"""The filter box: a regular expression, or text where it is none."""

import re


def compiled(text: str | None) -> re.Pattern[str] | None:
    """The pattern of a filter, case ignored; None for no filter. What does not parse is searched as it is written."""
    if not text:
        return None
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(text), re.IGNORECASE)
