"""The judge: what each series of an attempt is, step by step, measured against its bands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema import views
from internist.schema.conditions import CARDS, CONDITION, CRITERIA, SCHEDULE_JUMP, Basis
from internist.schema.rules import RULE_OF_CONDITION, Severity
from internist.schema.views import AlertState
from internist_server.alerts.lifecycle import FIRING, INACTIVE, PENDING, Lifecycle, advance
from internist_server.judge import bands, board, drift, wording
from internist_server.judge.board import Standing, Summary
from internist_server.judge.checks import NUMERIC_CARD, Checks, Flags, Indices, Logs, build_checks
from internist_server.judge.errors import OutOfOrder
from internist_server.judge.evaluation import BASELINE, NONE, SANITY, TARGET, Evaluation, Evaluator
from internist_server.judge.memory import Memory
from internist_server.judge.series import JudgedSeries

__all__ = ["Judge", "JudgedSeries", "StepJudgement", "Summary", "Transition"]

BASES: tuple[Basis | None, ...] = (None, "target", "reference", "baseline", "sanity")
"""The bases by their number in `StepJudgement.basis`."""


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert changed state at a judged step. There is one open alert per (series, rule).

    With `for` of one point an alert goes straight to `firing`. An alert that is firing already is reported as `firing`
    once more when it turns from a warning to critical: same pending step, higher severity.
    A pending alert that goes back into its band is `resolved` with `opened_step` None.
    """

    series: int
    rule: str
    condition: str
    state: AlertState
    severity: Severity
    cause: str
    step: int
    pending_step: int
    opened_step: int | None
    value: float
    ratio: float
    """How many times it is out of its band's centre (or edge, for targets): at least 1 while it is out, also below."""
    worst_ratio: float
    basis: Basis | None
    band_low: float | None
    band_high: float | None
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class StepJudgement:
    """What one step was judged to be. The arrays are aligned with `Judge.order` as it was then."""

    step: int
    schedule: float
    """Learning rate over the largest so far, run-wide; NaN if unknown."""
    ratios: NDArray[np.float16]
    """log2 of value over the band's centre. NaN: not judged here; inf: not finite; -inf: zero."""
    basis: NDArray[np.uint8]
    """0 none, 1 target, 2 reference, 3 baseline, 4 sanity."""
    transitions: list[Transition]


class Judge:
    """Judges the complete steps of one attempt, in order.

    What it says is a pure function of the steps and the points it is shown; its state round-trips through bytes, so how
    steps are grouped into requests changes nothing.
    """

    def __init__(self, series: Sequence[JudgedSeries], *, mup: bool, every: int, state: bytes | None = None) -> None:
        """A judge of an attempt.

        Args:
            series: all series so far, in the order in which `add_series` was or will be called.
            mup: the run declares a spectral or muP parametrisation or uses a spectral optimizer.
            every: steps between two light samples.
            state: of an earlier judge of the same attempt, whose series are a beginning of these; None: a new attempt.

        Raises:
            JudgeStateError: the state cannot be read, or is of other series.
        """
        self._mup = mup
        self._every = max(every, 1)
        self._series = list(series)
        self._memory = Memory.empty() if state is None else Memory.restore(state, [one.id for one in series])
        self._prepare()

    def add_series(self, series: Sequence[JudgedSeries]) -> None:
        """Judges these too from now on; they come last in `order`."""
        if series:
            self._series.extend(series)
            self._prepare()

    @property
    def order(self) -> list[int]:
        """Ids of the series in column order. It only ever grows."""
        return [one.id for one in self._series]

    @property
    def judged_step(self) -> int | None:
        """The last judged step."""
        return self._memory.step if self._memory.step >= 0 else None

    def window_due(self, step: int) -> tuple[int, int] | None:
        """The inclusive window of steps whose points `refresh` needs before `step` can be judged; None: nothing is due."""
        memory = self._memory
        if memory.origin < 0 or not self._checks.baselined.any():
            return None
        return bands.baseline_window(step, origin=memory.origin, every=self._every, taken=memory.grid)

    def window_sample(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the stored steps of one plan within the window `refresh` should be given."""
        return bands.window_sample(steps, every=self._every)

    def refresh(self, step: int, values: Logs, steps: NDArray[np.int64] | None = None) -> None:
        """Takes the baselines anew, before `step` is judged.

        A series that has too few points in the window keeps the baseline it has.

        Args:
            step: the step that will be judged next.
            values: (points, series) aligned with `order`, NaN where a series has no point.
            steps: step of each row. Rows off the regular grid (start-up, directives) are left out if it is given.
        """
        memory, checks = self._memory, self._checks
        memory.grid = bands.grid_point(step - memory.origin)
        if steps is not None:
            values = values[steps % self._every == 0]
        if not len(values):
            return
        factors = memory.schedule.factors(values[:, checks.rate_columns].astype(np.float64))
        divisor = np.where(factors >= memory.schedule.floor, factors, np.nan).astype(np.float32)
        at = np.flatnonzero(checks.baselined)
        points = np.ascontiguousarray(values[:, checks.column[at]].T)
        scheduled = checks.scheduled[at]
        raw = bands.baselines(points[scheduled])
        points[scheduled] /= divisor
        taken = bands.baselines(points)
        memory.baseline[at] = np.where(np.isnan(taken), memory.baseline[at], taken)
        reference = np.float32(np.nanmedian(divisor)) if np.isfinite(divisor).any() else np.float32(np.nan)
        which = at[scheduled]
        larger = raw > np.nan_to_num(memory.ceiling[which], nan=0.0)
        memory.ceiling[which] = np.where(larger, raw, memory.ceiling[which])
        memory.ceiling_factor[which] = np.where(larger, reference, memory.ceiling_factor[which])
        self._centre_bands()

    def judge(self, step: int, values: Logs, present: Flags, *, skipped: bool = False) -> StepJudgement:
        """Judges one complete step.

        Args:
            step: after the last judged one.
            values: float32, aligned with `order`; NaN means measured NaN where `present`.
            present: whether each series was measured at this step.
            skipped: the optimizer step was skipped by a gradient scaler: infinite gradients are its ordinary work.

        Raises:
            OutOfOrder: the step is not after the last judged one.
        """
        memory, checks = self._memory, self._checks
        if step <= memory.step:
            raise OutOfOrder(f"step {step} is not after step {memory.step}, which was judged already")
        memory.begin(step, every=self._every)
        np.copyto(memory.seen, step, where=present)
        np.copyto(memory.last, values, where=present)
        was_warming, had_jumped = memory.schedule.is_warming_up, memory.schedule.jump
        rates = checks.rate_columns
        memory.schedule.observe(step, np.where(present[rates], values[rates], np.nan).astype(np.float64))
        if was_warming != memory.schedule.is_warming_up:
            self._centre_bands()

        finite = np.isfinite(values)
        bad = present & checks.finite & ~finite
        bad |= checks.counts_nonfinite & present & (values > 0)
        if skipped:
            bad &= ~checks.is_gradient
        transitions = self._advance_numeric(step, bad, present)
        transitions += self._advance_schedule(step, had_jumped)

        found = self._evaluator.evaluate(
            values,
            present,
            finite=finite,
            centre=self._centre,
            ceiling=self._ceiling_now(),
            schedule=memory.schedule,
            last_values=memory.last,
        )
        shown = found.judged & ~np.isnan(found.ratio)
        np.copyto(memory.ratio, found.ratio, where=shown)
        np.copyto(memory.basis, found.basis, where=shown)
        drift.observe(memory.trends, step=step, logs=found.levels, measured=found.judged & np.isfinite(found.levels))
        transitions += self._advance_checks(step, found)

        ratios = np.full(len(self._series), np.nan, np.float32)
        ratios[checks.column] = np.where(shown, found.ratio, np.float32(np.nan))
        ratios[bad] = np.inf
        basis = np.zeros(len(self._series), np.uint8)
        basis[checks.column] = np.where(shown, found.basis, np.uint8(NONE))
        basis[bad] = TARGET
        if step % self._every == 0:
            self._draw_sparklines(step, found, shown, bad, present)
        return StepJudgement(step, memory.schedule.factor, ratios.astype(np.float16), basis, transitions)

    def verdicts(self, run: str, attempt: str, *, limit: int | None = None) -> views.Verdicts:
        """The verdict board, worst first; `limit` cuts its members, not its roll-ups."""
        members = _Members(self)
        return board.verdicts(
            members.standing,
            members.verdict,
            run=run,
            attempt=attempt,
            step=self.judged_step,
            sparklines=[self._memory.sparklines.line(card) for card in range(len(CARDS))],
            limit=limit,
        )

    def summary(self) -> Summary:
        """The run's state, its sentence and its counts, without building the board."""
        members = _Members(self)
        return board.summary(members.standing, members.verdict)

    def state(self) -> bytes:
        """All it knows, for `state` of the next judge of this attempt."""
        return self._memory.pack(self.order)

    def inherit(self, parent: bytes, ids: Mapping[int, int] | None = None) -> None:
        """Starts from the baselines of the attempt that this one resumes, until it has its own.

        Args:
            parent: state of the parent's judge.
            ids: the id here of each of the parent's series; None: both use the same ids.

        Raises:
            JudgeStateError: the state cannot be read.
        """
        order, other = Memory.read(parent)
        here = {one.id: column for column, one in enumerate(self._series)}
        columns = [here.get(id if ids is None else ids.get(id, -1), -1) for id in order]
        self._memory.inherit(other, columns, self._checks)
        self._centre_bands()
