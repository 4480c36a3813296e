"""Facts of the first step: what a model's first numbers say of how it was set up, without a past or a reference.

Each is a bound that no customary initialisation crosses, so what is beyond it is worth a look and no more: it warns,
until the quantity has come inside.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from internist.schema.conditions import RECOVERY
from internist_server.judge.checks import Flags, Logs
from internist_server.judge.memory import OpenFact
from internist_server.judge.outline import blocks_of
from internist_server.judge.series import JudgedSeries

WEIGHT_SPECTRAL: Final = 5.0
"""R(W) of a hidden matrix at the start of a run whose matrices all have one norm, though it declares no spectral
parametrisation (one that does has this as a target): Su's example (2026, kexue.fm/archives/11729)."""
WEIGHT: Final = 10.0
"""The same of a square matrix under any other; of one that reads r times the features it writes (1 + sqrt(r)) / 2 times
as much. Derived: torch's own initialisation gives (1 + sqrt(r)) / sqrt(3), He's 2.4 times that, GPT-2's 0.02 4.4 at a
width of 12,288."""
LOGITS: Final = 3.0
"""RMS of the logits. Derived: independent logits of this size make the loss larger than log(classes) by half its
square, 4.5 nats."""
GROWTH_DECLARED: Final = 3.0
"""RMS of the stream behind the last block over behind the first, where branches are to be multiplied by 1/L: derived
from (1 + 1/L)^L < e."""
GROWTH: Final = 2.0
"""The same over the square root of the depth, else. Derived: independent branches add up to the square root; without a
norm in the branch the growth is a power of the depth."""
UPDATE: Final = 1.0
"""Share of itself by which the first step moves a block's output. Derived: the first step of Adam moves every weight by
its full rate, which takes the stream of a small model that is well by up to two thirds of itself."""
FEWEST_BLOCKS: Final = 3
DECLARED: Final = "the declared parametrisation"
SPECTRAL: Final = "a spectral parametrisation, by which norms are as alike as these"
STANDARD: Final = "a standard parametrisation"
ANY: Final = "any parametrisation"
"""Whose bound it is: the declared parametrisation's, or that of the one which the first numbers fit."""
EQUAL: Final = 0.05
"""Hidden matrices whose R(W) are this equal were initialised to one spectral norm."""
FEWEST_EQUAL: Final = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """One number that is beyond its bound."""

    column: int
    """Of the series that tells it."""
    value: float
    bound: float
    said: str
    """What it is, such as `R(W) at the start`."""
    whose: str
    """Whose bound it is, such as `a standard parametrisation`; empty where an earlier version found it."""

    @property
    def excess(self) -> float:
        """Times the bound."""
        return self.value / self.bound


@dataclass(frozen=True, slots=True)
class Changed:
    """A fact that is found, or over."""

    fact: Fact
    since: int
    is_over: bool


class Facts:
    """Watches one run's first numbers.

    Args:
        series: all of them.
        declared: the run declares a muP or spectral parametrisation.
    """

    def __init__(self, series: Sequence[JudgedSeries], *, declared: bool) -> None:
        self._series, self._declared = series, declared
        blocks = blocks_of(series)
        at = {one: place for place, one in enumerate(blocks)}
        self._weights = [c for c, s in enumerate(series) if s.metric == "weight.operator_norm" and _is_hidden(s)]
        self._logits = [c for c, s in enumerate(series) if s.metric == "activation.rms" and s.facts.role == "head"]
        stream = {s.subject: c for c, s in enumerate(series) if s.metric == "activation.rms" and s.subject in at}
        self._stream = [stream[name] for name in blocks if name in stream]
        change = {s.subject: c for c, s in enumerate(series) if s.metric == "update.feature_mean" and s.subject in at}
        self._changes = [(column, stream[name]) for name, column in change.items() if name in stream]
        self._tellers: tuple[Callable[[Logs, Flags], Iterator[Fact]], ...] = (
            self._of_weights, self._of_logits, self._of_depth, self._of_update,
        )  # fmt: skip

    def advance(
        self, known: Sequence[OpenFact], values: Logs, present: Flags, *, is_first: Flags, step: int
    ) -> tuple[tuple[OpenFact, ...], list[Changed]]:
        """The facts that are open after a step, and what has changed of them.

        Args:
            known: those that were open before.
            values: by column.
            present: whether measured at this step.
            is_first: whether for the first time, in a step that is a start.
            step: its number.
        """
        kept: list[OpenFact] = []
        changed: list[Changed] = []
        for column, since, value, bound, said, whose in known:
            now = self._again(column, values, present)
            if now is None:
                kept.append((column, since, value, bound, said, whose))
            elif now.excess > RECOVERY:
                kept.append((column, since, now.value, bound, said, whose))
            else:
                changed.append(Changed(now, since, is_over=True))
        for fact in self._first(values, present, is_first=is_first) if is_first.any() else ():
            kept.append((fact.column, step, fact.value, fact.bound, fact.said, fact.whose))
            changed.append(Changed(fact, step, is_over=False))
        return tuple(kept), changed

    def _first(self, values: Logs, present: Flags, *, is_first: Flags) -> list[Fact]:
        """What is beyond its bound among series that have their first point now; the worst of each kind."""
        found = []
        for tell in self._tellers:
            told = [fact for fact in tell(values, present) if fact.excess > 1 and is_first[fact.column]]
            if told:
                found.append(max(told, key=lambda fact: fact.excess))
        return found

    def _again(self, column: int, values: Logs, present: Flags) -> Fact | None:
        """What the series of a fact says now; None where it was not measured at this step."""
        told = (fact for tell in self._tellers for fact in tell(values, present) if fact.column == column)
        return next(told, None)

    def _of_weights(self, values: Logs, present: Flags) -> Iterator[Fact]:
        if self._declared:
            return  # a target of its own
        known = _known(self._weights, values, present)
        norms = values[known]
        alike = len(known) >= FEWEST_EQUAL and float(norms.max()) <= (1 + EQUAL) * float(norms.min())
        for column in known:
            bound, whose = (WEIGHT_SPECTRAL, SPECTRAL) if alike else (_most_of(self._series[column]), STANDARD)
            yield Fact(column, float(values[column]), bound, "R(W) at the start", whose)

    def _of_logits(self, values: Logs, present: Flags) -> Iterator[Fact]:
        for column in _known(self._logits, values, present):
            yield Fact(column, float(values[column]), LOGITS, "RMS of the logits at the start", ANY)

    def _of_depth(self, values: Logs, present: Flags) -> Iterator[Fact]:
        known = _known(self._stream, values, present)
        if len(known) < FEWEST_BLOCKS or len(known) < len(self._stream):
            return
        bound = GROWTH_DECLARED if self._declared else GROWTH * math.sqrt(len(known))
        growth = float(values[known[-1]] / values[known[0]])
        said = f"growth of the residual stream over {len(known)} blocks at the start"
        yield Fact(known[-1], growth, bound, said, DECLARED if self._declared else STANDARD)

    def _of_update(self, values: Logs, present: Flags) -> Iterator[Fact]:
        for column, stream in self._changes:
            if _known([column, stream], values, present) == [column, stream]:
                moved = float(values[column] / values[stream])
                yield Fact(column, moved, UPDATE, "share of itself by which the first step moved its output", ANY)


def _is_hidden(series: JudgedSeries) -> bool:
    return series.facts.role not in ("embedding", "head") and series.bound != "upper"


def _most_of(series: JudgedSeries) -> float:
    """What R(W) of a weight of this shape may be at the start."""
    fan_in, fan_out = series.facts.fan_in or 1, series.facts.fan_out or 1
    return WEIGHT * (1 + math.sqrt(max(1.0, fan_in / fan_out))) / 2


def _known(columns: Sequence[int], values: Logs, present: Flags) -> list[int]:
    return [c for c in columns if present[c] and np.isfinite(values[c]) and values[c] > 0]
