"""The judge: what each series of an attempt is, step by step, measured against its bands."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from internist.schema import views
from internist.schema.conditions import CARDS
from internist_server.judge import bands, baselines, board, drift, jumps, new_normal, sparklines, transitions
from internist_server.judge.board import Summary
from internist_server.judge.checks import Flags, Logs, build_checks
from internist_server.judge.columns import Indices
from internist_server.judge.declared import Declared
from internist_server.judge.edges import Edges
from internist_server.judge.errors import JudgeStateError, OutOfOrder
from internist_server.judge.evaluation import EDGES, NONE, TARGET, Evaluator
from internist_server.judge.facts import Facts
from internist_server.judge.idle import Idle
from internist_server.judge.judged_step import ChangedBands, StepJudgement
from internist_server.judge.lives import Lives
from internist_server.judge.members import Members
from internist_server.judge.memory import NEVER, Memory
from internist_server.judge.outline import Outline, blocks_of, homes
from internist_server.judge.pace import Pace
from internist_server.judge.reference import Expected, Yardstick
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition

__all__ = ["Judge", "JudgedSeries", "StepJudgement", "Summary", "Transition"]


class Judge:
    """Judges the complete steps of one attempt, in order.

    What it says is a pure function of the steps and the points it is shown; its state round-trips through bytes, so how
    steps are grouped into requests changes nothing.
    """

    def __init__(
        self,
        series: Sequence[JudgedSeries],
        *,
        mup: bool,
        every: int,
        is_referenced: bool = False,
        state: bytes | None = None,
    ) -> None:
        """A judge of an attempt.

        Args:
            series: all series so far, in the order in which `add_series` was or will be called.
            mup: the run declares a spectral or muP parametrisation.
            every: steps between two light samples.
            is_referenced: the run names a reference, which `hold_to` tells as soon as it is known.
            state: of an earlier judge of the same attempt, whose series are a beginning of these; None: a new attempt.

        Raises:
            JudgeStateError: the state cannot be read, or is of other series.
        """
        self._mup = mup
        self._is_referenced = is_referenced
        self._yardstick: Yardstick | None = None
        self._every = max(every, 1)
        self._series = list(series)
        self._memory = Memory()
        if state is not None:
            order, self._memory = Memory.unpack(state)
            if order != self.order[: len(order)]:
                raise JudgeStateError(
                    f"the state is of {len(order)} series that are not the first of these {len(series)}"
                )
        self._prepare()

    def add_series(self, series: Sequence[JudgedSeries]) -> None:
        """Judges these too from now on; they come last in `order`."""
        if series:
            self._series.extend(series)
            self._prepare()

    def hold_to(self, yardstick: Yardstick | None) -> None:
        """Holds all series to a reference from now on; None: it is not known."""
        self._yardstick = yardstick
        self._expect()

    @property
    def held(self) -> int:
        """How many of its series a reference speaks for."""
        return 0 if self._expected is None else self._expected.count

    @property
    def order(self) -> list[int]:
        """Ids of the series in column order. It only ever grows."""
        return [one.id for one in self._series]

    @property
    def judged_step(self) -> int | None:
        """The last judged step."""
        return None if self._memory.step == NEVER else self._memory.step

    def window_due(self, step: int) -> tuple[int, int] | None:
        """The inclusive window of steps whose points `refresh` needs before `step` is judged; None: nothing is due."""
        memory = self._memory
        if memory.origin == NEVER or not self._checks.baselined.any():
            return None
        return bands.baseline_window(step, origin=memory.origin, taken=memory.grid)

    def window_sample(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the stored steps of one plan within the window `refresh` should be given."""
        return bands.window_sample(steps, every=self._every, origin=self._memory.origin)

    def refresh(self, step: int, values: Logs, steps: NDArray[np.int64]) -> None:
        """Takes the baselines anew, before `step` is judged.

        A series that has too few points in the window keeps the baseline it has, and so does one that is out of its
        band: what is wrong must not become what it is measured by. Points of the last excursion make no baseline
        afterwards either.

        Args:
            step: the step that will be judged next.
            values: (points, series) aligned with `order`, NaN where a series has no point.
            steps: step of each row, as `window_sample` chose them.
        """
        baselines.refresh(self._memory, self._checks, step=step, values=values, steps=steps)
        self._centre_bands()

    def accept(self, series: int, values: Logs, steps: NDArray[np.int64]) -> list[Transition]:
        """Someone says that what a series is now is its new normal: its baseline is taken from these points.

        Args:
            series: its id.
            values: (points, series) aligned with `order`, of its present excursion.
            steps: step of each row.

        Returns:
            What became of its alert; empty where none of a value judged by its own baseline is open.
        """
        memory, checks = self._memory, self._checks
        check = new_normal.check_of(series, self._series, checks, memory)
        if check is None:
            return []
        before = self._lives.phases()
        new_normal.take(memory, checks, check, values=values, steps=steps)
        self._centre_bands()
        after = self._lives.phases()
        memory.is_critical = after.is_critical
        edges = Edges(checks, memory, self._bands)
        return transitions.of_checks(
            self._series, checks, memory, edges, before, after, memory.worst, is_new_normal=True
        )

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
        memory.begin(
            step, every=self._every, is_sampled=bool(present[checks.rate_columns].any() or present[checks.column].any())
        )
        present = self._idle.without(present)
        before, seen = memory.last.copy(), memory.seen.copy()
        is_first = present & (seen == NEVER)
        np.copyto(memory.seen, step, where=present)
        np.copyto(memory.last, values, where=present)
        finite = np.isfinite(values)
        changes = self._observe_jumps(values, present, before, seen)
        bad = present & ((checks.finite & ~finite) | (checks.counts_nonfinite & (values > 0)))
        if skipped:
            bad &= ~checks.is_gradient
        place = self._outline().place
        changes += self._lives.advance_finite(bad, present & ~checks.is_gradient if skipped else present, place)

        self._keep_first(values, present & finite)
        found = self._evaluator.evaluate(
            values,
            present,
            finite=finite,
            bands=self._bands,
            ceiling=self._ceiling.at(memory.schedule.raw, self._pace.offset),
            schedule=memory.schedule,
            pace=self._pace,
            last_values=memory.last,
            recent=memory.recent,
            first=memory.first,
            reference=None if self._expected is None else self._expected.at(step, memory.schedule),
        )
        shown = found.judged & ~np.isnan(found.ratio)
        np.copyto(memory.ratio, found.ratio, where=shown)
        np.copyto(memory.basis, found.basis, where=shown)
        self._take_recent(values, present & finite, found.violates)
        changed = self._keep_edges(found.edges, shown)
        drift.observe(memory.trends, age=step - memory.origin, logs=found.levels, measured=found.measured)
        changes += self._lives.advance_checks(found, shown, self._bands)
        changes += self._lives.advance_facts(
            self._facts, values, present, is_first, is_referenced=self._expected is not None
        )
        if step % self._every == 0:
            changes += self._lives.advance_silence(self._idle, self._distances(), place)
        if len(changes) > 1:
            changes = transitions.first_causes_first(changes, self.order, place, self._distances())

        ratios = np.full(len(self._series), np.nan, np.float32)
        ratios[checks.column] = np.where(shown, found.ratio, np.float32(np.nan))
        ratios[bad] = np.inf
        basis = np.zeros(len(self._series), np.uint8)
        basis[checks.column] = np.where(shown, found.basis, np.uint8(NONE))
        basis[bad] = TARGET
        if step % self._every == 0:
            sparklines.draw(
                memory.sparklines, checks, step, np.where(shown, found.ratio, np.nan), bad if present.any() else None
            )
        return StepJudgement(
            step, memory.schedule.factor, memory.schedule.divisor, ratios.astype(np.float16), basis, changed, changes
        )

    def verdicts(self, run: str, attempt: str, *, limit: int | None = None, is_over: bool = False) -> views.Verdicts:
        """The verdict board, worst first; `limit` cuts its members, not its roll-ups. Nothing is foretold of a run that
        is over."""
        members = self._members(is_over=is_over)
        return board.verdicts(
            members.standing(),
            members.verdict,
            run=run,
            attempt=attempt,
            step=self.judged_step,
            sparklines=[self._memory.sparklines.line(card) for card in range(len(CARDS))],
            limit=limit,
        )

    def summary(self) -> Summary:
        """The run's state, its sentence and its counts, without building the board."""
        members = self._members()
        return board.summary(members.standing(), members.verdict)

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
        order, other = Memory.unpack(parent)
        here = {one.id: column for column, one in enumerate(self._series)}
        self._memory.inherit(other, [here.get(one if ids is None else ids.get(one, -1), -1) for one in order])
        self._centre_bands()

    def _prepare(self) -> None:
        """What follows from the series alone."""
        self._checks = build_checks(self._series, mup=self._mup, is_referenced=self._is_referenced)
        self._evaluator = Evaluator(self._checks)
        self._declared = Declared(self._series, self._checks)
        self._facts = Facts(self._series, declared=self._mup)
        self._idle = Idle(self._series)
        self._forward: Outline | None = None
        self._homes = homes(self._series)
        self._memory.grow(self._checks, len(self._series))
        self._lives = Lives(self._series, self._checks, self._memory, every=self._every)
        self._centre_bands()
        self._expect()

    def _expect(self) -> None:
        """What the reference expects of the checks as they are now."""
        yardstick = self._yardstick
        blocks = blocks_of(self._series)
        self._expected = None if yardstick is None else Expected(yardstick, self._series, self._checks, blocks)

    def _centre_bands(self) -> None:
        """Bands and ceilings, after baselines or the end of warm-up changed them."""
        self._bands = baselines.bands_of(self._memory, self._checks)
        self._pace = Pace.of(self._checks, self._memory.schedule, self._memory.own_rates)
        self._ceiling = baselines.Ceiling.of(self._memory)

    def _observe_jumps(self, values: Logs, present: Flags, last_values: Logs, seen: Indices) -> list[Transition]:
        memory, checks = self._memory, self._checks
        rates, was_warming = checks.rate_columns, memory.schedule.is_warming_up
        were = jumps.open_jumps(checks, memory)
        jumps.watch_weights(checks, memory, self._outline().place, before=last_values, seen=seen, present=present)
        jumps.watch_decays(checks, memory, before=last_values, present=present)
        jumps.watch_logits(checks, memory, before=last_values, seen=seen, present=present)
        jumps.watch_states(checks, memory, before=last_values, seen=seen, present=present)
        if present[rates].any():
            memory.schedule.observe(
                memory.step,
                np.where(present[rates], values[rates], np.nan).astype(np.float64),
                declared=self._declared.multipliers(values, present),
                rise=self._declared.rise(values, present),
            )
            memory.own_rates.observe(memory.step, memory.schedule)
            self._pace = Pace.of(checks, memory.schedule, memory.own_rates)
        if was_warming != memory.schedule.is_warming_up:
            self._centre_bands()
        pairs = zip(were, jumps.open_jumps(checks, memory), strict=True)
        return [one for pair in pairs for one in jumps.moved(self._series, self._homes, memory.step, *pair)]

    def _keep_first(self, values: Logs, measured: Flags) -> None:
        """Remember the first positive value of each check."""
        memory, checks = self._memory, self._checks
        value = checks.judged(values)
        np.copyto(memory.first, value, where=np.isnan(memory.first) & measured[checks.column] & (value > 0))

    def _take_recent(self, values: Logs, measured: Flags, violates: Flags) -> None:
        """Take in what is judged by its own last values, and forget how far out those were that have no band now."""
        memory, at = self._memory, self._checks.recent
        taken = measured[self._checks.column[at]] & ~violates[at]
        memory.recent.take(self._checks.judged(values)[at], taken, multiplies=self._checks.recent_multiplies)
        memory.ratio[at[np.isnan(memory.recent.centre)]] = np.nan

    def _keep_edges(self, edges: Sequence[Logs], shown: Flags) -> ChangedBands:
        """Remember the band of what was judged; those that differ from the ones before."""
        memory, checks = self._memory, self._checks
        np.copyto(memory.unit, np.where(checks.scheduled, np.float32(memory.schedule.divisor), 1), where=shown)
        at = np.flatnonzero(shown)
        is_new = np.zeros(at.size, bool)
        for name, edge in zip(EDGES, edges, strict=True):
            known, now = getattr(memory, name), edge[at]
            before = known[at]
            is_new |= (before != now) & ~(np.isnan(before) & np.isnan(now))
            known[at] = now
        at = at[is_new]
        band = np.stack([edge[at] for edge in edges], axis=1)
        return ChangedBands(checks.column[at], checks.scheduled[at], band)

    def _outline(self) -> Outline:
        if self._forward is None:
            self._forward = Outline.of(self._series)
        return self._forward

    def _distances(self) -> NDArray[np.float64]:
        """Steps between two points of each series as they come now."""
        return self._checks.thinning.distances(self._memory.last, every=self._every, stride=self._memory.stride)

    def _members(self, *, is_over: bool = False) -> Members:
        return Members(
            self._series, self._checks, self._memory, self._bands, self._outline(), self._distances(), is_over=is_over
        )
