"""Criteria as arrays: what is the same for all checks of a criterion, by its number."""

import numpy as np

from internist.schema.conditions import CARDS, CONDITION, CRITERIA, Criterion, Target
from internist.schema.metrics import METRICS
from internist.schema.rules import FOR_POINTS_HEAVY, FOR_POINTS_LIGHT, RULE_OF_CONDITION


def _points_needed(criterion: Criterion) -> int:
    rule = RULE_OF_CONDITION[criterion.condition]
    if rule.for_points is not None:
        return rule.for_points
    heavy = METRICS[criterion.metric].cadence in ("model_heavy", "matrix_heavy")
    return FOR_POINTS_HEAVY if heavy else FOR_POINTS_LIGHT


def _target_edges(target: Target | None) -> tuple[float, float]:
    """Where a target warns and where it is violated; infinite where it never is."""
    if target is None:
        return np.nan, np.nan
    return target.warn_above, np.inf if target.critical_above is None else target.critical_above


TWO_SIDED = np.array([criterion.two_sided for criterion in CRITERIA])
MULTIPLIES = np.array([criterion.recent == "product" for criterion in CRITERIA])
ALONE = np.array([criterion.alone for criterion in CRITERIA])
COMPLEMENT = np.array([criterion.complement for criterion in CRITERIA])
VANISHING = np.array([np.nan if criterion.vanishing is None else criterion.vanishing for criterion in CRITERIA])
IS_FLOOR = np.array([criterion.target is not None and criterion.target.is_floor for criterion in CRITERIA])
GROWTH = np.array([np.nan if criterion.growth is None else criterion.growth for criterion in CRITERIA])
SCHEDULED = np.array([criterion.scheduled for criterion in CRITERIA])
CARD = np.array([CARDS.index(CONDITION[criterion.condition].card) for criterion in CRITERIA])
POINTS_NEEDED = np.array([_points_needed(criterion) for criterion in CRITERIA])
ALARMS_ON_WARNING = np.array([RULE_OF_CONDITION[criterion.condition].drifting is not None for criterion in CRITERIA])
TARGET_EDGES = np.array([_target_edges(criterion.target) for criterion in CRITERIA])
