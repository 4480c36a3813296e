"""The records of one request on their way into the database: stored, known already, or refused with a reason."""

from sqlalchemy.orm import Session

from internist.schema.rules import QUIET_AFTER_S
from internist.schema.wire import CoverageEntry, Finish, Frame, Note, Plan, Record, Refused, RunStart, Series
from internist_server import admission
from internist_server.errors import Refused as RefusedError
from internist_server.store import alerts, attempts, coverage, frames, notifications, sequences
from internist_server.store import series as series_store
from internist_server.store.attempts import Attempt, Rank
from internist_server.store.frames import NewFrame
from internist_server.store.series import StoredPlan


class Intake:
    """Takes the records of one rank in order, within the caller's transaction; `close` writes what was gathered."""

    def __init__(
        self,
        session: Session,
        attempt: Attempt,
        rank: Rank,
        *,
        judged_step: int,
        now_ms: int,
        max_series: int,
        notify: bool,
    ) -> None:
        """An intake for one request.

        Args:
            judged_step: frames up to this step come late.
            notify: whether alerts of the user's code are queued for receivers.
        """
        self.attempt = attempt
        self.rank = rank
        self.stored = 0
        self.duplicates = 0
        self.points = 0
        self.refused: list[Refused] = []
        self.is_queued = False
        self.has_new_facts = False
        self._session = session
        self._judged_step = judged_step
        self._now_ms = now_ms
        self._max_series = max_series
        self._notify = notify
        self._frames: list[NewFrame] = []
        self._plans: dict[int, StoredPlan | None] = {}
        self._numbers: dict[int, int] | None = None

    def take(self, record: Record) -> None:
        """Take one record."""
        reason = admission.refuse_sequence(record.sequence)
        if reason is None and sequences.holds(self.rank.delivered, record.sequence):
            self.duplicates += 1
            return
        if reason is None:
            reason = self._store(record)
            sequences.add(self.rank.delivered, record.sequence)  # a refusal is for good, too
        if reason is None:
            self.stored += 1
        else:
            self.refused.append(Refused(record.sequence, reason))

    def close(self) -> Attempt:
        """Write frames and what is known of the rank now; the attempt as it is then."""
        frames.add_frames(self._session, self.attempt.id, self.rank.rank, self._frames, now_ms=self._now_ms)
        last_steps: dict[int, int] = {}
        for frame in self._frames:
            plan = self._plans[frame.plan]
            assert plan is not None
            self.points += len(plan.series)
            self.rank.last_step = max(self.rank.last_step, frame.step)
            if plan.is_sampled:
                self.rank.sampled_step = max(self.rank.sampled_step, frame.step)
            last_steps[frame.plan] = max(last_steps.get(frame.plan, -1), frame.step)
        if self._frames:
            self.rank.frame_at_ms = self._now_ms
        self.rank.received_at_ms = self._now_ms
        series_store.save_last_steps(self._session, self.attempt.id, self.rank.rank, last_steps)
        attempts.save_rank(self._session, self.attempt.id, self.rank)
        return self.attempt

    @property
    def frames(self) -> int:
        """Number of frames stored."""
        return len(self._frames)

    def _store(self, record: Record) -> str | None:
        """Store a record's content; the reason why not."""
        if not admission.is_single(record):
            return "it does not hold exactly one content that this server knows"
        if record.frame is not None:
            return self._take_frame(record.sequence, record.frame)
        if record.series is not None:
            return self._take_series(record.sequence, record.series)
        if record.plan is not None:
            return self._take_plan(record.plan)
        if record.coverage is not None:
            return self._take_coverage(record.coverage)
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
        return None

    def _take_series(self, sequence: int, series: tuple[Series, ...]) -> str | None:
        reason = admission.refuse_series(series)
        if reason is not None:
            return reason
        held = series_store.count_series(self._session, self.attempt.run)
        if held + len(series) > self._max_series:
            new = len(series) - series_store.count_known(self._session, self.attempt.run, series)
            if held + new > self._max_series:
                return f"the run would have {held + new} series; at most {self._max_series}"
        ids = series_store.declare(self._session, self.attempt.run, self.attempt.id, self.rank.rank, sequence, series)
        if self._numbers is not None:
            self._numbers.update(ids)
        self.has_new_facts = True
        return None

    def _take_plan(self, plan: Plan) -> str | None:
        if self._numbers is None:
            self._numbers = series_store.declared(self._session, self.attempt.id, self.rank.rank)
        reason = admission.refuse_plan(plan, self._numbers)
        if reason is not None:
            return reason
        ids = [self._numbers[number] for number in plan.series]
        if len(set(ids)) != len(ids):
            return f"plan {plan.number} names one series under two numbers"
        known = self._plan(plan.number)
        if known is None:
            self._plans[plan.number] = series_store.add_plan(self._session, self.attempt.id, self.rank.rank, plan, ids)
        elif known.series.tolist() != ids or (() if known.counts is None else tuple(known.counts)) != plan.counts:
            return f"plan {plan.number} is known with other series or counts; a changed plan needs a new number"
        return None

    def _take_frame(self, sequence: int, frame: Frame) -> str | None:
        plan = self._plan(frame.plan)
        reason = admission.refuse_frame(frame, None if plan is None else len(plan.series))
        if reason is None:
            late = frame.step <= self._judged_step
            self._frames.append(
                NewFrame(sequence, frame.step, frame.plan, frame.measured_at_ms, frame.skipped, late, frame.values)
            )
        return reason

    def _take_coverage(self, entries: tuple[CoverageEntry, ...]) -> str | None:
        reason = admission.refuse_coverage(entries)
        if reason is None:
            coverage.save_coverage(self._session, self.attempt.id, self.rank.rank, entries)
        return reason

    def _take_note(self, note: Note) -> str | None:
        reason = admission.refuse_note(note)
        if reason is None:
            is_quiet = self._now_ms - note.noted_at_ms > QUIET_AFTER_S * 1000
            alert = alerts.add_note(self._session, self.attempt, note, is_quiet=is_quiet)
            if self._notify and not is_quiet:
                notifications.queue_note(self._session, self.attempt.run, alert, now_ms=self._now_ms)
                self.is_queued = True
        return reason

    def _take_finish(self, finish: Finish) -> str | None:
        reason = admission.refuse_finish(finish.step, finish.finished_at_ms)
        if reason is None:
            self.rank.finished_at_ms = finish.finished_at_ms
            attempts.save_rank(self._session, self.attempt.id, self.rank)
            self.attempt = attempts.finish(self._session, self.attempt, finish)
        return reason

    def _plan(self, number: int) -> StoredPlan | None:
        """The plan of this rank of that number, if it is known."""
        if not 0 <= number <= admission.LAST_INDEX:
            return None
        if number not in self._plans:
            found = series_store.list_plans(self._session, self.attempt.id, rank=self.rank.rank, numbers=[number])
            self._plans[number] = found[0] if found else None
        return self._plans[number]
