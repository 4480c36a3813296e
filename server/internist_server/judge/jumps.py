"""Jumps: a hyperparameter of a group that leaps between two samples as no schedule does, and a weight that leaps as no
step does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internist.schema.conditions import (
    BASELINE_MINIMUM_POINTS,
    CONDITION,
    SCHEDULE_JUMP,
    WEIGHT_JUMP,
    WEIGHT_JUMP_SHARE,
)
from internist.schema.rules import RULE_OF_CONDITION
from internist_server.judge import wording
from internist_server.judge.checks import Checks, Flags, Indices, Logs
from internist_server.judge.memory import NEVER, Memory
from internist_server.judge.schedule import WARM_UP_STEPS
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition

_NAMES = {"learning_rate_jump": "learning rate of", "weight_decay_jump": "weight decay of", "weight_jump": "RMS of"}


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump that is open."""

    condition: str
    column: int
    """Of the group's series."""
    step: int
    before: float
    now: float
    worst: float
    """How many times it was away from what it was, at worst."""

    @property
    def ratio(self) -> float:
        """What it is over what it was."""
        return self.now / self.before

    @property
    def rose(self) -> bool:
        """Whether it is more than it was."""
        return self.ratio > 1

    @property
    def away(self) -> float:
        """How far it is away, in log2."""
        return abs(math.log2(max(self.ratio, 1e-9)))

    @classmethod
    def of_rate(cls, checks: Checks, memory: Memory) -> "Jump | None":
        """The open one of a learning rate, if any."""
        schedule = memory.schedule
        if not schedule.jumped:
            return None
        column = int(checks.rate_columns[schedule.jump_group])
        now = float(schedule.rates[schedule.jump_group])
        return cls("learning_rate_jump", column, schedule.jump_step, schedule.jump_from, now, schedule.jump_worst)

    @classmethod
    def of_decay(cls, memory: Memory) -> "Jump | None":
        """The open one of a weight decay, if any."""
        if memory.decay_column == NEVER:
            return None
        now = float(memory.last[memory.decay_column])
        away = times(now, memory.decay_before)
        return cls("weight_decay_jump", memory.decay_column, memory.decay_step, memory.decay_before, now, away)

    @classmethod
    def of_weight(cls, memory: Memory) -> "Jump | None":
        """The open one of a weight, if any."""
        if memory.weight_column == NEVER:
            return None
        now = float(memory.last[memory.weight_column])
        away = times(now, memory.weight_before)
        return cls("weight_jump", memory.weight_column, memory.weight_step, memory.weight_before, now, away)


def watch_weights(
    checks: Checks, memory: Memory, places: Indices, *, before: Logs, seen: Indices, present: Flags
) -> None:
    """Notice a weight whose RMS has changed by more than the steps that were measured at both samples explain; it ends
    after a while: what was written has no duration. Of several the first in forward order is named.

    Args:
        checks: with the columns of weights and of their steps.
        memory: whose last values are those of this step.
        places: forward order of the series.
        before: by column, the last values before this step.
        seen: by column, when these were measured.
        present: by column, what is measured at this step.
    """
    if memory.weight_column != NEVER:
        if memory.step - memory.weight_step > WARM_UP_STEPS:
            memory.weight_column, memory.weight_step, memory.weight_before = NEVER, NEVER, math.nan
        return
    weight, step = checks.weight_columns.T
    is_known = present[weight] & present[step] & (seen[weight] != NEVER) & (before[weight] > 0)
    if not is_known.any() or memory.step - memory.origin < 4 * BASELINE_MINIMUM_POINTS:
        return
    change = np.abs(memory.last[weight] - before[weight])
    explained = (memory.step - seen[weight]) * np.fmax(before[step], memory.last[step])
    leaps = is_known & (change > WEIGHT_JUMP * explained) & (change > WEIGHT_JUMP_SHARE * before[weight])
    if leaps.any():
        found = weight[leaps]
        memory.weight_column = int(found[np.argmin(places[found])])
        memory.weight_step, memory.weight_before = memory.step, float(before[memory.weight_column])


def watch_decays(checks: Checks, memory: Memory, *, before: Logs, present: Flags) -> None:
    """Notice a weight decay that leaps, unless the learning rate of its group leaps with it; the open jump ends when it
    is back, or has stood for a while.

    Args:
        checks: with the columns of decays and of the rates beside them.
        memory: whose last values are those of this step.
        before: by column, the last values before this step.
        present: by column, what was measured at this step.
    """
    now = memory.last
    if memory.decay_column != NEVER:
        is_back = times(float(now[memory.decay_column]), memory.decay_before) < SCHEDULE_JUMP
        if is_back or memory.step - memory.decay_step > WARM_UP_STEPS:
            memory.decay_column, memory.decay_step, memory.decay_before = NEVER, NEVER, math.nan
        return
    for decay, rate in checks.decay_columns.tolist():
        if not present[decay] or not before[decay] > 0:
            continue
        with_rate = float(now[rate] / before[rate]) if rate != NEVER and before[rate] > 0 else 1.0
        if times(float(now[decay]), float(before[decay])) > SCHEDULE_JUMP and (
            times(float(now[decay]), float(before[decay]) * with_rate) > SCHEDULE_JUMP
        ):
            memory.decay_column, memory.decay_step, memory.decay_before = decay, memory.step, float(before[decay])
            return


def moved(
    series: Sequence[JudgedSeries], homes: Sequence[str], step: int, before: Jump | None, after: Jump | None
) -> list[Transition]:
    """The transition of a hyperparameter, if it jumped or came to rest at a step.

    Args:
        series: all of them.
        homes: by column, where the parameters of a group are.
        step: the step that is judged.
        before: the jump that was open before it.
        after: the one that is open now.
    """
    jump = after or before
    if jump is None or (before is not None and after is not None):
        return []
    rule, condition = RULE_OF_CONDITION[jump.condition], CONDITION[jump.condition]
    one = series[jump.column]
    home = homes[jump.column]
    subject = wording.group(one.subject) if one.kind == "group" else one.subject
    where = f"{_NAMES[jump.condition]} {subject}{f' ({home})' if home else ''}"
    said = (
        f"{where}: {wording.jump(jump.ratio)} at step {jump.step}, from {wording.figure(jump.before)}"
        f" to {wording.figure(jump.now)}"
    )
    return [
        Transition(
            series=one.id,
            rule=rule.name,
            condition=condition.name,
            state="firing" if after else "resolved",
            severity=rule.violated if jump.rose else rule.drifting or rule.violated,
            cause="learning_rate" if one.kind == "group" else "own",
            step=step,
            pending_step=jump.step,
            opened_step=jump.step,
            value=jump.now,
            ratio=times(jump.now, jump.before),
            worst_ratio=jump.worst,
            basis="target",
            band_low=jump.before / SCHEDULE_JUMP,
            band_high=jump.before * SCHEDULE_JUMP,
            message=said if after else f"{where}: steady since its jump at step {jump.step}",
            advice=condition.advice,
        )
    ]


def times(now: float, before: float) -> float:
    """How many times a value is away from what it was, whichever way."""
    if now == before:
        return 1.0
    return max(now / before, before / now) if now > 0 and before > 0 else math.inf
