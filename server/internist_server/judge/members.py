"""Members of the board: where each check, each series and the learning rate stand, and each verdict in full."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from internist.schema import views
from internist.schema.conditions import (
    APPLIES,
    CARDS,
    CONDITION,
    CRITERIA,
    RECENT_MINIMUM_POINTS,
    RECENT_POINTS,
    Basis,
    State,
)
from internist.schema.views import Number
from internist_server.alerts.lifecycle import FIRING, INACTIVE
from internist_server.judge import drift, sureness, wording
from internist_server.judge.board import DRIFTING, NOT_MEASURED, OK, STRENGTH, VIOLATED, Standing
from internist_server.judge.checks import NUMERIC_CARD, Checks, Flags, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.edges import Edge, Edges
from internist_server.judge.evaluation import BASES, REFERENCE, Bands
from internist_server.judge.jumps import Jump, open_jumps
from internist_server.judge.memory import NEVER, Memory
from internist_server.judge.outline import Outline
from internist_server.judge.series import JudgedSeries
from internist_server.judge.sureness import Sureness

_STRENGTH_OF_BASIS = np.array([STRENGTH.index(basis) if basis else 0 for basis in BASES])
_FACT_CARD = CARDS.index(CONDITION["first_step"].card)
_IS_SIGN = np.array([CONDITION[criterion.condition].is_sign for criterion in CRITERIA])
CAUSE = np.array([{"feature": 1, "model": 2}.get(criterion.cause, 0) for criterion in CRITERIA])
"""By criterion: 0 for own causes, 1 for what follows from them in a module, 2 for what follows in the whole model."""


def number(value: float) -> Number:
    """A float as JSON carries it."""
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


class Members:
    """All verdicts as they stand: checks, then series that must be finite, then a learning rate that jumped."""

    def __init__(
        self,
        series: Sequence[JudgedSeries],
        checks: Checks,
        memory: Memory,
        bands: Bands,
        outline: Outline,
        distances: NDArray[np.float64],
        *,
        is_over: bool,
    ) -> None:
        self._distances = distances
        self._is_over = is_over
        self._series, self._checks, self._memory, self._bands = series, checks, memory, bands
        self._outline = outline
        self._edges = Edges(checks, memory, bands)
        self._finite = np.flatnonzero(checks.finite | checks.counts_nonfinite)
        self._silent = is_silent(memory, checks.column, distances, checks.needed)
        self._silent_series = is_silent(memory, self._finite, distances, 2)
        self._own = set(checks.recent.tolist())
        self._jumps = [jump for jump in open_jumps(checks, memory) if jump is not None]

    def standing(self) -> Standing:
        """Where all members stand."""
        memory, checks = self._memory, self._checks
        raised = np.where(
            memory.violation.phase == FIRING,
            VIOLATED,
            np.where(memory.warning.phase == FIRING, DRIFTING, OK),
        )
        known = ~np.isnan(memory.ratio) & ~np.isnan(self._centre_or_promise()) & ~self._silent
        ranks = np.where(known | (raised == VIOLATED), raised, NOT_MEASURED)
        bad = memory.numeric.phase[self._finite] != INACTIVE
        seen = (memory.seen[self._finite] != NEVER) & ~self._silent_series
        numeric = np.where(bad, VIOLATED, np.where(seen, OK, NOT_MEASURED))
        excess = np.where(memory.is_two_sided(checks), np.abs(memory.ratio), memory.ratio).astype(np.float64)
        jumps, facts, size = self._jumps, memory.facts, self._finite.size
        others = len(jumps) + len(facts)
        rest = size + others
        of_others = [*(jump.column for jump in jumps), *(column for column, *_ in facts)]
        columns = np.concatenate([checks.column, self._finite, of_others]).astype(np.int64)
        cards = [*(CARDS.index(CONDITION[jump.condition].card) for jump in jumps), *([_FACT_CARD] * len(facts))]
        others_since = [*(jump.step for jump in jumps), *(since for _, since, *_ in facts)]
        since = np.concatenate([memory.violation.started, memory.numeric.started[self._finite], others_since]).astype(
            np.int64
        )
        others_rank = [*(VIOLATED if jump.rose else DRIFTING for jump in jumps), *([DRIFTING] * len(facts))]
        away = [*(jump.away for jump in jumps), *(math.log2(value / bound) for _, _, value, bound, *_ in facts)]
        outline = self._outline
        return Standing(
            rank=np.concatenate([ranks, numeric, others_rank]).astype(np.uint8),
            card=np.concatenate([checks.card, np.full(size, NUMERIC_CARD), cards]).astype(np.int64),
            strength=np.concatenate([_STRENGTH_OF_BASIS[memory.basis], np.full(rest, STRENGTH.index("target"))]),
            excess=np.concatenate([excess, np.where(bad, np.inf, -np.inf), away]),
            is_sign=np.concatenate([_IS_SIGN[checks.criterion], np.zeros(size, bool), np.ones(others, bool)]),
            is_finite=np.concatenate([np.ones(checks.column.size, bool), ~bad, np.ones(others, bool)]),
            cause=np.concatenate([CAUSE[checks.criterion], np.zeros(rest, np.int64)]),
            since=since,
            began=since - np.maximum(self._distances[columns], 1).astype(np.int64) + 1,
            place=outline.place[columns],
            block=outline.block[columns],
            blocks=outline.blocks,
            block_order=outline.block_order,
        )

    def verdict(self, member: int) -> views.Verdict:
        """One of them in full."""
        if member < self._checks.column.size:
            return self._of_check(member)
        if member < self._checks.column.size + self._finite.size:
            return self._of_finite(member - self._checks.column.size)
        rest = member - self._checks.column.size - self._finite.size
        return self._of_jump(self._jumps[rest]) if rest < len(self._jumps) else self._of_fact(rest - len(self._jumps))

    @cached_property
    def _crossings(self) -> drift.Crossings:
        """Where trends lead; a summary does not tell of it."""
        high, low = self._edges.ahead()
        return drift.crossings(self._memory.trends, high=high, low=low, start=self._edges.start(high))

    def _centre_or_promise(self) -> Logs:
        centre = self._bands.centre.copy()
        centre[self._checks.muon.check] = 0.0
        centre[self._memory.basis == REFERENCE] = 0.0
        centre[self._checks.recent] = 0.0
        return centre

    def _of_check(self, check: int) -> views.Verdict:
        memory, checks = self._memory, self._checks
        column = int(checks.column[check])
        life = memory.violation if memory.violation.phase[check] else memory.warning
        is_known = not math.isnan(memory.ratio[check]) and not math.isnan(self._centre_or_promise()[check])
        state = self._state_of_check(check, is_known=is_known)
        ratio = float(np.exp2(memory.ratio[check])) if is_known else None
        low, high = None, None
        basis = BASES[int(memory.basis[check])] if is_known else None
        seen = int(memory.seen[column])
        if is_known and ratio is not None and basis is not None:
            low, high = self._edges.of(check, is_critical=bool(memory.is_critical[check]))
            metric, value = self._series[column].metric, float(memory.last[column])
            reason = wording.standing(metric=metric, basis=basis, ratio=ratio, value=value, low=low, high=high)
        else:
            reason = self._why_not(check, seen)
        if is_known and self._silent[check]:
            reason = f"no data since step {seen}" if state == "not measured" else f"{reason}; no data since step {seen}"
        crossing = self._crossings
        drifts = state == "ok" and not self._is_over and bool(crossing.drifts[check])
        if drifts:
            reason += f", leaves its band near step {memory.origin + crossing.age[check]:.0f} if this goes on"
        return self._verdict(
            column,
            condition=CRITERIA[int(checks.criterion[check])].condition,
            state=state,
            basis=basis,
            reason=reason,
            ratio=None if ratio is None else number(ratio),
            since=int(life.started[check]),
            source=self._source(check, basis, int(life.started[check])),
            band=(low, high),
            sure=sureness.of_check(memory, checks, check) if basis is not None else None,
            crossing=tuple(memory.origin + int(x[check]) for x in (crossing.age, crossing.low, crossing.high))
            if drifts
            else None,
        )

    def _state_of_check(self, check: int, *, is_known: bool) -> State:
        memory = self._memory
        if memory.violation.phase[check] == FIRING:
            return "violated"
        if not is_known or self._silent[check]:
            return "not measured"
        return "drifting" if memory.warning.phase[check] == FIRING else "ok"

    def _source(self, check: int, basis: Basis | None, since: int) -> str:
        """Where the band of a check comes from."""
        criterion = CRITERIA[int(self._checks.criterion[check])]
        if check in self._own:
            return f"its last {RECENT_POINTS} values that were in their band"
        if basis == "target" and check in self._checks.growing:
            return f"derived: {criterion.growth:g} times its first value, or of 1 where that was less"
        if basis == "target" and criterion.target is not None:
            return f"{criterion.target.source} (applies to: {APPLIES[criterion.target.applies_when]})"
        if basis == "baseline":
            where = "from a quarter to half of the run" if since == NEVER else f"before step {since}"
            return f"its own values {where}"
        return "derived: the linearisation of a step ends there" if basis == "sanity" else ""

    def _why_not(self, check: int, seen: int) -> str:
        if seen == NEVER:
            return "no point yet"
        if check in self._own:
            is_young = (
                self._memory.recent.taken[np.flatnonzero(self._checks.recent == check)[0]] < RECENT_MINIMUM_POINTS
            )
            return "warming up: too few points for a band" if is_young else "its values are not all positive"
        if self._checks.baselined[check]:
            if self._checks.scheduled[check] and self._memory.schedule.is_warming_up:
                return "warming up: the learning rate still rises"
            return (
                "its baseline is zero"
                if self._memory.baseline[check] == 0
                else "warming up: too few points for a baseline"
            )
        if not self._checks.muon.check.size or check not in self._checks.muon.check:
            return "the reference run says nothing of it at this step"
        return "no learning rate or weight norm to compare with"

    def _of_finite(self, place: int) -> views.Verdict:
        column = int(self._finite[place])
        memory = self._memory
        seen, value = int(memory.seen[column]), float(memory.last[column])
        since = int(memory.numeric.started[column])
        state: State = "ok"
        reason = "finite"
        if memory.numeric.phase[column] != INACTIVE:
            state, reason = "violated", wording.nonfinite(self._series[column].metric, value)
        elif seen == NEVER:
            state, reason = "not measured", "no point yet"
        if self._silent_series[place]:
            state = "violated" if state == "violated" else "not measured"
            reason = f"{reason}; no data since step {seen}" if state == "violated" else f"no data since step {seen}"
        is_known = state != "not measured"
        return self._verdict(
            column,
            condition="numeric",
            state=state,
            basis="target" if is_known else None,
            reason=reason,
            ratio="inf" if state == "violated" else None,
            since=since,
            crossing=None,
            how_sure=wording.COUNTED if is_known else "",
        )

    def _of_fact(self, place: int) -> views.Verdict:
        column, since, value, bound, said, whose = self._memory.facts[place]
        return self._verdict(
            column,
            condition="first_step",
            state="drifting",
            basis="target",
            reason=wording.fact(said, value, bound, whose=whose),
            ratio=number(value / bound),
            since=since,
            crossing=None,
            band=(None, bound),
            source="derived: what is of order one from the start" + (f" under {whose}" if whose else ""),
        )

    def _of_jump(self, jump: Jump) -> views.Verdict:
        return self._verdict(
            jump.column,
            condition=jump.condition,
            state="violated" if jump.rose else "drifting",
            basis="target",
            reason=wording.jump(jump.ratio)
            if jump.condition != "optimizer_state"
            else wording.forgotten(now=jump.now, before=jump.before),
            ratio=number(jump.ratio),
            since=jump.step,
            crossing=None,
            how_sure=wording.SEEN,
            source=f"derived: no {'learning' if jump.condition == 'logit_jump' else 'schedule'} leaps so far",
        )

    def _verdict(
        self,
        column: int,
        *,
        condition: str,
        state: State,
        basis: Basis | None,
        reason: str,
        ratio: Number,
        since: int,
        crossing: tuple[int, ...] | None,
        band: Edge = (None, None),
        source: str = "",
        sure: Sureness | None = None,
        how_sure: str = "",
    ) -> views.Verdict:
        if sure is not None:
            is_out = state in ("drifting", "violated")
            how_sure = wording.sureness(sure.samples, sure.deviations, sure.sure, is_out=is_out)
        elif basis is not None and not how_sure:
            how_sure = wording.SURE_OF[basis]
        one, seen = self._series[column], int(self._memory.seen[column])
        return views.Verdict(
            condition=condition,
            state=state,
            basis=basis,
            reason=reason,
            series=one.id,
            metric=one.metric,
            kind=one.kind,
            subject=one.subject,
            index=one.index,
            bound=one.bound,
            block=one.facts.block,
            step=None if seen == NEVER else seen,
            value=None if seen == NEVER else number(float(self._memory.last[column])),
            ratio=ratio,
            since_step=since if since != NEVER and state in ("drifting", "violated") else None,
            source=source,
            advice=CONDITION[condition].advice if state in ("drifting", "violated") else "",
            band_low=None if band[0] is None else number(band[0]),
            band_high=None if band[1] is None else number(band[1]),
            crossing_step=crossing[0] if crossing else None,
            crossing_low=crossing[1] if crossing else None,
            crossing_high=crossing[2] if crossing else None,
            samples=None if sure is None else sure.samples,
            deviations=None if sure is None else number(sure.deviations),
            sure=None if sure is None else sure.sure,
            how_sure=how_sure,
        )


def is_silent(memory: Memory, column: Indices, distances: NDArray[np.float64], needed: Indices | int) -> Flags:
    """Whether a series has missed more points than an alert waits for, at the distance at which they come now."""
    seen = memory.seen[column]
    missed: Flags = (seen != NEVER) & (memory.step - seen > (np.asarray(needed) + 1) * distances[column])
    return missed
