"""Faults: what could not be measured, remembered as the reason that coverage gives, and said once it is given up."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger("internist")

TOLERATED = 3
"""Faults in a row after which a subject, or one of our own callbacks, is given up."""

Subject = tuple[str, str]
"""What kind of thing, and its name."""
F = TypeVar("F", bound=Callable[..., Any])


class Faults:
    """Counts faults by subject. A subject that fails is tried again, until it has failed `TOLERATED` times in a row."""

    def __init__(self) -> None:
        self._in_a_row: dict[Subject, int] = {}
        self._reasons: dict[Subject, str] = {}

    def note(self, kind: str, name: str, error: BaseException | str, *, final: bool = False) -> None:
        """Something could not be measured.

        Args:
            kind: what the subject is: `module`, `parameter`, `attention`, `optimizer`, `monitor`, ...
            name: its name.
            error: what went wrong.
            final: it will never be otherwise, so there is no use in trying again.
        """
        subject = kind, name
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}".strip().splitlines()[0]
        self._reasons[subject] = reason = reason[:300]
        before = self._in_a_row.get(subject, 0)
        self._in_a_row[subject] = TOLERATED if final else before + 1
        if before < TOLERATED <= self._in_a_row[subject]:
            text = "internist: %s %s is not measured from here on: %s (training is not affected)"
            log.warning(text, kind, name, reason)

    def give_up(self, kind: str, name: str, reason: str) -> None:
        """The subject cannot be measured where it lies: coverage says why, and nothing went wrong."""
        self._reasons[kind, name], self._in_a_row[kind, name] = reason, TOLERATED

    def well(self, kind: str, name: str) -> None:
        """The subject was measured after all."""
        if self._reasons and self._in_a_row.pop((kind, name), None) is not None:
            self._reasons.pop((kind, name), None)

    def is_given_up(self, kind: str, name: str) -> bool:
        """Whether the subject is not tried any more."""
        return bool(self._in_a_row) and self._in_a_row.get((kind, name), 0) >= TOLERATED

    def reason(self, kind: str, name: str) -> str:
        """Why a subject could not be measured the last time; empty if it could."""
        return self._reasons.get((kind, name), "")

    def guard(self, function: F) -> F:
        """The function, never raising: a fault is noted, and after `TOLERATED` in a row it is not called any more."""
        name = function.__name__.strip("_").replace("_", " ")

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.is_given_up("monitor", name):
                return None
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                log.debug("internist: fault in %s", name, exc_info=True)
                self.note("monitor", name, error)
                return None
            self.well("monitor", name)
            return result

        return guarded  # type: ignore[return-value]
