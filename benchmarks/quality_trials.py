"""One training run of the quality benchmark, the time of a step, and the file that remembers results."""

import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality_arms import Arm, hidden_matrices
from internist.demo.model import ByteGPT, batch, text
from internist.optim.core import MatrixOptimizer

HELD_OUT = 0.1
"""Share of the text, its end, that no run is trained on."""
EVALUATED = 16_384
"""Bytes of it that a final loss is the mean over; losses along the way are of an eighth of them."""
WARMUP, DECAY = 0.05, 0.4
"""Shares of a run: the learning rate rises linearly over the first and falls linearly to zero over the last."""
PROBE_TOLERANCE = 2e-3
"""How far the loss after the probe's steps may be from that of a stored result: rounding gave less."""
TELL_EVERY = 1_000
"""Steps between two lines of progress within a run."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is trained, and for how long."""

    width: int
    steps: int
    depth: int = 2
    heads: int = 4
    batch: int = 8
    context: int = 64
    clip: float = 1.0
    """Gradients of all parameters together are shortened to this norm."""

    def model(self, seed: int) -> ByteGPT:
        """A fresh model; every arm starts from the same one."""
        torch.manual_seed(seed)
        return ByteGPT(width=self.width, depth=self.depth, heads=self.heads, context=self.context)


class Trials:
    """Results on disk, one JSON object a line; what is there already is not computed again.

    A line is written whole when its run has ended, so that stopping at any moment loses the run under way alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # a last line without its end was being written
            if whole != content:
                path.write_bytes(whole)
            for line in whole.splitlines():
                row = json.loads(line)
                self._rows[_key(row["asked"])] = row

    def find(self, asked: Row) -> Row | None:
        """The latest result of these settings."""
        return self._rows.get(_key(asked))

    def add(self, asked: Row, result: Row) -> Row:
        """Append a result."""
        row = {"asked": asked, **result}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[_key(asked)] = row
        return row


class NotMeasuredError(LookupError):
    """A result that is not in the file, asked of a laboratory that only reads."""


class Laboratory:
    """Runs what is asked for, unless its result is known and its optimizer still computes what it did then."""

    def __init__(self, trials: Trials, say: Callable[[str], None], *, only_read: bool = False) -> None:
        self.trials, self.say, self.only_read = trials, say, only_read
        self._probes: dict[str, float] = {}
        corpus = text()
        held_out = int(len(corpus) * HELD_OUT)
        self.train_text, self.test_text = corpus[:-held_out], corpus[-held_out:]

    def loss(self, arm: Arm, size: Size, *, lr: float, rest_lr: float, seed: int) -> float:
        """Validation loss in nats per byte after a run; infinity where it diverged or the rate is out of range."""
        if lr > arm.greatest:
            return math.inf
        return float(self.run(arm, size, lr=lr, rest_lr=rest_lr, seed=seed)["loss"])

    def run(
        self, arm: Arm, size: Size, *, lr: float, rest_lr: float, seed: int, watch_every: int = 0, points: int = 8
    ) -> Row:
        """The result of one run, from the file or computed now.

        Raises:
            NotMeasuredError: it is not in the file, and this laboratory only reads.
        """
        asked = {
            "what": "run",
            **arm.described(),
            **asdict(size),
            "lr": lr,
            "rest_lr": rest_lr if arm.kind != "AdamW" else lr,
            "seed": seed,
            "watch_every": watch_every,
        }
        known = self.trials.find(asked)
        if known is not None and abs(known["probe"] - self._probe(arm)) <= PROBE_TOLERANCE:
            return known
        if self.only_read:
            raise NotMeasuredError(f"{arm.name}, d = {size.width}, {size.steps} steps, lr {lr:.4g}, seed {seed}")
        result = self._train(arm, size, lr=lr, rest_lr=rest_lr, seed=seed, watch_every=watch_every, points=points)
        self.say(
            f"d={size.width} {arm.name:<15} {size.steps} steps, lr {lr:.4g}, seed {seed}: "
            f"loss {result['loss']:.4f} ({result['cpu_s']:.0f} s of CPU)"
        )
        return self.trials.add(asked, {"probe": self._probe(arm), **result})

    def step_times(self, arms: Sequence[Arm], size: Size, *, rounds: int) -> dict[str, float]:
        """CPU seconds of a training step of each arm, steps of all arms interleaved in random order.

        The median of the optimizer's own part, plus that of forward and backward, which are the same work for all and
        are pooled.

        Raises:
            NotMeasuredError: as `run`.
        """
        asked = {
            "what": "time",
            "pooled": True,
            "arms": [arm.described() for arm in arms],
            **asdict(size),
            "rounds": rounds,
        }
        probes = [self._probe(arm) for arm in arms]
        known = self.trials.find(asked)
        if known is not None and all(
            abs(a - b) <= PROBE_TOLERANCE for a, b in zip(known["probes"], probes, strict=True)
        ):
            return dict(known["seconds"])
        if self.only_read:
            raise NotMeasuredError(f"step times, d = {size.width}")
        loops = {arm.name: _Loop(arm, size, self.train_text, lr=1e-3, rest_lr=1e-3, seed=0) for arm in arms}
        samples: dict[str, list[float]] = {name: [] for name in loops}
        shared: list[float] = []
        order = random.Random(0)
        for turn in range(rounds + 3):
            for name in order.sample(list(loops), len(loops)):
                model_seconds, own_seconds = loops[name].step(turn)
                if turn >= 3:
                    samples[name].append(own_seconds)
                    shared.append(model_seconds)
        medians = {name: statistics.median(seconds) + statistics.median(shared) for name, seconds in samples.items()}
        self.say(f"d={size.width} CPU-ms a step: " + ", ".join(f"{n} {1e3 * s:.1f}" for n, s in medians.items()))
        return dict(
            self.trials.add(asked, {"seconds": medians, "model": statistics.median(shared), "probes": probes})[
                "seconds"
            ]
        )

    def _probe(self, arm: Arm) -> float:
        """Loss of a tiny model after 12 steps: it changes when the optimizer's results do."""
        key = _key(arm.described())
        if key not in self._probes:
            size = Size(32, 12, depth=1, heads=2, batch=4, context=32)
            self._probes[key] = float(
                self._train(arm, size, lr=2**-6, rest_lr=2**-7, seed=0, watch_every=0, points=1)["loss"]
            )
        return self._probes[key]

    def _train(
        self, arm: Arm, size: Size, *, lr: float, rest_lr: float, seed: int, watch_every: int, points: int
    ) -> Row:
        loop = _Loop(arm, size, self.train_text, lr=lr, rest_lr=rest_lr, seed=seed)
        seconds = 0.0
        curve: list[list[float]] = []
        watched: list[Row] = []
        for step in range(size.steps):
            looks = watch_every and step % watch_every == 0
            before = loop.matrices() if looks else {}
            if step + 1 == size.steps:
                loop.ask()
            seconds += sum(loop.step(step))
            if looks:
                watched.append(
                    {"step": step, "rate": lr * rate_factor(step, size.steps), **_norms(before, loop.matrices())}
                )
            if not math.isfinite(loop.last_loss):
                return {"loss": math.inf, "curve": curve, "cpu_s": seconds, "watched": watched, "diverged_at": step}
            if (step + 1) % TELL_EVERY == 0 and step + 1 < size.steps:
                self.say(f"d={size.width} {arm.name}: {step + 1} of {size.steps} steps, loss {loop.last_loss:.3f}")
            if (step + 1) * points // size.steps > step * points // size.steps and step + 1 < size.steps:
                curve.append([step + 1, self.evaluate(loop.model, EVALUATED // 8)])
        loss = self.evaluate(loop.model, EVALUATED)
        curve.append([size.steps, loss])
        return {"loss": loss, "curve": curve, "cpu_s": seconds, "watched": watched, "told": loop.told()}

    @torch.no_grad()
    def evaluate(self, model: ByteGPT, size: int) -> float:
        """Mean loss in nats per byte over `size` of the held-out bytes; infinity if it is no number."""
        rows = size // model.context
        windows = self.test_text[: len(self.test_text) // (model.context + 1) * (model.context + 1)]
        windows = windows.view(-1, model.context + 1)
        chosen = windows[torch.linspace(0, len(windows) - 1, rows).long()].long()
        losses = [model(part[:, :-1], part[:, 1:]).loss.item() for part in torch.split(chosen, 64)]
        value = statistics.fmean(losses)
        return value if math.isfinite(value) else math.inf


class _Loop:
    """A model in training."""

    def __init__(self, arm: Arm, size: Size, corpus: Tensor, *, lr: float, rest_lr: float, seed: int) -> None:
        self.size, self.corpus, self.last_loss = size, corpus, math.nan
        self.model = size.model(seed)
        self.hidden = hidden_matrices(self.model)
        self.optimizers = arm.optimizers(self.model, lr, rest_lr)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.generator = torch.Generator().manual_seed(1_000 + seed)

    def step(self, step: int) -> tuple[float, float]:
        """Take step number `step`; CPU seconds of forward, backward and clipping, and of the optimizers."""
        inputs, targets = batch(self.corpus, self.size.batch, self.size.context, self.generator)
        factor = rate_factor(step, self.size.steps)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        began = time.process_time()
        loss = self.model(inputs, targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.size.clip)
        halfway = time.process_time()
        for optimizer in self.optimizers:
            optimizer.step()
        ended = time.process_time()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.last_loss = loss.item()
        return halfway - began, ended - halfway

    def ask(self) -> None:
        """Ask the optimizers that can to say of the next step what they know."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, MatrixOptimizer):
                optimizer.request_diagnostics()

    def told(self) -> Row:
        """What they said, metric to a value for each hidden matrix."""
        said: Row = {}
        for optimizer in self.optimizers:
            if isinstance(optimizer, MatrixOptimizer):
                noted = optimizer.diagnostics()
                for weight in self.hidden.values():
                    for metric, value in noted.get(weight, {}).items():
                        said.setdefault(metric, []).append(float(f"{value.item():.5g}"))
        return said

    def matrices(self) -> dict[str, Tensor]:
        """Copies of the hidden matrices."""
        return {name: weight.detach().clone() for name, weight in self.hidden.items()}


def rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate at a step of a run, in (0, 1]."""
    return min(1.0, (step + 1) / max(1.0, WARMUP * steps), (steps - step) / max(1.0, DECAY * steps))


def _norms(before: dict[str, Tensor], after: dict[str, Tensor]) -> Row:
    """R(W) after a step and R(dW) of all that it changed, by matrix, from singular values."""
    return {
        "weight": {name: _operator_norm(value) for name, value in after.items()},
        "update": {name: _operator_norm(value - before[name]) for name, value in after.items()},
    }


def _operator_norm(matrix: Tensor) -> float:
    fan_out, fan_in = matrix.shape
    norm = torch.linalg.svdvals(matrix)[0].item() if bool(matrix.isfinite().all()) else math.nan
    return float(f"{norm * (fan_in / fan_out) ** 0.5:.6g}")


def _key(asked: Row) -> str:
    return json.dumps(asked, sort_keys=True)
