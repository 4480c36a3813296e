"""When a verdict becomes an alert."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "critical"]

FOR_POINTS_LIGHT = 3
"""Points, in the series' own cadence, a breach must last before the alert fires: light series."""
FOR_POINTS_HEAVY = 2
"""The same for series of the heavy cadences."""
FINITE_POINTS_LIGHT = 10
"""Finite points after which a light series that was NaN or infinite is well again: a NaN that comes and goes is one
incident."""
FINITE_POINTS_HEAVY = 2
"""The same for series of the heavy cadences."""
LOST_AFTER_S = 60.0
"""A run whose heartbeat is older than this, by the server's clock, is lost."""
STALLED_AFTER_STEPS = 10.0
"""A run whose step has not moved for this many median step times is stalled."""
STALLED_AFTER_S = 60.0
"""And never sooner than this."""
STALLED_AFTER_PAUSES = 2.0
"""And never sooner than this many times the longest pause after which the run went on: evaluations and checkpoints come
again,"""
LONGEST_PAUSE_S = 3_600.0
"""of which longer ones are taken for this long: a run that once hung for a night does so again no sooner noticed."""
THRESHOLD = "threshold"
"""What an alert of a threshold of the user's own is of, in place of a condition."""
ABSENT = "absent"
"""The same of a series that the user waits for, and that does not come."""
OF_RUN = "threshold_"
"""What the rules of thresholds that a run was started with begin with; the metric follows."""
RESOLVE_AFTER_S = 15.0
"""Receivers are told that something is over when it has not fired for so long: what comes and goes is one incident."""
REPEAT_AFTER_S = 14_400.0
"""Receivers are told again of what still fires, and nobody has acknowledged, after this long."""
QUIET_AFTER_S = 900.0
"""An alert from frames measured longer than this before their receipt is recorded, not notified."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy: from which verdict on a condition alarms, and how loudly."""

    name: str
    condition: str
    drifting: Severity | None
    """Severity of an alert while the value is beyond a target's warning band only; None: shown on the board, no alert.

    The warning band of a value's own baseline never alarms: healthy growth from small values crosses it (a quantity
    that grows linearly from zero stays at 2.7 times its median over [t/4, t/2])."""
    violated: Severity
    for_points: int | None = None
    """Overrides the cadence's default; 1 fires at once."""


RULES: tuple[Rule, ...] = (
    Rule("forward_out_of_band", "forward", None, "critical"),
    Rule("dependency_out_of_band", "dependency", None, "critical"),
    Rule("update_out_of_band", "update", None, "critical"),
    Rule("weight_out_of_band", "spectral_weight", "warning", "critical"),
    Rule("update_norm_out_of_band", "spectral_update", "warning", "critical"),
    Rule("branch_out_of_band", "depth", "warning", "critical"),
    Rule("frozen_pair_moved", "invariance", "warning", "critical"),
    Rule("gap_used_up", "gap", "warning", "critical"),
    Rule("frozen_share_high", "frozen_share", "warning", "critical"),
    Rule("norm_of_one_direction", "learned_spectrum", "warning", "critical"),
    Rule("matrix_misrouted", "routing", "warning", "critical", for_points=1),
    Rule("max_logit_high", "attention", "warning", "critical"),
    Rule("logit_scale_out_of_band", "logit_scale", "warning", "critical"),
    Rule("not_finite", "numeric", "critical", "critical", for_points=1),
    Rule("first_step_out_of_band", "first_step", "warning", "warning", for_points=1),
    Rule("replicas_differ", "replicas", "critical", "critical", for_points=1),
    Rule("loss_out_of_band", "loss", None, "critical", for_points=3),
    Rule("experts_out_of_balance", "experts", "warning", "warning"),
    Rule("log_z_out_of_band", "logits", None, "critical"),
    Rule("gradient_norm_out_of_band", "gradient_norm", None, "critical", for_points=3),
    Rule("parameter_stopped_learning", "learning", None, "critical"),
    Rule("gradient_under_eps", "epsilon", "warning", "warning"),
    Rule("optimizer_state_lost", "optimizer_state", "warning", "warning", for_points=1),
    Rule("weight_jump", "weight_jump", "critical", "critical", for_points=1),
    Rule("logit_jump", "logit_jump", "warning", "warning", for_points=1),
    Rule("no_data", "no_data", "warning", "warning", for_points=1),
    Rule("weight_decay_jump", "weight_decay_jump", "warning", "warning", for_points=1),
    Rule("learning_rate_jump", "learning_rate_jump", "warning", "critical", for_points=1),
)

RULE_OF_CONDITION: dict[str, Rule] = {rule.condition: rule for rule in RULES}


@dataclass(frozen=True, slots=True)
class RunRule:
    """A rule on the run itself: what alarms when it is in a state, or when it has ended so."""

    name: str
    state: Literal["stalled", "lost", "failed", "killed"]
    severity: Severity
    fault: str
    """What is wrong, for a message that stands alone."""
    advice: str
    is_end: bool = False
    """Whether it tells of an end: that has a moment, and no duration."""


RUN_RULES: tuple[RunRule, ...] = (
    RunRule(
        "run_stalled",
        "stalled",
        "critical",
        fault="The run stands still",
        advice="a collective that waits, a full disk; a long evaluation or checkpoint is told by monitor.pause()",
    ),
    RunRule("run_lost", "lost", "critical", fault="The run is lost", advice="the job: its process, its node, its log"),
    RunRule("run_failed", "failed", "critical", fault="The run failed", advice="the end of its log", is_end=True),
    RunRule(
        "run_killed",
        "killed",
        "warning",
        fault="The run was killed",
        advice="who sent the signal: a scheduler, a time limit, a person",
        is_end=True,
    ),
)

RUN_RULE: dict[str, RunRule] = {rule.name: rule for rule in RUN_RULES}
