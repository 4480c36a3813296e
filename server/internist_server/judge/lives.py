"""The lives of a judge's alerts: where one judged step takes each of them."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import BASELINE_MINIMUM_POINTS
from internist.schema.grid import geometric
from internist.schema.rules import FINITE_POINTS_HEAVY, FINITE_POINTS_LIGHT
from internist_server.alerts.lifecycle import FIRING, INACTIVE, PENDING, advance
from internist_server.judge import transitions
from internist_server.judge.board import IN_MODEL
from internist_server.judge.checks import Checks, Flags, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.edges import Edges
from internist_server.judge.evaluation import REFERENCE, Bands, Evaluation
from internist_server.judge.facts import Facts
from internist_server.judge.idle import Idle
from internist_server.judge.members import CAUSE, is_silent
from internist_server.judge.memory import Memory
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import AlertPhases, Transition

SILENCES = 2
"""Times as many missed points as make a verdict `no data` make an alert of it."""
FIRST_STEPS = 16
"""Steps that are a start: a run that is watched from a later one has had its own."""


class Lives:
    """Moves the alerts of one judge; where they stand is in its memory.

    Args:
        series: all of them.
        checks: of these series.
        memory: of the judge.
        every: steps between two light samples.
    """

    def __init__(self, series: Sequence[JudgedSeries], checks: Checks, memory: Memory, *, every: int) -> None:
        self._series, self._checks, self._memory, self._every = series, checks, memory, every
        self._everything = np.ones(len(series), bool)
        self._one_point = np.ones(len(series), np.int64)
        self._one_point_a_check = np.ones(checks.column.size, np.int64)
        is_dense = checks.thinning.cadence <= every
        self._finite_points = np.where(is_dense, FINITE_POINTS_LIGHT, FINITE_POINTS_HEAVY)

    def phases(self) -> AlertPhases:
        """Where the alerts of all checks stand."""
        memory = self._memory
        return AlertPhases.of(self._checks, memory.warning, memory.violation, memory.is_critical)

    def advance_finite(self, bad: Flags, present: Flags, place: Indices) -> list[Transition]:
        """Move the alert on numbers.

        Args:
            bad: by column, what is not finite.
            present: by column, what was measured.
            place: forward order of the series.
        """
        memory = self._memory
        memory.numeric = advance(
            memory.numeric,
            step=memory.step,
            breach=bad,
            clear=self._everything,
            measured=present,
            cadence=self._one_point,
            needed=self._one_point,
            recovery=self._finite_points,
        )
        return transitions.of_finite(self._series, memory, place)

    def advance_checks(self, found: Evaluation, shown: Flags, bands: Bands) -> list[Transition]:
        """Move the alerts on values that are out of their bands.

        Args:
            found: of the step.
            shown: by check, whether it has a ratio at it.
            bands: as they are now.
        """
        memory, checks = self._memory, self._checks
        warning, violation = memory.warning, memory.violation
        # what stands at a young run's first, dense samples has not stood for long
        is_young = memory.step - memory.origin < 4 * BASELINE_MINIMUM_POINTS
        cadence = checks.cadence if is_young else self._one_point_a_check
        dense = np.minimum(cadence, geometric(memory.step))  # a reference speaks from the first, dense samples on
        move = partial(
            advance,
            step=memory.step,
            measured=found.judged,
            cadence=np.where(found.basis == REFERENCE, dense, cadence),
            needed=checks.needed,
            recovery=checks.recovery,
            recovery_cadence=np.minimum(checks.cadence, self._every),  # what opened by dense points closes by them
        )
        memory.warning = move(warning, breach=found.warns, clear=found.warning_clears)
        memory.violation = move(
            violation, breach=found.violates, clear=found.violation_clears, far=found.far & (checks.needed > 2)
        )
        if memory.warning is warning and memory.violation is violation:
            return []
        before = AlertPhases.of(checks, warning, violation, memory.is_critical)
        self._corroborate(violation.phase)
        after = self.phases()
        excess = np.where(memory.is_two_sided(checks), np.abs(memory.ratio), memory.ratio)
        worst = np.where(shown & (after.phase != INACTIVE), np.fmax(memory.worst, excess), memory.worst)
        memory.is_critical = after.is_critical
        memory.worst = np.where(after.phase == INACTIVE, np.float32(0), worst)
        ends = (violation.phase == FIRING) & (memory.violation.phase == INACTIVE)
        memory.out_first = np.where(ends, violation.started, memory.out_first)
        memory.out_last = np.where(ends, memory.step, memory.out_last)
        edges = Edges(checks, memory, bands)
        return transitions.of_checks(self._series, checks, memory, edges, before, after, worst)

    def advance_facts(
        self, facts: Facts, values: Logs, present: Flags, is_first: Flags, *, is_referenced: bool
    ) -> list[Transition]:
        """Move the alerts on facts that come with the first points of a run's first steps.

        Args:
            facts: what the model's first numbers may say.
            values: by column, of the step.
            present: by column, what was measured.
            is_first: by column, for the first time.
            is_referenced: a reference speaks: it tells more.
        """
        memory = self._memory
        is_start = memory.step <= FIRST_STEPS and not is_referenced
        memory.facts, changed = facts.advance(
            memory.facts, values, present, is_first=is_first & is_start, step=memory.step
        )
        return [
            transitions.of_fact(self._series, memory, one.fact, since=one.since, is_over=one.is_over) for one in changed
        ]

    def advance_silence(self, idle: Idle, distances: NDArray[np.float64], place: Indices) -> list[Transition]:
        """Move the alert on what was judged and is no longer measured.

        Args:
            idle: whose silence is no fault.
            distances: by column, steps between two points.
            place: forward order of the series.
        """
        memory, checks = self._memory, self._checks
        silent = is_silent(memory, checks.column, distances, SILENCES * (checks.needed + 1))
        silent &= ~idle.resting(memory.seen, memory.step, distances)[checks.column]
        return transitions.of_silence(self._series, checks, memory, silent & ~np.isnan(memory.ratio), place)

    def _corroborate(self, before: NDArray[np.uint8]) -> None:
        """Where the whole model has left its band, what is pending in its modules is no chance: it fires with it."""
        memory = self._memory
        fires = (memory.violation.phase == FIRING) & (before != FIRING)
        if (fires & (CAUSE[self._checks.criterion] == IN_MODEL)).any():
            memory.violation = memory.violation.fired(memory.violation.phase == PENDING, step=memory.step)
