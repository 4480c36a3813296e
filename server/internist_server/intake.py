"""The records of one request on their way into the database: stored, known already, or refused with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy.orm import Session

from internist.schema.rules import QUIET_AFTER_S
from internist.schema.wire import (
    MAX_TEXT_LENGTH,
    CoverageEntry,
    Finish,
    Frame,
    Note,
    Outline,
    Plan,
    Record,
    Refused,
    RunStart,
    Series,
)
from internist_server import admission
from internist_server.clocks import server_moment
from internist_server.cursor import advance_cursor, note_end
from internist_server.errors import Refused as RefusedError
from internist_server.known import KnownAttempt
from internist_server.store import alerts, attempts, coverage, frames, notifications, references, sequences
from internist_server.store import series as series_store
from internist_server.store.attempts import Attempt
from internist_server.store.frames import NewFrame
from internist_server.store.ranks import Rank, save_rank
from internist_server.store.series import Key, KnownSeries, StoredPlan
from internist_server.store.starts import correct_start

REFUSAL_WEIGHT: Final = 10
"""Good frames that must follow a refused one before a run can be called well again."""
REFUSALS_KEPT: Final = 10
"""Refused frames that are held against a run at once."""


class Intake:
    """Takes the records of one rank in order, within the caller's transaction; `close` writes what was gathered.

    What is bad costs itself: of a record with many lines (series, a plan's series, coverage, an outline) only the bad
    ones are left out, and the record is refused as a whole where nothing good is left.
    """

    def __init__(
        self,
        session: Session,
        known: KnownAttempt,
        rank: Rank,
        *,
        now_ms: int,
        max_series: int,
        notify: bool,
        clock_offset_ms: int | None = None,
    ) -> None:
        """An intake for one request.

        Args:
            known: the attempt; what becomes of it and of the rank is put into it.
            notify: whether alerts of the user's code are queued for receivers.
            clock_offset_ms: how far the server's clock is ahead of the rank's: what it says is kept in the server's
                time. None: not known.
        """
        self.attempt = known.attempt
        self.rank = rank
        self.frames: list[NewFrame] = []
        """Those that are stored."""
        self.stored = 0
        self.duplicates = 0
        self.points = 0
        self.refused: list[Refused] = []
        self.is_queued = False
        self.has_new_facts = False
        self.ends: list[Finish] = []
        """How the rank says that it ended."""
        self._session = session
        self._known = known
        self._now_ms = now_ms
        self._max_series = max_series
        self._notify = notify
        self._clock_offset_ms = clock_offset_ms
        self._measured: set[int] = set()
        self._numbers: dict[int, int] | None = None
        self._held: int | None = None
        self._outlines: list[Outline] = []
        self._start_step = known.attempt.start_step

    def take(self, record: Record) -> None:
        """Take one record."""
        reason = admission.refuse_sequence(record.sequence)
        if reason is None and sequences.holds(self.rank.delivered, record.sequence):
            self.duplicates += 1
            return
        if reason is None:
            reason, is_stored = self._store(record)
            sequences.add(self.rank.delivered, record.sequence)  # a refusal is for good, too
            self.stored += is_stored
        if reason is not None:
            self.refused.append(Refused(record.sequence, reason))
        if record.frame is not None:
            self._count_frame(reason)

    def pass_over(self, sequence: int) -> None:
        """Note that a record of this number came and cannot be read: sent again it would be no better."""
        self._count_frame("it cannot be read")
        if admission.refuse_sequence(sequence) is None and not sequences.holds(self.rank.delivered, sequence):
            sequences.add(self.rank.delivered, sequence)

    def close(self) -> Attempt:
        """Write what was gathered and what is known of the rank now; the attempt as it is then."""
        if self._outlines:
            self.attempt = attempts.add_outline(self._session, self.attempt, _joined(self._outlines))
        frames.add_frames(self._session, self.attempt.id, self.rank.rank, self.frames, now_ms=self._now_ms)
        self.attempt = correct_start(self._session, self.attempt, self._start_step)
        advance_cursor(self._session, self.attempt, self.rank, measured=self._measured)
        if self.frames:
            for frame in self.frames:
                if frame.late:
                    self._known.forget_times()
                else:
                    self._known.roster.wait_for(frame.step, now_ms=self._now_ms)
            self.rank.frame_at_ms = self._now_ms
        self.rank.received_at_ms = self._now_ms
        save_rank(self._session, self.attempt.id, self.rank, added=len(self.frames))
        self._known.attempt = self.attempt
        self._known.put(self.rank)
        return self.attempt

    @property
    def lag_s(self) -> float | None:
        """Seconds since the newest of these frames was measured, by the server's clock; None: there is none."""
        newest_ms = max((frame.measured_at_ms for frame in self.frames), default=None)
        return None if newest_ms is None else (self._now_ms - newest_ms) / 1000

    def _count_frame(self, refusal: str | None) -> None:
        """A frame that is refused leaves a hole, which the good ones that follow outweigh after a while."""
        rank = self.rank
        if refusal is None:
            rank.refused = max(0, rank.refused - 1)
        else:
            rank.refused = min(rank.refused + REFUSAL_WEIGHT, REFUSALS_KEPT * REFUSAL_WEIGHT)
            rank.refusal = refusal[:MAX_TEXT_LENGTH]

    def _store(self, record: Record) -> tuple[str | None, bool]:
        """Store a record's content: why it, or a part of it, is refused, and whether anything of it is stored."""
        if not admission.is_single(record):
            return "it does not hold exactly one content that this server knows", False
        if record.series is not None:
            return self._take_series(record.sequence, record.series)
        if record.plan is not None:
            return self._take_plan(record.plan)
        if record.coverage is not None:
            return self._take_coverage(record.coverage)
        if record.outline is not None:
            return self._take_outline(record.outline)
        reason = self._take_whole(record)
        return reason, reason is None

    def _take_whole(self, record: Record) -> str | None:
        """Store a content that is taken or refused as a whole; the reason why not."""
        if record.frame is not None:
            return self._take_frame(record.sequence, record.frame)
        if record.note is not None:
            return self._take_note(record.note)
        if record.finish is not None:
            return self._take_finish(record.finish)
        assert record.start is not None
        return self._take_start(record.start)

    def _take_start(self, start: RunStart) -> str | None:
        try:
            admission.require_start(start)
        except RefusedError as error:
            return str(error)
        expected = (self.attempt.run, self.attempt.name, self.rank.rank)
        if (start.run, start.attempt, start.rank) != expected:
            return (
                f"it starts run {start.run!r}, attempt {start.attempt!r}, rank {start.rank}; the request is of another"
            )
        self._take_outline(Outline(start.config, start.modules, start.routing, start.trajectory))
        self._start_step = max(self._start_step, start.start_step)
        return None

    def _take_outline(self, outline: Outline) -> tuple[str | None, bool]:
        kept, reasons = admission.tidy_outline(outline)
        is_kept = bool(kept.config or kept.modules or kept.routing)
        if is_kept:
            self._outlines.append(kept)
        for piece in kept.trajectory:
            reason = references.add_piece(self._session, self.attempt.id, piece)
            if reason is None:
                is_kept = self.has_new_facts = True
            else:
                reasons.append(reason)
        return admission.one_reason(reasons), is_kept

    def _take_series(self, sequence: int, series: tuple[Series, ...]) -> tuple[str | None, bool]:
        taken, reasons = admission.sift_series(series)
        known = series_store.find_known(self._session, self.attempt.run, taken)
        taken, strangers = self._of_one_tensor(taken, known)
        reasons = [*reasons, *strangers]
        taken, too_many = self._within_limit(taken, known)
        if taken:
            ids = series_store.declare(
                self._session, self.attempt.run, self.attempt.id, self.rank.rank, sequence, taken, known
            )
            if self._numbers is not None:
                self._numbers.update(ids)
            self.has_new_facts = True
        return admission.one_reason([*reasons, *too_many]), bool(taken)

    def _of_one_tensor(
        self, series: tuple[Series, ...], known: Mapping[Key, KnownSeries]
    ) -> tuple[tuple[Series, ...], list[str]]:
        """The series that may be merged with what other ranks have under their names, and why the others may not."""
        others = series_store.find_other_tensors(self._session, self.attempt.id, self.rank.rank, series, known)
        reasons = [
            f"{one.metric} of {one.subject!r}: another rank has another tensor of that name ({others[one.number]}); "
            "give them different names with watch(rename=...)"
            for one in series
            if one.number in others
        ]
        return tuple(one for one in series if one.number not in others), reasons

    def _within_limit(
        self, series: tuple[Series, ...], known: Mapping[Key, KnownSeries]
    ) -> tuple[tuple[Series, ...], list[str]]:
        """The series that a run may have, and why the others are refused."""
        if self._held is None:
            self._held = series_store.count_series(self._session, self.attempt.run)
        room = self._max_series - self._held
        taken, refused = [], 0
        for one in series:
            is_known = series_store.key_of(one) in known
            if is_known or room > 0:
                taken.append(one)
                room -= not is_known
            else:
                refused += 1
        self._held = self._max_series - room
        if not refused:
            return tuple(taken), []
        return tuple(taken), [f"the run would have {self._held + refused} series; at most {self._max_series}"]

    def _take_plan(self, plan: Plan) -> tuple[str | None, bool]:
        if self._numbers is None:
            self._numbers = series_store.declared(self._session, self.attempt.id, self.rank.rank)
        reason = admission.refuse_plan(plan)
        if reason is not None:
            return reason, False
        ids, reasons = admission.sift_plan(plan, self._numbers)
        if not any(ids):
            return admission.one_reason(reasons), False
        known = self._plan(plan.number)
        counts = None if known is None or known.counts is None else known.counts.tolist()
        if known is None or known.series.tolist() != ids or (counts or []) != list(plan.counts):
            added = series_store.add_plan(self._session, self.attempt.id, self.rank.rank, plan, ids)
            self._known.put_plan(self.rank.rank, plan.number, added)
        return admission.one_reason(reasons), True

    def _take_frame(self, sequence: int, frame: Frame) -> str | None:
        plan = self._plan(frame.plan)
        reason = admission.refuse_frame(frame, None if plan is None else len(plan.series))
        if reason is not None or plan is None:
            return reason
        late, at_ms = frame.step <= self._known.judge.judged_step, self._moment(frame.measured_at_ms)
        self.frames.append(NewFrame(sequence, frame.step, plan.number, at_ms, frame.skipped, late, frame.values))
        self.points += len(plan.series)
        steps = self.rank.plan_steps
        steps[plan.number] = max(steps.get(plan.number, -1), frame.step)
        if plan.is_sampled and not frame.continued:
            self._measured.add(frame.step)
        return None

    def _take_coverage(self, entries: tuple[CoverageEntry, ...]) -> tuple[str | None, bool]:
        taken, reasons = admission.sift_coverage(entries)
        coverage.save_coverage(self._session, self.attempt.id, self.rank.rank, taken)
        self._known.forget_coverage()
        return admission.one_reason(reasons), bool(taken) or not reasons

    def _take_note(self, note: Note) -> str | None:
        reason = admission.refuse_note(note)
        if reason is None:
            note = replace(note, noted_at_ms=self._moment(note.noted_at_ms))
            is_quiet = self._now_ms - note.noted_at_ms > QUIET_AFTER_S * 1000
            alert = alerts.add_note(self._session, self.attempt, note, is_quiet=is_quiet)
            if self._notify and not is_quiet:
                notifications.queue_moment(self._session, self.attempt.run, "user", alert, now_ms=self._now_ms)
                self.is_queued = True
        return reason

    def _take_finish(self, finish: Finish) -> str | None:
        reason = admission.refuse_finish(finish.step, finish.finished_at_ms)
        if reason is None:
            finish = replace(finish, finished_at_ms=self._moment(finish.finished_at_ms))
            self.rank.finished_at_ms = finish.finished_at_ms
            note_end(self.rank, finish.step)
            save_rank(self._session, self.attempt.id, self.rank)
            self.attempt = attempts.finish(self._session, self.attempt, finish)
            self.ends.append(finish)
        return reason

    def _moment(self, said_ms: int) -> int:
        """A moment of the rank's in the server's time."""
        return server_moment(said_ms, self._clock_offset_ms, now_ms=self._now_ms)

    def _plan(self, number: int) -> StoredPlan | None:
        """The plan of this rank of that number, if it is known."""
        if not 0 <= number <= admission.LAST_INDEX:
            return None
        return self._known.plan(self._session, self.rank.rank, number)


def _joined(outlines: Sequence[Outline]) -> Outline:
    """Several outlines as one."""
    config = dict(entry for outline in outlines for entry in outline.config.items())
    modules = tuple(module for outline in outlines for module in outline.modules)
    return Outline(config, modules, tuple(route for outline in outlines for route in outline.routing))
