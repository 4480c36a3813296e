"""Checks: which series are judged by which criterion, as arrays that one step is judged with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import (
    BASELINE_CRITICAL,
    BASELINE_WARN,
    CARDS,
    CONDITION,
    CRITERIA,
    RECOVERY,
    Criterion,
)
from internist.schema.metrics import METRICS
from internist.schema.rules import FOR_POINTS_HEAVY, FOR_POINTS_LIGHT, RULE_OF_CONDITION
from internist_server.judge.series import JudgedSeries

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
Logs = NDArray[np.float32]

MISSING = -1
CRITERION_OF_METRIC: dict[str, int] = {criterion.metric: number for number, criterion in enumerate(CRITERIA)}
NUMERIC_CARD = CARDS.index("numeric")
QUOTIENTS = frozenset({"update.relative_rms", "update.relative", "weight.stable_rank"})
"""Not judged for finiteness: the denominator of a zero-initialised weight is rightly zero, and each has both of its terms
as series of their own."""
_COUNT_OF_NONFINITE = "activation.nonfinite"


@dataclass(frozen=True, slots=True)
class MuonChecks:
    """Checks whose band is what the optimizer promises; all arrays are aligned with `check`."""

    check: Indices
    scale: NDArray[np.float64]
    """R(dW) over learning rate for singular values of one: update_scale * sqrt(fan_in / fan_out)."""
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """Singular values that the orthogonalisation leaves."""
    rate: Indices
    """Number of the group in `Checks.rate_columns`."""
    decay: Indices
    weight: Indices
    """Columns of the group's weight decay and of the weight's own operator norm; MISSING where not measured."""


@dataclass(frozen=True, slots=True)
class Checks:
    """One check for each series that some criterion speaks for, in the order of the series; log ratios are log2."""

    column: Indices
    criterion: Indices
    card: Indices
    two_sided: Flags
    scheduled: Flags
    baselined: Flags
    """Judged against its own baseline: no target applies to it."""
    target_centre: Logs
    """log2 of the target's warning edge; NaN without a fixed target."""
    warn_high: Logs
    critical_high: Logs
    warn_low: Logs
    critical_low: Logs
    """Edges as log-ratios to the centre; minus infinity below where a criterion has one side."""
    alarms_on_warning: Flags
    cadence: Indices
    needed: Indices
    sanity: Indices
    """Checks with a sanity band, with the columns of its numerator and denominator."""
    sanity_mean: Indices
    sanity_reference: Indices
    muon: MuonChecks
    finite: Flags
    """By column: whether a value that is not finite is a violation."""
    counts_nonfinite: Flags
    is_gradient: Flags
    series_cadence: Indices
    rate_columns: Indices
    """Columns of the groups' learning rates, with the number of parameters of each group."""
    rate_weights: tuple[float, ...]
    by_card: Indices
    """Checks sorted by card, and where each card of `cards_present` starts in it."""
    card_starts: Indices
    cards_present: Indices


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
    if criterion.applies_to == "normalized_input" and not series.facts.input_normalized:
        return None
    return criterion


def has_fixed_target(series: JudgedSeries, criterion: Criterion, *, mup: bool) -> bool:
    """Whether a target from theory with fixed edges is judged for a series. An upper bound proves no excess."""
    target = criterion.target
    if target is None or series.bound == "upper":
        return False
    return target.applies_when == "always" or (target.applies_when == "mup" and mup)


def build_checks(series: Sequence[JudgedSeries], *, mup: bool) -> Checks:
    """The checks of these series. Those of a longer list with the same beginning begin with the same checks."""
    columns = {(one.metric, one.subject, one.index, one.bound): column for column, one in enumerate(series)}
    groups = _Groups.of(series)
    rows: list[tuple[int, int, JudgedSeries, Criterion, bool, bool]] = []
    for column, one in enumerate(series):
        criterion = criterion_of(one)
        if criterion is None:
            continue
        fixed = has_fixed_target(one, criterion, mup=mup)
        muon = _is_muon(one, criterion, groups)
        if fixed or muon or criterion.baseline:
            rows.append((column, CRITERION_OF_METRIC[one.metric], one, criterion, fixed, muon))

    size = len(rows)
    criteria = [row[3] for row in rows]
    two_sided = np.fromiter((c.two_sided for c in criteria), bool, size)
    fixed_target = np.fromiter((row[4] for row in rows), bool, size)
    is_muon = np.fromiter((row[5] for row in rows), bool, size)
    target_warn = np.array([c.target.warn_above if row[4] and c.target else np.nan for c, row in zip(criteria, rows, strict=True)])
    target_critical = np.array([c.target.critical_above if row[4] and c.target else np.nan for c, row in zip(criteria, rows, strict=True)])
    high = np.where(fixed_target, 0.0, np.log2(BASELINE_WARN))
    critical = np.where(fixed_target, np.log2(target_critical / target_warn), np.log2(BASELINE_CRITICAL))
    lower = two_sided & ~fixed_target
    card = np.fromiter((CARDS.index(CONDITION[c.condition].card) for c in criteria), np.int64, size)
    by_card = np.argsort(card, kind="stable")
    cards_present, card_starts = np.unique(card[by_card], return_index=True)
    sanity = _sanity(rows, columns)
    known = [METRICS.get(one.metric) for one in series]
    return Checks(
        column=np.fromiter((row[0] for row in rows), np.int64, size),
        criterion=np.fromiter((row[1] for row in rows), np.int64, size),
        card=card,
        two_sided=two_sided,
        scheduled=np.fromiter((c.scheduled for c in criteria), bool, size) & ~fixed_target & ~is_muon,
        baselined=~fixed_target & ~is_muon,
        target_centre=np.log2(target_warn).astype(np.float32),
        warn_high=high.astype(np.float32),
        critical_high=critical.astype(np.float32),
        warn_low=np.where(lower, -high, -np.inf).astype(np.float32),
        critical_low=np.where(lower, -critical, -np.inf).astype(np.float32),
        alarms_on_warning=np.fromiter((RULE_OF_CONDITION[c.condition].drifting is not None for c in criteria), bool, size)
        & (fixed_target | is_muon),
        cadence=np.fromiter((max(row[2].facts.cadence, 1) for row in rows), np.int64, size),
        needed=np.fromiter((_points_needed(c) for c in criteria), np.int64, size),
        sanity=np.array([s[0] for s in sanity], np.int64),
        sanity_mean=np.array([s[1] for s in sanity], np.int64),
        sanity_reference=np.array([s[2] for s in sanity], np.int64),
        muon=_muon([(number, *row) for number, row in enumerate(rows) if row[5]], columns, groups),
        finite=np.array([m is not None and not m.name.startswith("monitor.") and m.name not in QUOTIENTS for m in known], bool),
        counts_nonfinite=np.array([one.metric == _COUNT_OF_NONFINITE for one in series], bool),
        is_gradient=np.array([one.metric.startswith("gradient.") for one in series], bool),
        series_cadence=np.array([max(one.facts.cadence, 1) for one in series], np.int64),
        rate_columns=np.array(groups.rates, np.int64),
        rate_weights=tuple(groups.weights),
        by_card=by_card,
        card_starts=card_starts,
        cards_present=cards_present,
    )  # fmt: skip


def recovery_edge(checks: Checks, edge: Logs) -> Logs:
    """Log-ratio under which an alert beyond the upper `edge` may resolve; its negative is the lower one.

    For a baseline RECOVERY times the edge's own log-ratio; where the centre is itself an edge (targets), RECOVERY times
    that edge's value.
    """
    narrower = np.where(np.isnan(checks.target_centre), RECOVERY * edge, edge + np.float32(np.log2(RECOVERY)))
    return narrower.astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The run's parameter groups: columns of their rates and decays."""

    rates: list[int]
    weights: list[float]
    number: dict[int, int]
    """Place of a group's rate in `rates`, by the group's index."""
    decays: dict[int, int]

    @classmethod
    def of(cls, series: Sequence[JudgedSeries]) -> "_Groups":
        groups = cls([], [], {}, {})
        for column, one in enumerate(series):
            if one.kind != "group" or one.metric not in ("learning_rate", "weight_decay"):
                continue
            group = one.facts.group if one.facts.group is not None else one.index
            if one.metric == "weight_decay":
                if group is not None:
                    groups.decays[group] = column
                continue
            if group is not None:
                groups.number[group] = len(groups.rates)
            groups.rates.append(column)
            groups.weights.append(float(one.facts.parameters or 1))
        return groups


def _points_needed(criterion: Criterion) -> int:
    rule = RULE_OF_CONDITION[criterion.condition]
    if rule.for_points is not None:
        return rule.for_points
    heavy = METRICS[criterion.metric].cadence in ("model_heavy", "matrix_heavy")
    return FOR_POINTS_HEAVY if heavy else FOR_POINTS_LIGHT


def _is_muon(series: JudgedSeries, criterion: Criterion, groups: _Groups) -> bool:
    facts = series.facts
    return (
        criterion.target is not None
        and criterion.target.applies_when == "muon"
        and facts.update_scale is not None
        and facts.update_band is not None
        and facts.group in groups.number
        and bool(facts.fan_in and facts.fan_out)
    )


def _sanity(
    rows: Sequence[tuple[int, int, JudgedSeries, Criterion, bool, bool]],
    columns: dict[tuple[str, str, int | None, str], int],
) -> list[tuple[int, int, int]]:
    found = []
    for number, (_, _, one, criterion, _, _) in enumerate(rows):
        if criterion.sanity_relative_to is None:
            continue
        mean = _column_of(columns, one.metric + "_mean", one)
        reference = _column_of(columns, criterion.sanity_relative_to, one)
        if mean != MISSING and reference != MISSING:
            found.append((number, mean, reference))
    return found


def _column_of(columns: dict[tuple[str, str, int | None, str], int], metric: str, like: JudgedSeries) -> int:
    """Column of another metric of the same subject: of the same bound if there is one, else the exact or sampled one."""
    for bound in (like.bound, "exact", "sampled", "lower"):
        column = columns.get((metric, like.subject, like.index, bound))
        if column is not None:
            return column
    return MISSING


def _muon(
    rows: Sequence[tuple[int, int, int, JudgedSeries, Criterion, bool, bool]],
    columns: dict[tuple[str, str, int | None, str], int],
    groups: _Groups,
) -> MuonChecks:
    facts = [row[3].facts for row in rows]
    bands = [f.update_band or (0.0, 0.0) for f in facts]
    return MuonChecks(
        check=np.array([row[0] for row in rows], np.int64),
        scale=np.array([(f.update_scale or 0.0) * ((f.fan_in or 1) / (f.fan_out or 1)) ** 0.5 for f in facts], np.float64),
        low=np.array([low for low, _ in bands], np.float64),
        high=np.array([high for _, high in bands], np.float64),
        rate=np.array([groups.number[f.group] for f in facts if f.group is not None], np.int64),
        decay=np.array([groups.decays.get(f.group, MISSING) if f.group is not None else MISSING for f in facts], np.int64),
        weight=np.array([_column_of(columns, "weight.operator_norm", row[3]) for row in rows], np.int64),
    )  # fmt: skip
