"""How the clock of a rank stands to the server's, by what the rank tells of it."""

from internist.schema.rules import LOST_AFTER_S
from internist_server.clocks import offset_by
from internist_server.envelope import Contents, said_at_ms
from internist_server.store.ranks import Rank
from internist_server.store.vitals import heard_at_ms


def read_clock(rank: Rank, sent_at_ms: int | None, *, now_ms: int, since_ms: int) -> None:
    """Note how a rank's clock stands to the server's. What is shipped after a run's end may come from another machine:
    it is believed only where the rank itself never told.

    Args:
        rank: it is changed.
        sent_at_ms: when it spoke, by its own clock; None: it does not tell.
        now_ms: the present.
        since_ms: since when the server listens.
    """
    if rank.clock_offset_ms is None or _is_live(rank, now_ms=now_ms, since_ms=since_ms):
        kept_ms = rank.clock_offset_ms
        rank.clock_offset_ms = offset_by(kept_ms, None if sent_at_ms is None else now_ms - sent_at_ms)


def offset_of(rank: Rank, contents: Contents, *, now_ms: int, since_ms: int) -> int | None:
    """How far the server's clock is ahead of a rank's. One that lives and never tells how its clock stands has measured
    its last record just now."""
    if rank.clock_offset_ms is not None or not _is_live(rank, now_ms=now_ms, since_ms=since_ms):
        return rank.clock_offset_ms
    last_ms = max((moment for record in contents.records if (moment := said_at_ms(record)) is not None), default=None)
    return None if last_ms is None else now_ms - last_ms


def _is_live(rank: Rank, *, now_ms: int, since_ms: int) -> bool:
    """Whether a rank has said of late that it lives."""
    if rank.heartbeat_at_ms is None or rank.finished_at_ms is not None:
        return False
    heard_ms = heard_at_ms(rank.heartbeat_at_ms, now_ms=now_ms, since_ms=since_ms)
    return now_ms - heard_ms <= LOST_AFTER_S * 1000
