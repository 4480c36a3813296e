"""Runs of several sizes with known laws, sent as a client would send them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from internist.schema.metrics import METRICS
from internist.schema.wire import Facts, Frame, Module, Plan, Route, Series
from tests.server.sending import EPOCH_MS, STEP_MS, Sender, start_of

VOCABULARY = 64
BASE = 128
WIDTHS = (128, 256, 512)
FIRST_STEPS = tuple(range(12))
NOISE = 0.01
"""Spread of a value's logarithm, so that intervals are not of zero width."""
VIEW = "(fan_out, fan_in)"

Law = Callable[[Series, float, float, int], float]
"""A series' value by its declaration, width ratio, depth ratio and step."""


def mup(series: Series, r_n: float, r_L: float, step: int) -> float:
    """As a correct parametrisation has it: logits at init fall as 1/sqrt(width), the first block's share as 1/depth."""
    if series.metric == "activation.rms" and series.facts.role == "head":
        return float(r_n**-0.5)
    return 1 / r_L if series.metric == "block.contribution" else 1.0


def hidden_too_fast(series: Series, r_n: float, r_L: float, step: int) -> float:
    """The hidden learning rate is not divided by the width ratio: hidden updates and all behind them grow with it."""
    usual = mup(series, r_n, r_L, step)
    is_hidden = series.facts.role == "linear" and series.metric in ("update.own_mean", "update.operator_norm")
    follows = series.metric == "update.feature_mean" and series.facts.role in ("block", "head")
    return usual * (r_n if is_hidden or follows else 1.0)


def declare(width: int, depth: int, *, vocabulary: int = VOCABULARY) -> tuple[list[Series], list[Module], list[Route]]:
    """The series that the check reads, and a few that it does not, of a model of residual blocks of two matrices."""
    series: list[Series] = []
    modules = [Module("model", "GPT", "root"), Module("embed", "Embedding", "embedding")]
    routes = [Route("embed.weight", "AdamW", "adamw", "0", (vocabulary, width))]

    def add(metrics: Iterable[str], subject: str, **facts: Any) -> None:
        for metric in metrics:
            about = Facts(order=len(modules), **facts)
            series.append(Series(len(series), metric, METRICS[metric].kind, subject, facts=about))

    add(("activation.rms", "update.own_mean"), "embed", role="embedding", module="embed", fan_out=width)
    add(("weight.rms",), "embed.weight", role="embedding", module="embed", fan_in=vocabulary, fan_out=width)
    for number in range(depth):
        block = f"blocks.{number}"
        modules.append(Module(block, "Block", "block", block))
        names = ("activation.rms", "block.contribution", "update.feature_mean", "activation.abs_max")
        add(names, block, role="block", block=block, module=block, fan_in=width, fan_out=width)
        for name in (f"{block}.up", f"{block}.down"):
            modules.append(Module(name, "Linear", "linear", block))
            facts = {"role": "linear", "block": block, "module": name, "fan_in": width, "fan_out": width}
            add(("activation.rms", "update.own_mean"), name, **facts)
            metrics = ("weight.rms", "weight.operator_norm", "update.operator_norm", "gradient.rms")
            add(metrics, f"{name}.weight", view=VIEW, **facts)
            routes.append(Route(f"{name}.weight", "AdamW", "adamw", "1", (width, width)))
    modules.append(Module("head", "Linear", "head"))
    head = {"role": "head", "module": "head", "fan_in": width, "fan_out": vocabulary}
    add(("activation.rms", "update.own_mean", "update.feature_mean"), "head", **head)
    add(("weight.rms",), "head.weight", view=VIEW, **head)
    routes.append(Route("head.weight", "AdamW", "adamw", "1", (vocabulary, width)))
    return series, modules, routes


def send_run(
    api: Any,
    name: str,
    *,
    width: int,
    depth: int = 2,
    seed: int = 0,
    law: Law = mup,
    steps: Sequence[int] = FIRST_STEPS,
    vocabulary: int = VOCABULARY,
    config: dict[str, Any] | None = None,
    spoil: Callable[[Series, int], bool] = lambda _series, _step: False,
    **start: Any,
) -> Sender:
    """Send one run; where `spoil` says so its value is NaN."""
    series, modules, routes = declare(width, depth, vocabulary=vocabulary)
    settings = {"seed": seed, "width": width} | (config or {})
    begins = start_of(
        name, name=start.pop("display", name), config=settings, modules=tuple(modules), routing=tuple(routes),
        optimizers=("AdamW",), **start,
    )  # fmt: skip
    sender = Sender(api, begins)
    sender.send([sender.record(series=tuple(series)), sender.record(plan=Plan(0, tuple(range(len(series)))))])
    rng = np.random.default_rng(1_000 * seed + width + depth)
    frames = []
    for step in steps:
        values = [law(one, width / BASE, depth / 2, step) * np.exp(rng.normal(0, NOISE)) for one in series]
        lost = [spoil(one, step) for one in series]
        wire = [
            np.nan if is_lost else value**2 if METRICS[one.metric].combine == "mean_square" else value
            for one, value, is_lost in zip(series, values, lost, strict=True)
        ]
        blob = np.asarray(wire, "<f4").tobytes()
        frames.append(sender.record(frame=Frame(0, step, EPOCH_MS + step * STEP_MS, blob)))
    sender.send(frames)
    return sender


def send_family(api: Any, *, widths: Sequence[int] = WIDTHS, prefix: str = "w", **options: Any) -> list[str]:
    """Send a run for each width; their ids."""
    return [send_run(api, f"{prefix}{width}", width=width, **options).run for width in widths]
