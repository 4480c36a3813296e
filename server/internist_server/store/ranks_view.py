"""The ranks of an attempt as people look at them: who is silent, who is behind, and who is unlike the others."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from internist.schema.rules import LOST_AFTER_S
from internist.schema.views import Ranks, RankState, RankView
from internist_server.store.attempts import Attempt
from internist_server.store.matrices import read_parts
from internist_server.store.merge import Mask
from internist_server.store.numbers import number
from internist_server.store.ranks import Rank, list_ranks
from internist_server.store.series import columns_for, search_series
from internist_server.store.tables import RankRow
from internist_server.store.vitals import heard_at_ms
from internist_server.values.standouts import in_minority, slower, standing_out

WEIGHTS: Final = "weight.replicas_differ"
STEP, WAITED = "monitor.step_ms", "monitor.waited_ms"
COMPARED: Final = ("loss", "gradient.global_norm", WEIGHTS)
"""Metrics of the whole model, which ranks of one job tell alike."""
_STEPS_LOOKED_AT: Final = 16
_UNSEEN_NAMED: Final = 100


def read_ranks(session: Session, attempt: Attempt, *, now_ms: int, since_ms: int, limit: int) -> Ranks:
    """The ranks of an attempt, those first that something is to be said of.

    Args:
        since_ms: since when the server listens: before that nobody was silent.
        limit: ranks of the answer; counts are of all.
    """
    ranks = list_ranks(session, attempt.id)
    of_attempt = select(RankRow.rank, RankRow.mesh).where(RankRow.attempt_id == attempt.id)
    meshes = {row[0]: row[1] for row in session.execute(of_attempt)}
    states = {rank.rank: _state(rank, attempt, now_ms=now_ms, since_ms=since_ms) for rank in ranks}
    there = {rank.rank for rank in ranks if states[rank.rank] != "silent" and not _is_left(rank, attempt)}
    values, odd, step = _compared(session, attempt, ranks, there=there)
    furthest = max((rank.reached for rank in ranks), default=0)
    views = [
        RankView(
            rank=rank.rank,
            mesh=meshes[rank.rank],
            state=states[rank.rank],
            heard_at_ms=max(rank.received_at_ms, rank.heartbeat_at_ms or 0),
            step=None if rank.reached < 0 else rank.reached,
            behind=furthest - max(rank.reached, 0),
            loss=number(values.get((rank.rank, "loss"))),
            gradient_norm=number(values.get((rank.rank, "gradient.global_norm"))),
            unlike=tuple(odd.get(rank.rank, ())),
            step_ms=number(values.get((rank.rank, STEP))),
            waited_ms=number(values.get((rank.rank, WAITED))),
            pause=rank.pause,
            refusal=rank.refusal if rank.refused else None,
        )
        for rank in ranks
    ]
    seen = {rank.rank for rank in ranks}
    unseen = [rank for rank in range(attempt.world_size) if rank not in seen]
    return Ranks(
        run=attempt.run,
        attempt=attempt.name,
        world_size=attempt.world_size,
        step=step,
        unseen=len(unseen),
        first_unseen=tuple(unseen[:_UNSEEN_NAMED]),
        silent=sum(view.state == "silent" for view in views),
        unlike=sum(bool(view.unlike) for view in views),
        server_time_ms=now_ms,
        ranks=tuple(sorted(views, key=_urgency)[:limit]),
    )


def _state(rank: Rank, attempt: Attempt, *, now_ms: int, since_ms: int) -> RankState:
    if rank.finished_at_ms is not None or attempt.finished_at_ms is not None:
        return "finished"
    contact_ms = max(rank.received_at_ms, rank.heartbeat_at_ms or 0)
    is_silent = now_ms - heard_at_ms(contact_ms, now_ms=now_ms, since_ms=since_ms) > LOST_AFTER_S * 1000
    return "silent" if is_silent else "live"


def _is_left(rank: Rank, attempt: Attempt) -> bool:
    """Whether an attempt ended without a rank, which told no end of its own."""
    return attempt.finished_at_ms is not None and rank.finished_at_ms is None


def _urgency(view: RankView) -> tuple[bool, bool, bool, int, int]:
    is_odd = any(metric != STEP for metric in view.unlike)
    return not is_odd, view.state != "silent", STEP not in view.unlike, -view.behind, view.rank


def _compared(
    session: Session, attempt: Attempt, ranks: Sequence[Rank], *, there: Collection[int]
) -> tuple[dict[tuple[int, str], float], dict[int, list[str]], int | None]:
    """What each rank told last of the metrics that are compared, by rank and metric; of which a rank is unlike the
    others, by rank; and the last step of it: the last that most of the ranks that are there have told of. One that has
    gone holds no comparison up, and has the values that it told last."""
    series = search_series(session, attempt.run, metrics=(*COMPARED, STEP, WAITED), kinds=["model"])
    newest = sorted({step for rank in ranks for step in rank.plan_steps.values()})[-_STEPS_LOOKED_AT:]
    ids = np.array([one.id for one in series], dtype=np.int64)
    told, values, present = read_parts(session, attempt.id, newest, columns_for(session, ids, series))
    found: dict[tuple[int, str], float] = {}
    odd: dict[int, list[str]] = {}
    last: int | None = None
    is_there = np.array([rank in there for rank in told.tolist()], dtype=bool)
    if not is_there.any():
        is_there[:] = True
    for column, one in enumerate(series):
        for rank, row in _gone(present[:, :, column], is_there):
            found[int(told[rank]), one.metric] = float(values[rank, row, column])
        most = present[is_there, :, column].sum(axis=0)
        if not most.any():
            continue
        row = int(np.flatnonzero(most == most.max())[-1])
        last = max(newest[row], -1 if last is None else last)
        here = present[:, row, column]
        of_ranks = values[here, row, column].astype(np.float64)
        compare = _COMPARISONS.get(one.metric, standing_out)
        for rank, value, is_odd in zip(told[here].tolist(), of_ranks.tolist(), compare(of_ranks).tolist(), strict=True):
            found[rank, one.metric] = value
            if is_odd and one.metric not in odd.get(rank, ()):
                odd.setdefault(rank, []).append(one.metric)
    for rank in _slow(found):
        odd.setdefault(rank, []).append(STEP)
    return found, odd, last


def _gone(present: Mask, is_there: Mask) -> Iterator[tuple[int, int]]:
    """Places of ranks that are not there, and of the last step that each has told of."""
    for rank in np.flatnonzero(~is_there & present.any(axis=1)).tolist():
        yield rank, int(np.flatnonzero(present[rank])[-1])


def _none(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.zeros(len(values), dtype=bool)


_COMPARISONS: Final = {WEIGHTS: in_minority, STEP: _none, WAITED: _none}
"""By metric, where it is another than for the rest: times are compared together."""


def _slow(told: Mapping[tuple[int, str], float]) -> list[int]:
    """Ranks that work longer at a step than the others. In lockstep all steps are as long as the slowest rank's, which
    waits the least: what counts is a step without its waiting, where all ranks tell that."""
    ranks = sorted(rank for rank, metric in told if metric == STEP)
    waits = all((rank, WAITED) in told for rank in ranks)
    times = np.array([told[rank, STEP] - (told[rank, WAITED] if waits else 0.0) for rank in ranks], dtype=np.float64)
    return [rank for rank, is_slow in zip(ranks, slower(times).tolist(), strict=True) if is_slow]
