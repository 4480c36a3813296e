"""Promises: checks whose band is what the optimizer says of its updates, and the groups that they are in."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from internist.schema.conditions import Criterion
from internist_server.judge.columns import MISSING, Columns, Indices
from internist_server.judge.series import JudgedSeries


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
class Groups:
    """The run's parameter groups: columns of their rates and decays.

    A group is known by the number that its series and those of its parameters carry. Clients number the groups of all
    optimizers through; those of early versions began anew with each optimizer, and a number that two groups bear
    names neither: nobody's rate is better than another's.
    """

    rates: list[int]
    weights: list[float]
    number: dict[int, int]
    """Place of a group's rate in `rates`, by the group's number."""
    decays: dict[int, int]

    @classmethod
    def of(cls, series: Sequence[JudgedSeries], rates: Indices, decays: Indices) -> "Groups":
        """Those of these series, with the columns of learning rates and of weight decays."""
        own = _by_group(series, rates)
        place = {int(column): place for place, column in enumerate(rates)}
        return cls(
            rates=rates.tolist(),
            weights=[float(series[at].facts.parameters or 1) for at in rates],
            number={group: place[column] for group, column in own.items()},
            decays={group: column for group, column in _by_group(series, decays).items() if group in own},
        )

    def places(self, series: Sequence[JudgedSeries], column: Indices) -> Indices:
        """Place in `rates` of the one group whose steps each of these columns shows; MISSING where it is none, or
        several."""
        members: dict[tuple[str, str | None], set[int]] = {}
        for one in series:
            if one.kind == "parameter":
                place = self._place(one)
                members.setdefault(("module", one.facts.module), set()).add(place)
                members.setdefault(("block", one.facts.block), set()).add(place)
        found = []
        for one in (series[at] for at in column.tolist()):
            if one.kind == "parameter":
                found.append(self._place(one))
                continue
            whole = "block" if one.metric.startswith("branch.") else "module"
            own = members.get((whole, one.subject), set()) if one.metric != "update.feature" else set()
            found.append(next(iter(own)) if len(own) == 1 else MISSING)
        return np.array(found, np.int64)

    def _place(self, one: JudgedSeries) -> int:
        return MISSING if one.facts.group is None else self.number.get(one.facts.group, MISSING)


def _by_group(series: Sequence[JudgedSeries], columns: Indices) -> dict[int, int]:
    """Columns by the number of their group, of the groups that share it with no other."""
    numbers = [(_group_of(series[at]), at) for at in columns.tolist()]
    counts = Counter(number for number, _ in numbers)
    return {number: at for number, at in numbers if number is not None and counts[number] == 1}


def _group_of(series: JudgedSeries) -> int | None:
    return series.index if series.facts.group is None else series.facts.group


def is_promised(series: JudgedSeries, criterion: Criterion, groups: Groups) -> bool:
    """Whether an optimizer promises a band for a series, and its group's rate is known."""
    facts = series.facts
    return (
        criterion.target is not None
        and criterion.target.applies_when == "muon"
        and facts.update_scale is not None
        and facts.update_band is not None
        and facts.group in groups.number
        and bool(facts.fan_in and facts.fan_out)
    )


def muon_checks(series: Sequence[JudgedSeries], check: Indices, column: Indices, groups: Groups) -> MuonChecks:
    """The checks of series for which one does.

    Args:
        series: all of them.
        check: the checks' numbers.
        column: columns of all checks.
        groups: the run's.
    """
    members = [series[at] for at in column[check]]
    facts = [one.facts for one in members]
    weights = Columns.of(series, "weight.operator_norm")
    bands = [one.update_band or (0.0, 0.0) for one in facts]
    scale = [(one.update_scale or 0.0) * math.sqrt((one.fan_in or 1) / (one.fan_out or 1)) for one in facts]
    index = [MISSING if one.group is None else one.group for one in facts]
    return MuonChecks(
        check=check,
        scale=np.array(scale, np.float64),
        low=np.array([low for low, _ in bands], np.float64),
        high=np.array([high for _, high in bands], np.float64),
        rate=np.array([groups.number[group] for group in index], np.int64),
        decay=np.array([groups.decays.get(group, MISSING) for group in index], np.int64),
        weight=np.array([weights.like(one) for one in members], np.int64),
    )
