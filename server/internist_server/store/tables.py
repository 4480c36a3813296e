"""Tables of runs, of what came from them and what was judged of it. Rows never leave the store."""

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from internist_server.store.base import KEY, Base

NO_INDEX = -1
"""Stands for `index is None` in the key of a series: NULLs are distinct in unique keys."""
NEVER = -1
"""A step before every step: nothing was delivered, or judged, yet."""


class RunRow(Base):
    """One training job."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    project: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    created_at_ms: Mapped[int] = mapped_column(index=True)
    config: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    """Large, for some, so it is read by those who need it."""
    parametrization: Mapped[str]
    optimizers: Mapped[list[Any]]
    reference: Mapped[str | None]
    thresholds: Mapped[list[Any] | None]
    """Limits that the run sets for itself; None: none."""
    owner: Mapped[str | None]
    """The name of the token that started it, which alone may write to it; None: whoever administers the server."""


class LabelRow(Base):
    """What people say of a run; none where nobody has said anything."""

    __tablename__ = "labels"

    run_id: Mapped[str] = mapped_column(String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str | None]
    """In place of the one that its start gave it."""
    tags: Mapped[str]
    """One a line, so that a search finds them."""
    notes: Mapped[str]
    is_pinned: Mapped[bool]
    is_archived: Mapped[bool]


class StandingRow(Base):
    """How a run stood after the last transaction that changed it: what lists show, and when time alone brings more.

    Of its newest attempt; `attempt_id` is None where nothing is known yet, as after an upgrade.
    """

    __tablename__ = "standings"

    run_id: Mapped[str] = mapped_column(String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    cursor: Mapped[int] = mapped_column(default=0)
    """Rises with every change of the run."""
    next_check_ms: Mapped[int | None] = mapped_column(index=True)
    """When time alone will have brought something, by the server's clock; None: never."""
    attempt_id: Mapped[int | None]
    state: Mapped[str | None]
    """While it is heard of: `lost` follows from `contact_ms`."""
    reason: Mapped[str | None]
    contact_ms: Mapped[int | None]
    reached: Mapped[int | None]
    last_step: Mapped[int | None]
    last_frame_at_ms: Mapped[int | None]
    heartbeat_at_ms: Mapped[int | None]
    step_ms: Mapped[float | None]
    verdict: Mapped[str | None]
    sentence: Mapped[str | None]
    violated: Mapped[int | None]
    drifting: Mapped[int | None]
    loss: Mapped[float | None]
    learning_rate: Mapped[float | None]
    overhead: Mapped[float | None]
    coverage: Mapped[float | None]
    series: Mapped[int | None]


class AttemptRow(Base):
    """One start of a run."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("run_id", "name"), UniqueConstraint("run_id", "number"))

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(128))
    """The client's id of the attempt."""
    number: Mapped[int]
    """For display, from 1."""
    parent: Mapped[str | None]
    world_size: Mapped[int]
    every: Mapped[int]
    started_at_ms: Mapped[int]
    """By the server's clock, by which attempts are ordered: when they came, less what they had waited."""
    received_at_ms: Mapped[int]
    """By the server's clock."""
    start_step: Mapped[int]
    fine_from: Mapped[int] = mapped_column(default=0, server_default="0")
    """Of steps below this only spans are left."""
    client: Mapped[str]
    modules: Mapped[list[Any]] = mapped_column(deferred=True)
    """The model's outline: megabytes, for a large one, so it is read by those who need it."""
    routing: Mapped[list[Any] | None] = mapped_column(deferred=True)
    """How each parameter is stepped; None in rows older than this column."""
    finished_at_ms: Mapped[int | None]
    outcome: Mapped[str | None]


class RankRow(Base):
    """One process of an attempt: what it has delivered, and its last sign of life."""

    __tablename__ = "ranks"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    mesh: Mapped[dict[str, Any]]
    delivered: Mapped[list[Any]]
    """Sequence numbers taken or refused for good, as inclusive intervals in rising order."""
    last_step: Mapped[int] = mapped_column(default=NEVER)
    sampled_step: Mapped[int] = mapped_column(default=NEVER)
    """Last step whose sampled frame (not only logged scalars) has come."""
    plan_steps: Mapped[dict[str, Any] | None]
    """The newest step of the frames of each plan, by its number as text."""
    received_at_ms: Mapped[int]
    frame_at_ms: Mapped[int | None]
    heartbeat_at_ms: Mapped[int | None]
    heartbeat_step: Mapped[int | None]
    step_age_ms: Mapped[int | None]
    clock_offset_ms: Mapped[int | None]
    """How far the server's clock is ahead of its own; None: it never told."""
    powers: Mapped[list[Any] | None]
    """By how much its own costs ask to thin sampling, as its last heartbeat told; None: it did not tell."""
    finished_at_ms: Mapped[int | None]
    loose: Mapped[int] = mapped_column(default=0, server_default="0")
    """Frames that do not lie in tiles yet."""
    refused: Mapped[int] = mapped_column(default=0)
    """Good frames that must come before what is known of this rank is whole again: some of its frames were refused."""
    refusal: Mapped[str | None]
    """Why the last one was."""
    pause: Mapped[str | None]
    """What it said, in its last heartbeat, that it pauses for."""


class SeriesRow(Base):
    """One metric of one subject in a run."""

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("run_id", "metric", "kind", "subject", "index", "bound"),)

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    metric: Mapped[str]
    kind: Mapped[str]
    subject: Mapped[str]
    index: Mapped[int]
    """Head or expert; `NO_INDEX` without one."""
    bound: Mapped[str]
    facts: Mapped[dict[str, Any]]


class DeclarationRow(Base):
    """How a rank numbers series in its plans: two aligned int64 arrays."""

    __tablename__ = "declarations"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    numbers: Mapped[bytes]
    series: Mapped[bytes]


class PlanRow(Base):
    """The series whose values frames of this plan carry, as int64 server ids, and the counts of their parts."""

    __tablename__ = "plans"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    is_sampled: Mapped[bool]
    """Whether it holds more than logged scalars."""
    series: Mapped[bytes]
    counts: Mapped[bytes | None]


class FrameRow(Base):
    """What one rank measured at one step, as it was sent: little-endian float32 aligned with the plan."""

    __tablename__ = "frames"
    __table_args__ = (Index(None, "attempt_id", "step"),)

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int]
    plan: Mapped[int]
    measured_at_ms: Mapped[int]
    received_at_ms: Mapped[int]
    skipped: Mapped[bool]
    late: Mapped[bool]
    """Came after its step had been judged."""
    values: Mapped[bytes]


class JudgeStateRow(Base):
    """The judge of an attempt: where it is."""

    __tablename__ = "judge_states"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int]
    judged_step: Mapped[int]
    summary: Mapped[dict[str, Any]]
    """What the runs table shows."""


class CheckpointRow(Base):
    """What the judge of an attempt knew at a step; what it has learnt since follows from the frames of later steps.

    Apart from where the judge is, since it is large and written rarely.
    """

    __tablename__ = "judge_checkpoints"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int]
    """Its last judged step."""
    order: Mapped[bytes]
    """Ids of the judged series in column order, int64."""
    state: Mapped[bytes | None]


class JudgementRow(Base):
    """The judgement of one step: float16 log-ratios and uint8 bases, aligned with the judge's order."""

    __tablename__ = "judgements"
    __table_args__ = ({"sqlite_with_rowid": False},)

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    schedule: Mapped[float | None]
    ranks_delivered: Mapped[int]
    ranks_expected: Mapped[int]
    packed: Mapped[bytes]
    """Ratios and bases: see `store.judgements`."""
    divisor: Mapped[float | None]
    """What scheduled values were divided by; None in rows older than this column."""


class BandRow(Base):
    """The bands that changed at a judged step, each of which holds from there on: see `store.bands`."""

    __tablename__ = "bands"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    bands: Mapped[bytes]


class AlertRow(Base):
    """A rule firing on a series (or on the run), from its first bad point to its end."""

    __tablename__ = "alerts"
    __table_args__ = (Index(None, "run_id", "state"), Index(None, "attempt_id", "series_id"))

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"))
    series_id: Mapped[int | None] = mapped_column(ForeignKey("series.id", ondelete="CASCADE"))
    rule: Mapped[str]
    condition: Mapped[str]
    severity: Mapped[str]
    state: Mapped[str]
    cause: Mapped[str]
    value: Mapped[float | None]
    ratio: Mapped[float | None]
    worst_ratio: Mapped[float | None]
    basis: Mapped[str | None]
    band_low: Mapped[float | None]
    band_high: Mapped[float | None]
    pending_step: Mapped[int | None]
    opened_step: Mapped[int | None]
    closed_step: Mapped[int | None]
    opened_at_ms: Mapped[int | None]
    closed_at_ms: Mapped[int | None]
    message: Mapped[str]
    advice: Mapped[str]
    quiet: Mapped[bool]
    """Recorded only: its frames were measured long before they came."""
    acknowledged_by: Mapped[str | None]
    acknowledged_at_ms: Mapped[int | None]
    notified: Mapped[bool] = mapped_column(default=False)
    labels: Mapped[dict[str, Any] | None]
    """Those that rules add to its own; None: none, here and in the two that follow."""
    annotations: Mapped[dict[str, Any] | None]
    receivers: Mapped[list[Any] | None]


class RuleSetRow(Base):
    """The rules as they were set through the API at one moment; the newest are in force."""

    __tablename__ = "rule_sets"

    id: Mapped[int] = mapped_column(KEY, primary_key=True)
    rules: Mapped[list[Any]]
    set_at_ms: Mapped[int]


class RuleStateRow(Base):
    """What is remembered of the user's own thresholds on an attempt."""

    __tablename__ = "rule_states"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[bytes]


class TrajectoryRow(Base):
    """A piece of the trajectory that an attempt is held to: compressed JSON, as its client sent it, or whole as it was
    read from the run that the attempt names."""

    __tablename__ = "trajectories"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    piece: Mapped[int] = mapped_column(primary_key=True)
    pieces: Mapped[int]
    """How many there are."""
    body: Mapped[bytes]


class CoverageRow(Base):
    """What became of one metric family of one watched module or parameter, or of the run, on one rank."""

    __tablename__ = "coverage"

    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    subject: Mapped[str] = mapped_column(String(512), primary_key=True)
    family: Mapped[str] = mapped_column(String(512), primary_key=True)
    """Empty in rows older than this column, and from clients that tell one state of each subject."""
    state: Mapped[str]
    reason: Mapped[str]
