"""Jumps: a hyperparameter of a group that leaps between two samples as no schedule does, a weight that leaps as no step
does, logits that leap as no learning does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internist.schema.conditions import (
    BASELINE_MINIMUM_POINTS,
    CONDITION,
    LOGIT_JUMP,
    LOGIT_ORDER,
    SCHEDULE_JUMP,
    WEIGHT_JUMP,
    WEIGHT_JUMP_SHARE,
)
from internist.schema.rules import RULE_OF_CONDITION
from internist_server.judge import wording
from internist_server.judge.checks import Checks, Flags, Logs
from internist_server.judge.columns import Indices
from internist_server.judge.memory import LEAPS, NEVER, Leap, Memory
from internist_server.judge.schedule import WARM_UP_STEPS
from internist_server.judge.series import JudgedSeries
from internist_server.judge.transitions import Transition

_NAMES = {
    "learning_rate_jump": "learning rate of",
    "weight_decay_jump": "weight decay of",
    "weight_jump": "RMS of",
    "optimizer_state": "optimizer of",
    "logit_jump": "largest logit of",
}
_CONDITIONS = {
    "decay": "weight_decay_jump",
    "weight": "weight_jump",
    "state": "optimizer_state",
    "logits": "logit_jump",
}


RECENT_SAMPLE = 1.5
"""Times the age of the last sample that a run may be of now for a rise between them to be one: what grows with the
steps grows no further by then."""
FIRST_STEPS = 16
"""Steps of an attempt that are its start: later, an optimizer that is new may rightly have a young state."""


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
    def of_leap(cls, memory: Memory, kind: str) -> "Jump | None":
        """The open one of what leaps, if any."""
        leap = memory.leaps.get(kind)
        if leap is None:
            return None
        now = float(memory.last[leap.column])
        return cls(_CONDITIONS[kind], leap.column, leap.step, leap.before, now, times(now, leap.before))


def open_jumps(checks: Checks, memory: Memory) -> "list[Jump | None]":
    """The open one of a learning rate, and of each kind of what leaps."""
    return [Jump.of_rate(checks, memory), *(Jump.of_leap(memory, kind) for kind in LEAPS)]


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
    if "weight" in memory.leaps:
        _end_late(memory, "weight")
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
        column = int(found[np.argmin(places[found])])
        memory.leaps["weight"] = Leap(column, memory.step, float(before[column]))


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
    if (leap := memory.leaps.get("decay")) is not None:
        if times(float(now[leap.column]), leap.before) < SCHEDULE_JUMP:
            del memory.leaps["decay"]
        else:
            _end_late(memory, "decay")
        return
    for decay, rate in checks.decay_columns.tolist():
        if not present[decay] or not before[decay] > 0:
            continue
        with_rate = float(now[rate] / before[rate]) if rate != NEVER and before[rate] > 0 else 1.0
        if times(float(now[decay]), float(before[decay])) > SCHEDULE_JUMP and (
            times(float(now[decay]), float(before[decay]) * with_rate) > SCHEDULE_JUMP
        ):
            memory.leaps["decay"] = Leap(decay, memory.step, float(before[decay]))
            return


def watch_states(checks: Checks, memory: Memory, *, before: Logs, seen: Indices, present: Flags) -> None:
    """Notice an optimizer whose state has seen fewer steps than before, or, where the run begins at a later step, none
    but those since then; it ends after a while: what was lost has no duration.

    Args:
        checks: with the columns of the states' steps.
        memory: whose last values are those of this step.
        before: by column, the last values before this step.
        seen: by column, when these were measured.
        present: by column, what is measured at this step.
    """
    if "state" in memory.leaps:
        _end_late(memory, "state")
        return
    age = memory.step - memory.origin
    for column in checks.state_columns[present[checks.state_columns]].tolist():
        now, was = float(memory.last[column]), float(before[column])
        if seen[column] == NEVER:
            is_lost = memory.origin > 0 and age < FIRST_STEPS and now <= age + 1
            was = memory.step + 1.0
        else:
            is_lost = now < was
        if is_lost:
            memory.leaps["state"] = Leap(column, memory.step, was)
            return


def watch_logits(checks: Checks, memory: Memory, *, before: Logs, seen: Indices, present: Flags) -> None:
    """Notice an attention of which all heads' largest logits rise by a multiple from one sample to the next; it ends
    after a while. Of several the first is named, by the head that is highest.

    Args:
        checks: with the columns of the heads of each attention.
        memory: whose last values are those of this step.
        before: by column, the last values before this step.
        seen: by column, when these were measured.
        present: by column, what is measured at this step.
    """
    if "logits" in memory.leaps:
        _end_late(memory, "logits")
        return
    for columns in checks.logit_columns:
        if not present[columns].all() or (seen[columns] == NEVER).any():
            continue
        earlier, now = before[columns], memory.last[columns]
        age = int(seen[columns].min()) - memory.origin
        is_near = memory.step - memory.origin < RECENT_SAMPLE * age and age >= 2 * BASELINE_MINIMUM_POINTS
        if is_near and (earlier >= LOGIT_ORDER).all() and (now > LOGIT_JUMP * earlier).all():
            column = int(columns[np.argmax(now)])
            memory.leaps["logits"] = Leap(column, memory.step, float(before[column]))
            return


def _end_late(memory: Memory, kind: str) -> None:
    if memory.step - memory.leaps[kind].step > WARM_UP_STEPS:
        del memory.leaps[kind]


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
    subject = wording.group(one.subject) if one.kind == "group" else wording.place(one.subject, one.index)
    where = f"{_NAMES[jump.condition]} {subject}{f' ({home})' if home else ''}"
    if jump.condition == "optimizer_state":
        said = f"{where}: {wording.forgotten(now=jump.now, before=jump.before)}, at step {jump.step}"
    else:
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
            band_low=None if jump.condition == "logit_jump" else jump.before / SCHEDULE_JUMP,
            band_high=jump.before * (LOGIT_JUMP if jump.condition == "logit_jump" else SCHEDULE_JUMP),
            message=said if after else f"{where}: steady since its jump at step {jump.step}",
            advice=condition.advice,
            how_sure=wording.SEEN,
        )
    ]


def times(now: float, before: float) -> float:
    """How many times a value is away from what it was, whichever way."""
    if now == before:
        return 1.0
    return max(now / before, before / now) if now > 0 and before > 0 else math.inf
