"""The trajectories that attempts are held to: the pieces that a client sends, or the one that was read from a run."""

import zlib
from typing import Final

import msgspec
import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from internist.schema.reference import TRAJECTORY_VERSION, Trajectory, TrajectoryPiece
from internist_server.errors import Invalid
from internist_server.judge.reference import REFERENCE_METRICS, Head, trajectory_of
from internist_server.judge.schedule import Schedule
from internist_server.judge.series import JudgedSeries
from internist_server.store.attempts import Attempt, Segment, history
from internist_server.store.matrices import read_history
from internist_server.store.series import columns_of, search_series
from internist_server.store.tables import TrajectoryRow

MAX_PIECES: Final = 256
MAX_TRAJECTORY_BYTES: Final = 64 << 20
"""What a trajectory may take when it is unpacked: a piece of a few bytes could else fill the memory."""
_RATE: Final = "learning_rate"
_DECODER: Final = msgspec.json.Decoder(Trajectory)


def add_piece(session: Session, attempt_id: int, piece: TrajectoryPiece) -> str | None:
    """Keep a piece that a client sent, once; the reason where it cannot be one."""
    if not 0 <= piece.number < piece.of <= MAX_PIECES:
        return f"piece {piece.number} of {piece.of}: a reference comes in at most {MAX_PIECES} pieces"
    if session.get(TrajectoryRow, (attempt_id, piece.number)) is None:
        row = {"attempt_id": attempt_id, "piece": piece.number, "pieces": piece.of, "body": piece.body}
        session.execute(insert(TrajectoryRow), [row])
    return None


def has_pieces(session: Session, attempt_id: int) -> bool:
    """Whether anything of the attempt's reference is kept."""
    query = select(func.count()).select_from(TrajectoryRow).where(TrajectoryRow.attempt_id == attempt_id)
    return bool(session.scalar(query))


def load_trajectory(session: Session, attempt_id: int) -> Trajectory | None:
    """The trajectory that an attempt is held to; None as long as pieces are missing.

    Raises:
        Invalid: it cannot be read.
    """
    query = select(TrajectoryRow).where(TrajectoryRow.attempt_id == attempt_id).order_by(TrajectoryRow.piece)
    rows = session.scalars(query).all()
    if not rows or len(rows) < rows[0].pieces:
        return None
    return unpack(b"".join(row.body for row in rows))


def keep_trajectory(session: Session, attempt_id: int, trajectory: Trajectory) -> None:
    """Keep what an attempt is held to from here on, whatever becomes of the run that it was read from."""
    add_piece(session, attempt_id, TrajectoryPiece(0, 1, pack(trajectory)))


def pack(trajectory: Trajectory) -> bytes:
    """A trajectory as bytes."""
    return zlib.compress(msgspec.json.encode(trajectory))


def unpack(packed: bytes) -> Trajectory:
    """A trajectory from bytes.

    Raises:
        Invalid: they are none, or of a newer version.
    """
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(packed, MAX_TRAJECTORY_BYTES)
        trajectory = _DECODER.decode(text)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise Invalid(f"the reference cannot be read: {error}") from error
    require_known(trajectory)
    return trajectory


def require_known(trajectory: Trajectory) -> None:
    """Refuse a trajectory that nothing can be held to.

    Raises:
        Invalid: with the reason.
    """
    if trajectory.version > TRAJECTORY_VERSION:
        raise Invalid(f"the reference has version {trajectory.version}; this server reads up to {TRAJECTORY_VERSION}")
    sizes = (trajectory.width, trajectory.depth + 1, 1 if trajectory.head_width is None else trajectory.head_width)
    if not all(0 < size < 1 << 40 for size in sizes):
        raise Invalid(
            f"a reference has positive sizes, got a width of {trajectory.width}, a depth of {trajectory.depth}"
        )
    for curve in trajectory.curves:
        if not len(curve.bins) == len(curve.low) == len(curve.middle) == len(curve.high):
            raise Invalid(f"the curve of {curve.metric} at {curve.place!r} has parts of different lengths")


def read_trajectory(
    session: Session, attempt: Attempt, blocks: list[str], series: list[JudgedSeries], head: Head
) -> Trajectory:
    """The trajectory of a stored run, from all steps of its newest history."""
    segments: list[Segment] = history(session, attempt.run, attempt.name)
    rates = list(search_series(session, attempt.run, metrics=[_RATE]))
    ids = np.array([*(one.id for one in series), *(one.id for one in rates)], np.int64)
    schedule = Schedule()
    schedule.resize([float(one.facts.parameters or 1) for one in rates])
    steps, values, raws = [], [], []
    for matrix in read_history(session, segments, columns_of(session, ids), first=0, last=1 << 53):
        whole = np.where(matrix.present, matrix.values, np.float32(np.nan))
        for row, step in enumerate(matrix.steps.tolist()):
            schedule.observe(step, whole[row, len(series) :].astype(np.float64))
            raws.append(schedule.raw)
        steps.append(matrix.steps)
        values.append(whole[:, : len(series)])
    if not steps:
        return trajectory_of(
            series, blocks, np.empty(0, np.int64), np.empty((0, len(series)), np.float32), np.empty(0), head=head
        )
    raw = np.array(raws)
    peak = np.nanmax(raw) if np.isfinite(raw).any() else np.nan
    shares = np.where(np.isfinite(raw), raw / peak, 1.0) if peak > 0 else np.ones(len(raw))
    return trajectory_of(series, blocks, np.concatenate(steps), np.concatenate(values), shares, head=head)


def series_of(session: Session, run: str) -> list[JudgedSeries]:
    """The series of a run that a reference speaks of."""
    found = search_series(session, run, metrics=REFERENCE_METRICS)
    return [JudgedSeries(s.id, s.metric, s.kind, s.subject, s.index, s.bound, s.facts) for s in found]
