"""Whether a run is alive: pure functions of signs of life and the server's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from internist.schema.rules import LOST_AFTER_S, STALLED_AFTER_S, STALLED_AFTER_STEPS
from internist.schema.views import RunState
from internist_server.store.attempts import Attempt, Rank


@dataclass(frozen=True, slots=True)
class Vitals:
    """The state of a run, and why."""

    state: RunState
    reason: str


def step_time_ms(times: Sequence[tuple[int, int]]) -> float | None:
    """Median time of one step from (step, measured at) of frames; None with fewer than two steps."""
    earliest: dict[int, int] = {}
    for step, at_ms in times:
        earliest[step] = min(at_ms, earliest.get(step, at_ms))
    steps = sorted(earliest)
    rates = [
        (earliest[later] - earliest[sooner]) / (later - sooner)
        for sooner, later in pairwise(steps)
        if earliest[later] > earliest[sooner]
    ]
    return median(rates) if rates else None


def vitals_of(attempt: Attempt, ranks: Sequence[Rank], *, step_ms: float | None, now_ms: int) -> Vitals:
    """The state of a run by its newest attempt."""
    if attempt.finished_at_ms is not None:
        return Vitals(attempt.outcome or "finished", "")
    contact = max(
        (max(rank.received_at_ms, rank.heartbeat_at_ms or 0) for rank in ranks), default=attempt.received_at_ms
    )
    silence_s = (now_ms - contact) / 1000
    if silence_s > LOST_AFTER_S:
        return Vitals("lost", f"nothing has been heard of it for {_duration(silence_s)}")
    beating = [rank for rank in ranks if rank.heartbeat_at_ms is not None and rank.finished_at_ms is None]
    if beating and step_ms is not None:
        still_ms = min(now_ms - (rank.heartbeat_at_ms or 0) + (rank.step_age_ms or 0) for rank in beating)
        if still_ms > max(STALLED_AFTER_S * 1000, STALLED_AFTER_STEPS * step_ms):
            step = max(rank.heartbeat_step or 0 for rank in beating)
            usual = f"a step usually takes {_duration(step_ms / 1000)}"
            return Vitals("stalled", f"step {step} has not moved for {_duration(still_ms / 1000)}; {usual}")
    return Vitals("live", "")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
