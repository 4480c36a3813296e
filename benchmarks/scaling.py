"""Seconds in which `GET /api/v1/scaling` answers for a family of 12 runs with 10,000 series each.

    python -m benchmarks.scaling [--json] [--runs N] [--series N]

The runs (four widths, three seeds) are sent to a real `internist serve` on SQLite through its HTTP API: everything the
client measures of a model of residual blocks, 20 dense steps and then every tenth up to 400. The server is then started
afresh, so that nothing is in its memory, and asked: for the families, for the report of all runs by name, and for it
once more.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import urllib3
from numpy.typing import NDArray

from benchmarks.ingest import spool_record, start_server
from internist.schema.metrics import METRICS
from internist.schema.wire import (
    SPOOL_CONTENT_TYPE,
    VERSION,
    Facts,
    Frame,
    Module,
    Plan,
    Record,
    Route,
    RunStart,
    Series,
)

RUNS, SERIES = 12, 10_000
WIDTHS = (128, 256, 512, 1024)
BLOCKS = 54
HEADS = 8
VOCABULARY = 512
LAST_STEP, DENSE, EVERY = 400, 20, 10
NOISE = 0.03
"""Spread of the logarithm of a value from step to step."""
FRAMES_A_REQUEST = 8
BAR_S = 1.0

_LINEARS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
_OF_MODULE = ("activation.abs_max", "activation.input_rms_max", "activation.lipschitz", "activation.nonfinite",
              "activation.rms", "activation.rms_max", "activation.rms_q99", "activation.spread",
              "activation.spread_mean")  # fmt: skip
_OF_LINEAR = (*_OF_MODULE, "update.own", "update.own_mean")
_OF_BLOCK = (*_OF_MODULE, "block.contribution", "update.feature", "update.feature_mean")
_OF_MATRIX = ("gradient.rms", "update.operator_norm", "update.relative", "update.relative_rms", "update.rms",
              "update.spectral_norm", "update.unchanged", "weight.operator_norm", "weight.rms",
              "weight.spectral_norm", "weight.stable_rank")  # fmt: skip
_VIEW = "(fan_out, fan_in)"
_AT_THE_END = len(_OF_MODULE) + 3 + 2 + 2
"""Series of the head and of the whole model: kept where blocks have to go."""


@dataclass(frozen=True)
class Measured:
    """What one run of the benchmark found."""

    runs: int
    series: int
    frames: int
    """Of all runs."""
    sent_seconds: float
    families_seconds: float
    cold_seconds: float
    warm_seconds: float
    report: dict[str, Any]


def declare(width: int, series: int) -> tuple[tuple[Series, ...], tuple[Module, ...], tuple[Route, ...]]:
    """Exactly so many series of a model of this width, as the client declares them, with its outline and routing."""
    found: list[Series] = []
    modules = [Module("model", "GPT", "root"), Module("embed", "Embedding", "embedding")]
    routes = [Route("embed.weight", "AdamW", "adamw", "0", (VOCABULARY, width), lr=1e-3, init_rms=1.0)]

    def add(metrics: Sequence[str], subject: str, *, index: int | None = None, **facts: Any) -> None:
        for metric in metrics:
            about = Facts(order=len(modules), cadence=EVERY, **facts)
            found.append(Series(len(found), metric, METRICS[metric].kind, subject, index, facts=about))

    embedding = {"role": "embedding", "module": "embed", "fan_out": width}
    add((*_OF_MODULE, "update.own_mean"), "embed", **embedding)
    add(("weight.rms", "update.rms"), "embed.weight", fan_in=VOCABULARY, **embedding)
    for number in range(BLOCKS):
        block = f"blocks.{number}"
        modules.append(Module(block, "Block", "block", block))
        add(_OF_BLOCK, block, role="block", block=block, module=block, fan_in=width, fan_out=width)
        for head in range(HEADS):
            names = ("attention.max_logit", "attention.max_abs_logit")
            add(names, f"{block}.attn", index=head, role="attention", block=block, module=f"{block}.attn")
        for name in _LINEARS:
            fan_out, fan_in = 4 * width if name == "mlp.up" else width, 4 * width if name == "mlp.down" else width
            module = f"{block}.{name}"
            modules.append(Module(module, "Linear", "linear", block, fan_out * fan_in))
            facts = {"role": "linear", "block": block, "module": module, "fan_in": fan_in, "fan_out": fan_out}
            routes.append(Route(f"{module}.weight", "AdamW", "adamw", "1", (fan_out, fan_in), lr=1e-3 * 128 / width))
            add(_OF_LINEAR, module, **facts)
            add(_OF_MATRIX, f"{module}.weight", view=_VIEW, **facts)
    modules.append(Module("head", "Linear", "head"))
    head_facts = {"role": "head", "module": "head", "fan_in": width, "fan_out": VOCABULARY}
    add((*_OF_MODULE, "update.own_mean", "update.feature_mean", "output.log_z"), "head", **head_facts)
    add(("weight.rms", "update.rms"), "head.weight", view=_VIEW, **head_facts)
    routes.append(Route("head.weight", "AdamW", "adamw", "1", (VOCABULARY, width), lr=1e-3 * 128 / width))
    add(("loss", "gradient.global_norm"), "model")
    extra = 0
    while len(found) < series:
        add(("weight.abs_max", "update.abs_max"), f"blocks.{extra % BLOCKS}.extra.{extra}.bias", role="norm")
        extra += 1
    ends = found[-_AT_THE_END - 2 * extra :] if series < len(found) else []
    kept = [*found[: series - len(ends)], *ends]
    return tuple(replace(one, number=number) for number, one in enumerate(kept)), tuple(modules), tuple(routes)


def steps() -> list[int]:
    """The steps that are sampled."""
    return [*range(DENSE), *range(DENSE, LAST_STEP + 1, EVERY)]


def values_of(series: Sequence[Series], width: int, rng: np.random.Generator) -> Iterator[tuple[int, bytes]]:
    """Steps and values, as they travel on the wire, of a run whose logits and attention logits fall as 1/sqrt(width),
    as they do at init under a correct parametrisation; nothing else depends on the width."""
    falls = ("activation.rms", "attention.max_abs_logit")
    exponents = np.array(
        [-0.5 if one.facts.role in ("head", "attention") and one.metric in falls else 0 for one in series]
    )
    constant = np.array([one.metric == "activation.nonfinite" for one in series])
    squared = np.array([METRICS[one.metric].combine in ("mean_square", "sum_square") for one in series])
    level: NDArray[np.float64] = 0.3 * (width / WIDTHS[0]) ** exponents
    for step in steps():
        values = np.where(constant, 0.0, level * np.exp(rng.normal(0.0, NOISE, len(series))))
        yield step, np.where(squared, values**2, values).astype("<f4").tobytes()


def run(*, runs: int = RUNS, series: int = SERIES) -> Measured:
    """Send, start afresh, ask."""
    names = [f"gpt-{WIDTHS[place % len(WIDTHS)]}-{place // len(WIDTHS)}" for place in range(runs)]
    with tempfile.TemporaryDirectory(prefix="internist-bench-") as place:
        server, address = start_server(Path(place))
        http = urllib3.PoolManager(maxsize=1, timeout=120)
        began = time.perf_counter()
        try:
            frames = sum(_send(http, address, name, number, series) for number, name in enumerate(names))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
        sent = time.perf_counter() - began
        (Path(place) / "port").unlink()  # the next server writes its own
        server, address = start_server(Path(place))
        try:
            _get(http, f"{address}/healthz")
            _get(http, f"{address}/api/v1/runs?limit=1")  # the first request of a server compiles its statements
            query = "&".join(f"runs={name}" for name in names)
            cold, answer = _timed(http, f"{address}/api/v1/scaling?{query}")
            warm, _ = _timed(http, f"{address}/api/v1/scaling?{query}")
            families, listed = _timed(http, f"{address}/api/v1/scaling")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    report = answer["report"]
    assert len(report["family"]) == runs, report["excluded"]
    assert report["verdict"] == "PASS", report["summary"]
    assert [len(family["runs"]) for family in listed["families"]] == [runs], listed["families"]
    return Measured(runs, series, frames, sent, families, cold, warm, report)


def _send(http: urllib3.PoolManager, address: str, name: str, number: int, series: int) -> int:
    """Send one run; the number of its frames."""
    width = WIDTHS[number % len(WIDTHS)]
    declared, modules, routes = declare(width, series)
    start = RunStart(
        VERSION, name, f"{name}-a", 0, 1, "benchmarks", name, EVERY, time.time_ns() // 1_000_000,
        config={"seed": number // len(WIDTHS), "width": width}, parametrization="mup", optimizers=("AdamW",),
        routing=routes, modules=modules,
    )  # fmt: skip
    headers = {"Content-Type": "application/msgpack"}
    answer = http.request("POST", f"{address}/api/v1/runs", body=msgspec.msgpack.encode(start), headers=headers)
    assert answer.status == 200, answer.data
    body = spool_record(Record(0, series=declared)) + spool_record(Record(1, plan=Plan(0, tuple(range(series)))))
    url = f"{address}/api/v1/runs/{name}/frames?attempt={name}-a&rank=0"
    frames = list(values_of(declared, width, np.random.default_rng(number)))
    for begin in range(0, len(frames), FRAMES_A_REQUEST):
        for offset, (step, values) in enumerate(frames[begin : begin + FRAMES_A_REQUEST]):
            frame = Frame(0, step, time.time_ns() // 1_000_000, values)
            body += spool_record(Record(2 + begin + offset, frame=frame))
        answer = http.request("POST", url, body=body, headers={"Content-Type": SPOOL_CONTENT_TYPE})
        reply = json.loads(answer.data)
        assert answer.status == 200 and not reply["refused"], reply
        body = b""
    return len(frames)


def _timed(http: urllib3.PoolManager, url: str) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = _get(http, url)
    return time.perf_counter() - began, answer


def _get(http: urllib3.PoolManager, url: str) -> Any:
    answer = http.request("GET", url)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, or one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line: name, value, unit")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--series", type=int, default=SERIES)
    options = parser.parse_args(argv)
    measured = run(runs=options.runs, series=options.series)
    found = [
        ("scaling.runs", measured.runs, "runs"),
        ("scaling.series_a_run", measured.series, "series"),
        ("scaling.frames", measured.frames, "frames"),
        ("scaling.exponents", len(measured.report["exponents"]), "exponents"),
        ("scaling.sent_seconds", measured.sent_seconds, "s"),
        ("scaling.report_cold_seconds", measured.cold_seconds, "s"),
        ("scaling.report_again_seconds", measured.warm_seconds, "s"),
        ("scaling.families_cold_seconds", measured.families_seconds, "s"),
        ("scaling.bar_seconds", BAR_S, "s"),
    ]
    for name, value, unit in found:
        if options.json:
            print(json.dumps({"name": name, "value": value, "unit": unit}))
        else:
            print(f"{name:<32} {value:>12,.4g} {unit}")
    return 0 if measured.cold_seconds <= BAR_S else 1


if __name__ == "__main__":
    sys.exit(main())
