"""Whether a run is alive: pure functions of signs of life and the server's clock.

A run is stalled while its ranks say that they live and their step does not move; when they say nothing it is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from internist.schema.rules import (
    LONGEST_PAUSE_S,
    LOST_AFTER_S,
    STALLED_AFTER_PAUSES,
    STALLED_AFTER_S,
    STALLED_AFTER_STEPS,
)
from internist.schema.views import RunState
from internist_server.store.attempts import Attempt
from internist_server.store.roster import Roster


@dataclass(frozen=True, slots=True)
class Vitals:
    """The state of a run, and why."""

    state: RunState
    reason: str


LONGEST_STEP_MS: Final = 86_400_000
"""No step takes longer than a day: between two frames that say so a clock was set."""


def step_time_ms(times: Sequence[tuple[int, int]]) -> float | None:
    """Median time of one step from (step, measured at) of frames; None with fewer than two steps."""
    earliest: dict[int, int] = {}
    for step, at_ms in times:
        earliest[step] = min(at_ms, earliest.get(step, at_ms))
    steps = sorted(earliest)
    rates = [(earliest[later] - earliest[sooner]) / (later - sooner) for sooner, later in pairwise(steps)]
    likely = [rate for rate in rates if 0 < rate <= LONGEST_STEP_MS]
    return median(likely) if likely else None


def vitals_at(heard: Vitals, *, contact_ms: int, step: int, now_ms: int, since_ms: int = 0) -> Vitals:
    """The state of a run by what its last signs of life said, which time turns into `lost`.

    Args:
        since_ms: since when the server listens: before that nobody could have been heard.
    """
    silence_s = (now_ms - heard_at_ms(contact_ms, now_ms=now_ms, since_ms=since_ms)) / 1000
    if heard.state not in ("live", "stalled") or silence_s <= LOST_AFTER_S:
        return heard
    return Vitals("lost", f"nothing has been heard of it for {_duration(silence_s)}; its last step was {step}")


def heard_at_ms(contact_ms: int, *, now_ms: int, since_ms: int) -> int:
    """From when on silence counts: since the last contact, or since the server listens. A contact that lies ahead was
    before the server's clock was set back."""
    return int(all_heard_at_ms(np.array(contact_ms), now_ms=now_ms, since_ms=since_ms))


def all_heard_at_ms(contacts_ms: NDArray[np.int64], *, now_ms: int, since_ms: int) -> NDArray[np.int64]:
    """The same of many contacts."""
    is_ahead = contacts_ms > now_ms + int(LOST_AFTER_S * 1000)
    return np.maximum(since_ms, np.minimum(np.where(is_ahead, since_ms, contacts_ms), now_ms))


def last_contact_ms(attempt: Attempt, ranks: Roster) -> int:
    """When anything was heard of an attempt last."""
    contact_ms = ranks.contact_ms
    return attempt.received_at_ms if contact_ms is None else contact_ms


def step_reached(ranks: Roster) -> int:
    """The last step that any rank has told of; 0 without one."""
    return ranks.last_step or 0


def vitals_when_heard(attempt: Attempt, ranks: Roster, *, step_ms: float | None, pause_ms: float) -> Vitals:
    """What the last signs of life of an attempt said, however long ago that was."""
    if attempt.finished_at_ms is not None:
        return Vitals(attempt.outcome or "finished", "")
    step = step_reached(ranks)
    if pause := ranks.pause:
        return Vitals("live", f"paused at step {step}: {pause}")
    still_ms = ranks.still_ms
    if still_ms is not None and step_ms is not None:
        known_pause_ms = STALLED_AFTER_PAUSES * min(pause_ms, LONGEST_PAUSE_S * 1000)
        if still_ms > max(STALLED_AFTER_S * 1000, STALLED_AFTER_STEPS * step_ms, known_pause_ms):
            usual = f"a step usually takes {_duration(step_ms / 1000)}"
            return Vitals("stalled", f"step {step} has not moved for {_duration(still_ms / 1000)}; {usual}")
    return Vitals("live", "")


def longest_pause_ms(times: Sequence[tuple[int, int]], *, last: tuple[int, int] | None, step_ms: float | None) -> float:
    """The longest time between two measured steps beyond what their steps usually take.

    Args:
        times: (step, measured at) of steps in rising order.
        last: the one before them.
        step_ms: what a step usually takes; None: nothing is known of pauses.
    """
    if step_ms is None:
        return 0.0
    known = [*([last] if last is not None else []), *times]
    pauses = [later[1] - sooner[1] - (later[0] - sooner[0]) * step_ms for sooner, later in pairwise(known)]
    return max(pauses, default=0.0)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
