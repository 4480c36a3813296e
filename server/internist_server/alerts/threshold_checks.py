"""Which series are held against which thresholds, as arrays that one step is compared with. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
from numpy.typing import NDArray

from internist_server.alerts.lifecycle import Flags, Steps
from internist_server.alerts.rules import Rule
from internist_server.judge.series import JudgedSeries

NOWHERE: Final = -1
"""The column, and the series, of a rule that waits for a series when none has come that it is on."""
Levels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ThresholdChecks:
    """One check for each rule on each series that it is on."""

    rule: tuple[int, ...]
    column: Steps
    is_gradient: Flags
    awaited: Steps
    """Steps without a point after which it fires; 0: it is on values."""
    above: Levels
    below: Levels
    """Edges, infinite where there is none. Of a series that is waited for they are on the steps without a point."""
    back_under: Levels
    back_over: Levels
    """Edges within which a value is well again."""
    needed: Steps
    recovery: Steps
    apart: Steps
    """Steps between two points that count."""

    @classmethod
    def of(cls, rules: Sequence[Rule], series: Sequence[JudgedSeries]) -> "ThresholdChecks":
        """The checks of these rules on these series."""
        number, column = _pairs(rules, series)
        chosen = [rules[one] for one in number]
        above = np.array([_upper(rule) for rule in chosen], np.float64)
        below = np.array([-np.inf if rule.below is None else rule.below for rule in chosen], np.float64)
        back = np.array([np.nan if rule.recovery is None else rule.recovery for rule in chosen], np.float64)
        has_back = ~np.isnan(back)
        return cls(
            rule=tuple(number),
            column=np.array(column, np.int64),
            is_gradient=np.array([at != NOWHERE and series[at].metric.startswith("gradient.") for at in column], bool),
            awaited=np.array([rule.absent or 0 for rule in chosen], np.int64),
            above=above,
            below=below,
            back_under=np.where(has_back & np.isfinite(above), back, above),
            back_over=np.where(has_back & np.isfinite(below), back, below),
            needed=np.array([rule.samples for rule in chosen], np.int64),
            recovery=np.array([rule.recovery_samples for rule in chosen], np.int64),
            apart=np.array([rule.apart for rule in chosen], np.int64),
        )

    def are_beyond(self, value: Levels) -> Flags:
        """Whether each value is beyond its edges. NaN is."""
        return ~((value <= self.above) & (value >= self.below))

    def are_back(self, value: Levels) -> Flags:
        """Whether each value is well enough to end an alert."""
        return (value <= self.back_under) & (value >= self.back_over)

    def excess(self, value: Levels) -> Levels:
        """How many times beyond its edge each value is: 1 where it is not, infinite where that is no ratio."""
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(value > self.above, value / self.above, self.below / value)
        is_ratio = np.isfinite(times) & (times >= 1.0)
        return np.where(self.are_beyond(value), np.where(is_ratio, times, np.inf), 1.0)


def _pairs(rules: Sequence[Rule], series: Sequence[JudgedSeries]) -> tuple[list[int], list[int]]:
    """Rule and column of each check."""
    by_metric: dict[str, list[int]] = {}
    for place, one in enumerate(series):
        by_metric.setdefault(one.metric, []).append(place)
    number: list[int] = []
    column: list[int] = []
    for place, rule in enumerate(rules):
        found = [
            at
            for metric, columns in by_metric.items()
            if fnmatchcase(metric, rule.metric)
            for at in columns
            if rule.module == "*" or fnmatchcase(series[at].subject, rule.module)
        ]
        if not found and rule.absent is not None:
            found = [NOWHERE]
        number += [place] * len(found)
        column += found
    return number, column


def _upper(rule: Rule) -> float:
    """What a value, or the number of steps without one, must not be over."""
    if rule.absent is not None:
        return rule.absent - 0.5  # it fires at that many steps, which are whole
    return np.inf if rule.above is None else rule.above
