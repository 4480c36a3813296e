"""Patience: how many training forwards may pass without a counted optimizer step before the run is asked for one."""

import logging

log = logging.getLogger("internist")

PATIENCE = 40
"""Training forwards without a counted step before the run is asked for one; ten times what a round has had, if more."""


class Patience:
    """Counts training forwards between rounds, and says once what is missing where no round ends."""

    def __init__(self) -> None:
        self._forwards = self._most = 0
        self._has_said = False

    def forward_begins(self, step: int, *, is_updating: bool) -> None:
        """A training forward begins.

        Args:
            step: rounds counted so far.
            is_updating: an optimizer has stepped since the last round ended.
        """
        self._forwards += 1
        if self._forwards < max(PATIENCE, 10 * self._most) or self._has_said or is_updating:
            return
        self._has_said = True
        log.warning(
            "internist: %d training forwards and no optimizer step since step %d: pass the optimizer that trains this "
            "model to watch(model, optimizer), or call monitor.step() after each update",
            self._forwards, step,
        )  # fmt: skip

    def round_ended(self) -> None:
        """A round is over."""
        self._most, self._forwards = max(self._most, self._forwards), 0
        self._has_said = False
