"""What the judge has said of each step, and where it stands."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from internist_server.store.attempts import Segment
from internist_server.store.blocks import BLOCK, JudgedBlock, list_judged_blocks, read_judged_tiles
from internist_server.store.dialects import upsert
from internist_server.store.merge import Ids
from internist_server.store.tables import NEVER, CheckpointRow, JudgementRow, JudgeStateRow

Ratios = NDArray[np.float16]
Bases = NDArray[np.uint8]
_PIECE = 512
_KEPT = 512
"""Judgements that stay unpacked in memory: those of an attempt that do not lie in tiles."""
_DEFLATED = zlib.compress(b"", 1)[:1]
"""What zlib writes first. A judge's state begins with other letters."""
_CELLS = 8_000_000
_STATE = JudgeStateRow.__table__.c
_OF_ATTEMPT = _STATE.attempt_id == bindparam("attempt")
_GET_STATE = select(_STATE.version, _STATE.judged_step, _STATE.summary).where(_OF_ATTEMPT)
_GET_VERSION = select(_STATE.version).where(_OF_ATTEMPT)
_GET_JUDGED_STEP = select(_STATE.judged_step).where(_OF_ATTEMPT)
_CHECKPOINT, _JUDGEMENT = CheckpointRow.__table__.c, JudgementRow.__table__.c
_GET_ORDER = select(_CHECKPOINT.order).where(_CHECKPOINT.attempt_id == bindparam("attempt"))
_BETWEEN = (
    select(_JUDGEMENT.step, _JUDGEMENT.packed, _JUDGEMENT.divisor)
    .where(_JUDGEMENT.attempt_id == bindparam("attempt"))
    .where(_JUDGEMENT.step >= bindparam("first"), _JUDGEMENT.step <= bindparam("last"))
    .order_by(_JUDGEMENT.step)
    .execution_options(yield_per=_PIECE)
)
_ADD_JUDGEMENTS = insert(JudgementRow.__table__)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the runs table shows of a judge's work. Floats that are not finite are kept as text."""

    state: str = "not measured"
    sentence: str = "Nothing has been measured yet."
    violated: int = 0
    drifting: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """The last loss, learning rate, overhead share and coverage."""
    step_ms: float | None = None
    sampled_at_ms: int | None = None
    pause_ms: float = 0.0
    """The longest time between two measured steps beyond what their steps usually take."""
    last_measured: tuple[int, int] | None = None
    """The last step that was measured, and when."""
    reference: str | None = None
    """Why the run is not held to the reference that it names; None: it is, or names none."""


@dataclass(frozen=True, slots=True)
class JudgeState:
    """Where the judge of an attempt is between two requests."""

    version: int = 0
    judged_step: int = NEVER
    summary: Summary = field(default_factory=Summary)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the judge of an attempt knew at a step, of which series: the last of them that it has judged by now."""

    step: int = NEVER
    order: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    state: bytes | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """One step's judgement as stored."""

    step: int
    schedule: float
    ranks_delivered: int
    ranks_expected: int
    ratios: Ratios
    basis: Bases
    divisor: float = 1.0
    """What scheduled values were divided by."""


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """Judgements of several steps: ratios and bases (steps, columns), NaN and 0 where nothing was judged."""

    steps: Ids
    ratios: Ratios
    basis: Bases
    divisors: NDArray[np.float64]
    """What scheduled values were divided by."""


def load_state(session: Session, attempt_id: int) -> JudgeState:
    """Where the judge is; that of one who has seen nothing, if nothing is stored."""
    row = session.execute(_GET_STATE, {"attempt": attempt_id}).first()
    return JudgeState() if row is None else JudgeState(row.version, row.judged_step, _summary(row.summary))


def load_checkpoint(session: Session, attempt_id: int) -> Checkpoint:
    """What the judge knew last when that was stored; that of one who has seen nothing, if nothing is."""
    query = select(CheckpointRow.step, CheckpointRow.order, CheckpointRow.state)
    row = session.execute(query.where(CheckpointRow.attempt_id == attempt_id)).first()
    if row is None:
        return Checkpoint()
    return Checkpoint(
        row.step, np.frombuffer(row.order, dtype="<i8"), None if row.state is None else inflated(row.state)
    )


def load_order(session: Session, attempt_id: int) -> Ids:
    """Ids of the series that are judged, in the order in which judgements hold them."""
    found = session.scalar(_GET_ORDER, {"attempt": attempt_id})
    return np.empty(0, np.int64) if found is None else np.frombuffer(found, dtype="<i8")


def load_version(session: Session, attempt_id: int) -> int:
    """The version of the judge's state; 0 without one."""
    return session.scalar(_GET_VERSION, {"attempt": attempt_id}) or 0


def load_judged_step(session: Session, attempt_id: int) -> int:
    """The last judged step; `NEVER` without one."""
    found = session.scalar(_GET_JUDGED_STEP, {"attempt": attempt_id})
    return NEVER if found is None else found


def load_summaries(session: Session, attempt_ids: Sequence[int]) -> dict[int, Summary]:
    """Summaries by attempt."""
    query = select(JudgeStateRow.attempt_id, JudgeStateRow.summary).where(JudgeStateRow.attempt_id.in_(attempt_ids))
    return {row[0]: _summary(row[1]) for row in session.execute(query)}


def save_state(session: Session, attempt_id: int, state: JudgeState) -> None:
    """Keep where the judge is."""
    row = {
        "attempt_id": attempt_id,
        "version": state.version,
        "judged_step": state.judged_step,
        "summary": _plain(state.summary),
    }
    upsert(session, JudgeStateRow, [row], key=["attempt_id"], update=["version", "judged_step", "summary"])


def save_checkpoint(session: Session, attempt_id: int, checkpoint: Checkpoint) -> None:
    """Keep what the judge knows."""
    row = {
        "attempt_id": attempt_id,
        "step": checkpoint.step,
        "order": checkpoint.order.astype("<i8").tobytes(),
        "state": None if checkpoint.state is None else deflated(checkpoint.state),
    }
    upsert(session, CheckpointRow, [row], key=["attempt_id"], update=["step", "order", "state"])


def deflated(state: bytes) -> bytes:
    """What a judge knows, as it is stored."""
    return zlib.compress(state, 1)


def inflated(stored: bytes) -> bytes:
    """What a judge knows; earlier versions stored it as it is."""
    return zlib.decompress(stored) if stored.startswith(_DEFLATED) else stored


def add_judgements(session: Session, attempt_id: int, judged: Sequence[Judged]) -> None:
    """Append judgements."""
    if not judged:
        return
    rows = [
        {
            "attempt_id": attempt_id,
            "step": one.step,
            "schedule": one.schedule,
            "ranks_delivered": one.ranks_delivered,
            "ranks_expected": one.ranks_expected,
            "packed": pack_judgement(one.ratios, one.basis),
            "divisor": one.divisor,
        }
        for one in judged
    ]
    session.execute(_ADD_JUDGEMENTS, rows)


def read_judged(session: Session, segment: Segment, ids: Ids, *, first: int, last: int) -> Iterator[JudgedWindow]:
    """Judgements of these series in a window, in pieces of rising steps: those in tiles, then those that are loose."""
    first, last = max(first, segment.first), min(last, segment.last)
    blocks = list_judged_blocks(session, segment.attempt_id, first=first, last=last)
    held = max(1, _CELLS // (BLOCK * max(1, len(ids))))
    for begin in range(0, len(blocks), held):
        yield _from_tiles(session, blocks[begin : begin + held], ids, first=first, last=last)
    places = places_in(load_order(session, segment.attempt_id), ids)
    asked = {"attempt": segment.attempt_id, "first": first, "last": last}
    for rows in session.execute(_BETWEEN, asked).partitions():
        steps = np.fromiter((row.step for row in rows), np.int64, len(rows))
        ratios = np.full((len(rows), len(places)), np.nan, np.float16)
        basis = np.zeros(ratios.shape, np.uint8)
        for at, row in enumerate(rows):
            of_step, of_basis = unpack_judgement(row.packed)
            known = places < len(of_basis)  # the order grows: older judgements are shorter
            ratios[at, known], basis[at, known] = of_step[places[known]], of_basis[places[known]]
        divisors = np.array([np.nan if row.divisor is None else row.divisor for row in rows], np.float64)
        yield JudgedWindow(steps, ratios, basis, divisors)


def pack_judgement(ratios: Ratios, basis: Bases) -> bytes:
    """Ratios and bases of one step: low bytes of ratios, high ones, and bases, which are mostly alike; compressed."""
    halves = np.ascontiguousarray(ratios.astype("<f2", copy=False)).view(np.uint8).reshape(-1, 2)
    return zlib.compress(b"".join((halves[:, 0].tobytes(), halves[:, 1].tobytes(), basis.tobytes())), 1)


@lru_cache(maxsize=_KEPT)
def unpack_judgement(packed: bytes) -> tuple[Ratios, Bases]:
    """The ratios and bases, which nobody changes: every look at the newest steps asks for them."""
    planes = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(3, -1)
    return np.ascontiguousarray(planes[:2].T).view("<f2").ravel(), planes[2]


def count_judged(session: Session, segment: Segment, *, first: int, last: int) -> int:
    """Roughly how many steps of a window were judged: whole blocks count."""
    first, last = max(first, segment.first), min(last, segment.last)
    return sum(len(block.steps) for block in list_judged_blocks(session, segment.attempt_id, first=first, last=last))


def _from_tiles(session: Session, blocks: Sequence[JudgedBlock], ids: Ids, *, first: int, last: int) -> JudgedWindow:
    """Judgements of some blocks."""
    steps = np.concatenate([block.steps for block in blocks])
    ratios = np.full((len(steps), len(ids)), np.nan, np.float16)
    basis = np.zeros(ratios.shape, np.uint8)
    order = np.argsort(ids, kind="stable")
    tiles = read_judged_tiles(session, blocks, ids.tolist())
    at = 0
    for block in blocks:
        rows = slice(at, at + len(block.steps))
        at += len(block.steps)
        if block.id in tiles:
            series, of_ratios, of_basis = tiles[block.id]
            columns = order[np.searchsorted(ids, series, sorter=order)]
            ratios[rows, columns], basis[rows, columns] = of_ratios.T, of_basis.T
    divisors = np.concatenate([block.divisors for block in blocks])
    here = (steps >= first) & (steps <= last)
    return JudgedWindow(steps[here], ratios[here], basis[here], divisors[here])


def places_in(order: Ids, ids: Ids) -> NDArray[np.int64]:
    """Where each id stands in the judge's order; beyond its end where it does not."""
    sorter = np.argsort(order, kind="stable")
    found = np.searchsorted(order, ids, sorter=sorter)
    found = np.minimum(found, len(order) - 1) if len(order) else found
    places = sorter[found] if len(order) else found
    return np.where(order[places] == ids, places, np.iinfo(np.int64).max) if len(order) else np.full(len(ids), 1 << 62)


def _summary(stored: dict[str, Any]) -> Summary:
    last = stored.get("last_measured")
    values = {name: float(value) for name, value in stored["values"].items()}
    return Summary(**{**stored, "values": values, "last_measured": None if last is None else (last[0], last[1])})


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "state": summary.state,
        "sentence": summary.sentence,
        "violated": summary.violated,
        "drifting": summary.drifting,
        "values": {name: repr(float(value)) for name, value in summary.values.items()},
        "step_ms": summary.step_ms,
        "sampled_at_ms": summary.sampled_at_ms,
        "pause_ms": summary.pause_ms,
        "last_measured": summary.last_measured,
        "reference": summary.reference,
    }
