"""Checks: which series are judged by which criterion, as arrays that one step is judged with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import (
    BASELINE_CRITICAL,
    CARDS,
    CRITERIA,
    FOLLOWED_PAIR,
    RECOVERY,
    Criterion,
)
from internist.schema.metrics import METRICS
from internist_server.judge.columns import MISSING, Columns, Indices
from internist_server.judge.criteria import (
    ALARMS_ON_WARNING,
    ALONE,
    CARD,
    COMPLEMENT,
    GROWTH,
    IS_FLOOR,
    MULTIPLIES,
    POINTS_NEEDED,
    SCHEDULED,
    TARGET_EDGES,
    TWO_SIDED,
    VANISHING,
)
from internist_server.judge.experts import choosing_blocks
from internist_server.judge.promises import Groups, MuonChecks, is_promised, muon_checks
from internist_server.judge.series import JudgedSeries
from internist_server.judge.thinning import Thinning

Flags = NDArray[np.bool_]
Logs = NDArray[np.float32]

CRITERION_OF_METRIC: dict[str, int] = {criterion.metric: number for number, criterion in enumerate(CRITERIA)}
NUMERIC_CARD = CARDS.index("numeric")
QUOTIENTS = frozenset({"update.relative_rms", "update.relative", "weight.stable_rank"})
"""Not judged for finiteness: their denominator is rightly zero for a zero-initialised weight, and both of their terms
are series of their own."""
RECENT_RECOVERY = 20
"""Points in its band after which a value of every step is well again: a loss that leaps for a while is one incident."""
_FOLLOWING = "policy retract"
"""How the method of a series ends whose optimizer follows a pair, and does not freeze it."""
_COUNT_OF_NONFINITE = "activation.nonfinite"
_OF_BLOCKS = frozenset(("activation.rms_q99", "block.contribution"))


@dataclass(frozen=True, slots=True)
class Checks:
    """One check for each series that some criterion speaks for, in the order of the series; log ratios are log2."""

    column: Indices
    criterion: Indices
    card: Indices
    two_sided: Flags
    scheduled: Flags
    group: Indices
    """Place in `rate_columns` of the group whose rate it follows; MISSING: it follows the run's."""
    baselined: Flags
    """Judged against its own baseline: no target applies to it."""
    complement: Flags
    """Judged is one less the value."""
    follows: Flags
    """Its lower edge follows where most checks of its criterion fall together."""
    growing: Indices
    """Checks that are judged by their own baseline and may not become too large a multiple of their first values,"""
    growth_limit: Logs
    """and log2 of that multiple; aligned with `growing`."""
    recent: Indices
    """Checks that are judged by their own last values,"""
    recent_multiplies: Flags
    """and whether their scatter multiplies them; aligned with `recent`."""
    target_centre: Logs
    """log2 of the target's warning edge; NaN without a fixed target."""
    target_edges: tuple[Logs, Logs]
    """Warning and critical edge of a fixed target, exactly; NaN without one."""
    warn_high: Logs
    critical_high: Logs
    warn_low: Logs
    critical_low: Logs
    """Edges as log-ratios to the centre; minus infinity below where a criterion has one side."""
    alarms_on_warning: Flags
    cadence: Indices
    needed: Indices
    recovery: Indices
    """Points in the recovery band after which an alert resolves."""
    sanity: Indices
    """Checks with a sanity band, with the columns of its numerator and denominator."""
    sanity_mean: Indices
    sanity_reference: Indices
    muon: MuonChecks
    finite: Flags
    """By column: whether a value that is not finite is a violation."""
    counts_nonfinite: Flags
    is_gradient: Flags
    thinning: Thinning
    rate_columns: Indices
    """Columns of the groups' learning rates, with the number of parameters of each group."""
    state_columns: Indices
    """Columns of how many steps the optimizers' states have seen."""
    decay_columns: Indices
    """(groups, 2): columns of each group's weight decay and of its learning rate; MISSING where one is not measured."""
    rate_weights: tuple[float, ...]
    weight_columns: Indices
    """(parameters, 2): columns of each parameter's RMS and of that of its steps."""
    logit_columns: tuple[Indices, ...]
    """By attention: columns of its heads' largest logits."""
    by_card: Indices
    """Checks sorted by card, and where each card of `cards_present` starts in it."""
    card_starts: Indices
    cards_present: Indices

    def judged(self, values: Logs) -> Logs:
        """By check, what is judged of the values of all series; of rows (points, series) as (checks, points)."""
        chosen = values[..., self.column].T
        return np.where(self.complement if chosen.ndim == 1 else self.complement[:, None], 1 - chosen, chosen)


def criterion_of(series: JudgedSeries) -> Criterion | None:
    """The criterion that speaks for a series, or None: then it is stored and shown, not judged."""
    number = CRITERION_OF_METRIC.get(series.metric)
    if number is None:
        return None
    criterion = CRITERIA[number]
    if criterion.condition == "numeric":
        return None  # counted with the values that are not finite
    if criterion.applies_to == "blocks" and series.facts.role != "block":
        return None
    if criterion.applies_to == "stages" and not _is_stage(series):
        return None
    if criterion.applies_to == "matrices" and (series.facts.view is None or series.facts.role in ("embedding", "head")):
        return None
    if criterion.applies_to == "normalized_input" and not series.facts.input_normalized:
        return None
    return criterion


def _is_stage(series: JudgedSeries) -> bool:
    """Whether a module is a block, or outside of all blocks and not the whole model."""
    return series.facts.role == "block" or (series.facts.block is None and bool(series.subject))


def has_fixed_target(series: JudgedSeries, criterion: Criterion, *, mup: bool) -> bool:
    """Whether a target from theory with fixed edges is judged for a series. An upper bound proves no excess."""
    target = criterion.target
    if target is None or series.bound == "upper":
        return False
    return target.applies_when == "always" or (target.applies_when == "mup" and mup)


def is_held_to_reference(series: JudgedSeries) -> bool:
    """Whether a reference run speaks for a series: then it is judged though nothing else would judge it."""
    number = CRITERION_OF_METRIC.get(series.metric)
    if number is None or not CRITERIA[number].reference or series.bound == "upper":
        return False
    role, applies_to = series.facts.role, CRITERIA[number].applies_to
    if role in ("root", "container"):
        return False
    # A block's output is the residual stream, whose largest tokens are outliers in healthy models too.
    return role != "block" if applies_to == "normalized_input" else series.metric not in _OF_BLOCKS or role == "block"


def build_checks(series: Sequence[JudgedSeries], *, mup: bool, is_referenced: bool = False) -> Checks:
    """The checks of these series. Those of a longer list with the same beginning begin with the same checks.

    Args:
        series: in the order of their columns.
        mup: the run declares a spectral or muP parametrisation.
        is_referenced: the run names a reference: what only that speaks for is checked as well.
    """
    metrics = np.array([_METRIC_NUMBER.get(one.metric, MISSING) for one in series], np.int64)
    rates, decays = (np.flatnonzero(metrics == _METRIC_NUMBER[name]) for name in ("learning_rate", "weight_decay"))
    groups = Groups.of(series, rates, decays)
    rows: list[tuple[int, int, bool, bool, bool, bool]] = []
    for at in np.flatnonzero(_HAS_CRITERION[metrics]).tolist():
        one = series[at]
        number_of = CRITERION_OF_METRIC[one.metric]
        criterion = criterion_of(one)
        fixed = criterion is not None and has_fixed_target(one, criterion, mup=mup)
        muon = criterion is not None and is_promised(one, criterion, groups)
        recent = criterion is not None and criterion.recent is not None
        own = criterion is not None and criterion.baseline and not (fixed or muon or recent)
        if fixed or muon or recent or own or (is_referenced and is_held_to_reference(one)):
            rows.append((at, number_of, fixed, muon, recent, own))

    kinds = (np.array([row[i] for row in rows], np.int64) for i in range(6))
    column, number, fixed_target, is_muon, of_recent, is_own = kinds
    has_target, promised, is_recent, baselined = (
        each.astype(bool) for each in (fixed_target, is_muon, of_recent, is_own)
    )
    times = np.array([_times(series[at], CRITERIA[of]) for at, of, *_ in rows], np.float64)
    warn, critical = np.where(has_target, TARGET_EDGES[number].T * times, np.nan)
    free = ~has_target & _of_choices(series, column, number)
    is_floor = has_target & IS_FLOOR[number]
    high = np.where(has_target & ~is_floor, 0.0, np.inf)  # of its own baseline a value is well up to the one edge
    higher = np.where(has_target, np.log2(critical / warn), np.log2(BASELINE_CRITICAL))
    lower = np.where(TWO_SIDED[number] & (baselined | promised | is_recent), higher, np.inf)
    lower, higher = np.where(is_floor, np.abs(higher), lower), np.where(is_floor, np.inf, higher)
    vanishing = VANISHING[number]
    lower = np.where(np.isnan(vanishing), lower, -np.log2(vanishing))
    higher = np.where(np.isnan(vanishing), higher, np.inf)
    limit = np.where(baselined & ~_of_upper_bounds(series, column), GROWTH[number], np.nan)
    growing = np.flatnonzero(np.isfinite(limit))
    higher = np.where(free, np.inf, higher)
    card = CARD[number]
    by_card = np.argsort(card, kind="stable")
    cards_present, card_starts = np.unique(card[by_card], return_index=True)
    thinning = Thinning.of(series)
    sanity = _sanity(series, column, number)
    return Checks(
        column=column,
        criterion=number,
        card=card,
        two_sided=TWO_SIDED[number] | is_floor,
        scheduled=SCHEDULED[number] & baselined,
        group=np.where(SCHEDULED[number] & baselined, groups.places(series, column), MISSING),
        baselined=baselined,
        complement=COMPLEMENT[number],
        follows=baselined & np.isfinite(lower) & ~COMPLEMENT[number] & ~ALONE[number],
        growing=growing,
        growth_limit=np.log2(limit[growing]).astype(np.float32),
        recent=np.flatnonzero(is_recent),
        recent_multiplies=MULTIPLIES[number[is_recent]],
        target_centre=np.log2(warn).astype(np.float32),
        target_edges=(_finite(np.where(is_floor, np.nan, warn)), _finite(np.where(is_floor, np.nan, critical))),
        warn_high=high.astype(np.float32),
        critical_high=higher.astype(np.float32),
        warn_low=np.where(is_floor, 0.0, -np.inf).astype(np.float32),
        critical_low=(-lower).astype(np.float32),
        alarms_on_warning=ALARMS_ON_WARNING[number] & (has_target | promised | is_recent | np.isfinite(limit)),
        cadence=thinning.cadence[column],
        needed=POINTS_NEEDED[number],
        recovery=np.where(is_recent & (thinning.cadence[column] == 1), RECENT_RECOVERY, POINTS_NEEDED[number]),
        sanity=sanity[:, 0],
        sanity_mean=sanity[:, 1],
        sanity_reference=sanity[:, 2],
        muon=muon_checks(series, np.flatnonzero(promised), column, groups),
        finite=_MUST_BE_FINITE[metrics],
        counts_nonfinite=metrics == _METRIC_NUMBER[_COUNT_OF_NONFINITE],
        is_gradient=_IS_GRADIENT[metrics],
        thinning=thinning,
        state_columns=np.flatnonzero(metrics == _METRIC_NUMBER["optimizer.steps"]),
        decay_columns=_decays(series),
        weight_columns=_weights(series),
        logit_columns=_logits(series),
        rate_columns=np.array(groups.rates, np.int64),
        rate_weights=tuple(groups.weights),
        by_card=by_card,
        card_starts=card_starts,
        cards_present=cards_present,
    )


def recovery_edge(checks: Checks, edge: Logs) -> Logs:
    """Log-ratio under which an alert beyond the upper `edge` may resolve; its negative is the lower one.

    For a baseline RECOVERY times the edge's own log-ratio; where the centre is itself an edge (targets), RECOVERY times
    that edge's value.
    """
    narrower = np.where(np.isnan(checks.target_centre), RECOVERY * edge, edge + np.float32(np.log2(RECOVERY)))
    return narrower.astype(np.float32)


def _sanity(series: Sequence[JudgedSeries], column: Indices, number: Indices) -> Indices:
    """Rows of (check, column of the mean update, column of what it is relative to)."""
    found = []
    for criterion_number, criterion in enumerate(CRITERIA):
        at = np.flatnonzero(number == criterion_number)
        if criterion.sanity_relative_to is None or not at.size:
            continue
        means = Columns.of(series, criterion.metric + "_mean")
        references = Columns.of(series, criterion.sanity_relative_to)
        for check in at.tolist():
            one = series[column[check]]
            pair = means.like(one), references.like(one)
            if MISSING not in pair:
                found.append((check, *pair))
    return np.array(found, np.int64).reshape(-1, 3)


def _of_upper_bounds(series: Sequence[JudgedSeries], column: Indices) -> Flags:
    """By check, whether its values are upper bounds: they prove no excess."""
    return np.array([series[at].bound == "upper" for at in column.tolist()], bool)


def _of_choices(series: Sequence[JudgedSeries], column: Indices, number: Indices) -> Flags:
    """By check, whether its values are how far a step moves what a choice of experts has made: a token that chooses
    another is moved as far as experts differ, however small the step."""
    choosing = choosing_blocks(series)
    if not choosing:
        return np.zeros(column.size, bool)
    of_feature = np.array([criterion.metric == "update.feature" for criterion in CRITERIA])[number]
    of_own = np.array([criterion.metric == "update.own" for criterion in CRITERIA])[number]
    is_choosing = np.array(
        [series[at].facts.role == "block" and series[at].subject in choosing for at in column.tolist()]
    )
    return np.asarray(of_feature | (of_own & is_choosing.astype(bool)))


def _times(series: JudgedSeries, criterion: Criterion) -> float:
    """What the edges of a criterion's target are multiplied by for a series."""
    kind = None if criterion.target is None else criterion.target.times
    if kind == "inverse_root_rank":
        return float(min(series.facts.fan_in or 1, series.facts.fan_out or 1) ** -0.5)
    return FOLLOWED_PAIR if kind == "followed_pair" and series.facts.method.endswith(_FOLLOWING) else 1.0


def _decays(series: Sequence[JudgedSeries]) -> NDArray[np.int64]:
    """(groups, 2): columns of each group's weight decay and of its learning rate; MISSING where one is not measured."""
    rates = {one.subject: column for column, one in enumerate(series) if one.metric == "learning_rate"}
    found = [
        (column, rates.get(one.subject, MISSING)) for column, one in enumerate(series) if one.metric == "weight_decay"
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def _logits(series: Sequence[JudgedSeries]) -> tuple[Indices, ...]:
    """By attention, columns of its heads' largest logits; upper bounds prove no rise."""
    heads: dict[str, list[int]] = {}
    for column, one in enumerate(series):
        if one.metric == "attention.max_logit" and one.bound != "upper":
            heads.setdefault(one.subject, []).append(column)
    return tuple(np.array(columns, np.int64) for columns in heads.values())


def _weights(series: Sequence[JudgedSeries]) -> Indices:
    """(parameters, 2): columns of each parameter's RMS and of that of its steps, where both are measured."""
    steps = {one.subject: column for column, one in enumerate(series) if one.metric == "update.rms"}
    found = [
        (column, steps[one.subject])
        for column, one in enumerate(series)
        if one.metric == "weight.rms" and one.subject in steps
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def _finite(edge: NDArray[np.float64]) -> Logs:
    return np.where(np.isfinite(edge), edge, np.nan).astype(np.float32)


def _must_be_finite(metric: str) -> bool:
    return not metric.startswith("monitor.") and metric not in QUOTIENTS


# What is the same for all series of a metric, by its number; the last entry stands for metrics outside the catalogue.
_METRIC_NUMBER = {metric: number for number, metric in enumerate(METRICS)}
_MUST_BE_FINITE = np.array([_must_be_finite(metric) for metric in METRICS] + [False])
_IS_GRADIENT = np.array([metric.startswith("gradient.") for metric in METRICS] + [False])
_HAS_CRITERION = np.array([metric in CRITERION_OF_METRIC for metric in METRICS] + [False])
