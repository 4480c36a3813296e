"""A training run as a client would send it, without training: declared, sampled and posted through the HTTP API."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx
import msgspec
import numpy as np

from internist.schema.wire import (
    MSGPACK_CONTENT_TYPE,
    VERSION,
    CoverageEntry,
    Facts,
    Finish,
    Frame,
    FramesRequest,
    Heartbeat,
    Module,
    Plan,
    Record,
    Route,
    RunStart,
    RunStarted,
    Series,
)

EVERY = 10
FRAMES_A_REQUEST = 32
LAYERS = ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")
RATE = 3e-4
TOLD = ("optimizer.gap", "optimizer.audit", "optimizer.firings")


@dataclass
class Feeder:
    """One run: healthy, except that `sick` blocks move too far from `sick_from` on."""

    client: httpx.Client
    run: str
    name: str
    layers: int = 4
    heads: int = 2
    ranks: int = 1
    """How many its job has; the first of them sends."""
    sick: tuple[str, ...] = ()
    sick_from: int = 300
    nonfinite_from: int | None = None
    tells: bool = False
    """Whether its optimizer tells of itself."""
    sequence: int = 0
    step: int = 0
    series: list[Series] = field(default_factory=list)

    def start(self) -> RunStarted:
        """Register the run, declare its series and its coverage."""
        outline = tuple(Module(name, "Linear", "linear", _block(name), 1_000) for name in self.modules())
        body = RunStart(
            VERSION, self.run, f"{self.run}-a", 0, self.ranks, "gpt-small", self.name, EVERY, _now_ms(),
            modules=outline, optimizers=("AdamW",), client="tests", routing=self._routing(),
        )  # fmt: skip
        answer = self.client.post("/api/v1/runs", content=msgspec.msgpack.encode(body), headers=_HEADERS)
        answer.raise_for_status()
        self.series = list(self._declared())
        entries = [CoverageEntry("module", name, "measured", family="activation") for name in self.modules()]
        entries.append(CoverageEntry("module", "blocks.0.aux", "silent", "never called", "activation"))
        self._post([
            self._record(series=tuple(self.series)),
            self._record(plan=Plan(0, tuple(one.number for one in self.series))),
            self._record(coverage=tuple(entries)),
        ])  # fmt: skip
        self.beat()
        return msgspec.json.decode(answer.content, type=RunStarted)

    def train(self, *, until: int) -> None:
        """Sample every tenth step up to and including `until`."""
        records = []
        for step in range(self.step, until + 1, EVERY):
            values = np.array([self._value(one, step) for one in self.series], dtype="<f4")
            records.append(self._record(frame=Frame(0, step, _now_ms() - (until - step) * 20, values.tobytes())))
            if len(records) == FRAMES_A_REQUEST:
                self._post(records)
                records = []
        self.step = until + EVERY
        self._post(records)
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        beat = Heartbeat(f"{self.run}-a", 0, max(0, self.step - EVERY), 100)
        self._send(f"/api/v1/runs/{self.run}/heartbeat", beat)

    def finish(self) -> None:
        """The run ends of its own accord."""
        self._post([self._record(finish=Finish(self.step - EVERY, _now_ms()))])

    def modules(self) -> list[str]:
        """All modules, in forward order."""
        blocks = [f"blocks.{i}{part}" for i in range(self.layers) for part in ("", *(f".{name}" for name in LAYERS))]
        return ["embed", *blocks, "head"]

    def _routing(self) -> tuple[Route, ...]:
        linears = [name for name in self.modules() if name.count(".") > 1] if self.tells else []
        return tuple(
            Route(f"{name}.weight", "MuonPlusPlus", "muon", "hidden", (64, 64), "hidden", "", "jordan", "decay")
            for name in linears
        )

    def _declared(self) -> Iterable[Series]:
        number = 0
        for order, name in enumerate(self.modules()):
            is_block = name.count(".") == 1
            about = Facts(
                role="block" if is_block else "linear", block=_block(name), module=name, order=order, probe=64,
                cadence=EVERY, input_normalized=name.endswith((".qkv", ".up")),
            )  # fmt: skip
            wanted = ["activation.rms", "activation.nonfinite"] + ([] if is_block else ["update.own"])
            for metric in wanted:
                yield Series(number, metric, "module", name, facts=about)
                number += 1
            if not is_block:
                yield Series(number, "weight.operator_norm", "parameter", f"{name}.weight", bound="lower", facts=about)
                number += 1
        for layer in range(self.layers):
            about = Facts(role="attention", block=f"blocks.{layer}", module=f"blocks.{layer}.attn", order=2 + 5 * layer)
            for head in range(self.heads):
                yield Series(number, "attention.max_logit", "module", f"blocks.{layer}.attn", head, facts=about)
                number += 1
        for order, route in enumerate(self._routing()):
            name = route.parameter.removesuffix(".weight")
            about = Facts(role="linear", block=_block(name), module=name, order=order, cadence=EVERY)
            for metric in TOLD:
                yield Series(number, metric, "parameter", route.parameter, facts=about)
                number += 1
        for metric in ("loss", "monitor.coverage"):
            yield Series(number, metric, "model", "", facts=Facts())
            number += 1
        yield Series(number, "learning_rate", "group", "0", facts=Facts(group=0, parameters=1_000_000))

    def _value(self, series: Series, step: int) -> float:
        name, is_sick = series.subject.removesuffix(".weight"), False
        is_sick = (_block(name) or name) in self.sick and step >= self.sick_from and not name.endswith(".proj")
        wave = 1 + 0.06 * math.sin(0.7 * (series.number + 1) + step / 37) + 0.04 * math.sin(step * (series.number + 3))
        match series.metric:
            case "loss":
                return 2.1 + 2.4 * math.exp(-step / 140) + 0.03 * math.sin(step)
            case "learning_rate":
                return RATE
            case "monitor.coverage":
                return 0.98
            case "activation.nonfinite":
                is_lost = (
                    self.nonfinite_from is not None and step >= self.nonfinite_from and name == "blocks.1.mlp.down"
                )
                return 3.0 if is_lost else 0.0
            case "update.own":
                return 0.012 * wave * (31 if is_sick else 1)
            case "attention.max_logit":
                return 6 * wave + (160 if is_sick and series.index == 0 else 0)
            case "optimizer.audit":
                return 2e-5 * wave
            case "optimizer.gap":
                return 0.01 * wave
            case "optimizer.firings":
                return float(step // 100)
            case "weight.operator_norm":
                return 1.1 * wave * (1.4 if is_sick else 1)
            case _:
                return 0.9 * wave

    def _record(self, **content: object) -> Record:
        record = Record(self.sequence, **content)  # type: ignore[arg-type]
        self.sequence += 1
        return record

    def _post(self, records: list[Record]) -> None:
        if records:
            request = FramesRequest(VERSION, f"{self.run}-a", 0, tuple(records))
            reply = self._send(f"/api/v1/runs/{self.run}/frames", request).json()
            assert not reply["refused"], reply["refused"]

    def _send(self, path: str, body: object) -> httpx.Response:
        answer = self.client.post(path, content=msgspec.msgpack.encode(body), headers=_HEADERS)
        assert answer.status_code == 200, answer.text
        return answer


_HEADERS = {"Content-Type": MSGPACK_CONTENT_TYPE}


def _block(name: str) -> str | None:
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else None


def _now_ms() -> int:
    return int(time.time() * 1000)
