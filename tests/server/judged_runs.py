"""Simulated runs for the judge's tests: series with known laws, shown to it as the server does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from internist.schema.metrics import METRICS, Kind
from internist.schema.wire import Facts, Role
from internist_server.judge.verdicts import Judge, JudgedSeries, StepJudgement, Transition

EVERY = 10
DENSE = (0, 1, 2, 5, 10, 20, 50)
CADENCES = {"light": EVERY, "logged": EVERY, "model_heavy": 10 * EVERY, "matrix_heavy": 40 * EVERY}

Law = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A series' values by step."""


def series(
    number: int,
    metric: str,
    subject: str,
    *,
    role: Role = "linear",
    block: str | None = None,
    group: int | None = None,
    parameters: int | None = None,
    input_normalized: bool = False,
    index: int | None = None,
    **facts: object,
) -> JudgedSeries:
    """One series with the facts that matter to the judge."""
    known = METRICS.get(metric)
    kind: Kind = known.kind if known else "model"
    cadence = facts.pop("cadence", CADENCES[known.cadence] if known else 1)
    return JudgedSeries(
        id=number,
        metric=metric,
        kind=kind,
        subject=subject,
        index=index,
        bound=facts.pop("bound", "exact"),  # type: ignore[arg-type]
        facts=Facts(
            role=role,
            block=block,
            module=subject,
            order=number,
            group=group,
            parameters=parameters,
            input_normalized=input_normalized,
            cadence=int(cadence),  # type: ignore[call-overload]
            **facts,  # type: ignore[arg-type]
        ),
    )


@dataclass
class Told:
    """All a judge said of a run."""

    judge: Judge
    judgements: list[StepJudgement] = field(default_factory=list)

    @property
    def transitions(self) -> list[Transition]:
        """All transitions, in order."""
        return [change for judgement in self.judgements for change in judgement.transitions]

    def fired(self, condition: str | None = None) -> list[Transition]:
        """Alerts that fired."""
        return [c for c in self.transitions if c.state == "firing" and condition in (None, c.condition)]

    def resolved(self, condition: str | None = None) -> list[Transition]:
        """Alerts that had fired and resolved."""
        return [
            c
            for c in self.transitions
            if c.state == "resolved" and c.opened_step is not None and condition in (None, c.condition)
        ]


def sampled_steps(last: int, *, dense: Sequence[tuple[int, int]] = ()) -> NDArray[np.int64]:
    """Steps at which something is measured, with stretches in which every one is."""
    steps = {*range(0, last + 1, EVERY), *(s for s in DENSE if s <= last)}
    for first, until in dense:
        steps |= set(range(first, until + 1))
    return np.array(sorted(steps), np.int64)


def measured(all_series: Sequence[JudgedSeries], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(steps, series): whether a series is due at a step, by its cadence."""
    cadence = np.array([one.facts.cadence for one in all_series])
    light = cadence <= EVERY
    start = np.isin(steps, DENSE)[:, None]
    return start | (steps[:, None] % cadence == 0) | light[None, :]


def tell(
    laws: Sequence[tuple[JudgedSeries, Law]],
    *,
    last: int = 2000,
    mup: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    dense: Sequence[tuple[int, int]] = (),
    restart_every: int | None = None,
    origin: int = 0,
) -> Told:
    """Runs a judge over a simulated run.

    Args:
        laws: each series with its law.
        last: last step.
        mup: as for the judge.
        noise: multiplicative, log-normal, in standard deviations of the logarithm; not on learning rates.
        seed: of the noise.
        dense: stretches sampled at every step.
        restart_every: rebuild the judge from its bytes after this many steps.
        origin: step at which the run starts.
    """
    all_series = [one for one, _ in laws]
    steps = sampled_steps(last, dense=dense) + origin
    random = np.random.default_rng(seed)
    values = np.stack([law(steps.astype(np.float64)) for _, law in laws], axis=1)
    noisy = np.array([one.kind != "group" for one in all_series])
    values = (values * np.exp(noise * noisy * random.standard_normal(values.shape))).astype(np.float32)
    present = measured(all_series, steps)
    return tell_values(all_series, steps, values, present, mup=mup, restart_every=restart_every)


def tell_values(
    all_series: Sequence[JudgedSeries],
    steps: NDArray[np.int64],
    values: NDArray[np.float32],
    present: NDArray[np.bool_],
    *,
    mup: bool = False,
    every: int = EVERY,
    restart_every: int | None = None,
    judge: Judge | None = None,
) -> Told:
    """The same from values at hand: what the server does with complete steps."""
    judge = judge or Judge(all_series, mup=mup, every=every)
    told = Told(judge)
    shown = np.where(present, values, np.nan).astype(np.float32)
    for row, step in enumerate(steps.tolist()):
        window = judge.window_due(step)
        if window is not None:
            inside = np.flatnonzero((steps >= window[0]) & (steps <= window[1]))
            inside = inside[np.isin(steps[inside], judge.window_sample(steps[inside]))]
            judge.refresh(step, shown[inside], steps[inside])
        told.judgements.append(judge.judge(step, values[row], present[row]))
        if restart_every and row % restart_every == restart_every - 1:
            judge = Judge(all_series, mup=mup, every=every, state=judge.state())
    told.judge = judge
    return told


def constant(value: float) -> Law:
    """Always the same."""
    return lambda steps: np.full(steps.shape, value)


def warm_up_cosine(peak: float, *, warm_up: int, last: int) -> Law:
    """The usual schedule: linear warm-up, then a cosine to a tenth."""

    def law(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        progress = np.clip((steps - warm_up) / max(last - warm_up, 1), 0, 1)
        cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2
        return peak * np.where(steps < warm_up, (steps + 1) / max(warm_up, 1), cosine)

    return law
