"""The pace: how far each check's steps are meant to go at one step, by the learning rates that move them."""

import math
from dataclasses import dataclass

import numpy as np

from internist.schema.conditions import SCHEDULE_FLOOR
from internist_server.judge.checks import Checks, Flags, Logs
from internist_server.judge.own_rates import OwnRates, of_checks
from internist_server.judge.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Pace:
    """By check, in log2; zero, or false, where a check is not scheduled."""

    unit: Logs
    """Of the run's divisor."""
    offset: Logs
    """How far its own group's rate has moved from the run's."""
    fallen: Logs
    """How far its rate has fallen since the baselines' window."""
    is_low: Flags
    """Whether its rate is so small that a small step says nothing."""

    @classmethod
    def of(cls, checks: Checks, schedule: Schedule, own: OwnRates) -> "Pace":
        """The pace now."""
        scheduled, divisor, offset = checks.scheduled, schedule.divisor, own.offsets()
        none = np.float32(0)
        fallen = math.log2(schedule.window / divisor) if 0 < divisor < math.inf and schedule.window > 0 else 0.0
        by_group = fallen + own.window - offset if schedule.window > 0 else np.zeros(offset.size)
        with np.errstate(invalid="ignore"):
            low = schedule.rates < SCHEDULE_FLOOR * schedule.highest
        return cls(
            unit=np.where(scheduled, np.float32(math.log2(divisor)), none),
            offset=of_checks(offset, checks.group).astype(np.float32),
            fallen=np.where(scheduled, np.maximum(of_checks(by_group, checks.group, fallen), 0), none).astype(
                np.float32
            ),
            is_low=scheduled & (of_checks(low, checks.group) | schedule.is_low),
        )
