"""What watching costs: CPU time of a training step, watched over bare, at the default cadence with everything on.

    python -m benchmarks.client [--json] [--rounds N]

A 6-layer, d = 256 byte GPT, batch 8 x 128, AdamW (fused), one thread. Step kinds are interleaved in random order, a
bare step beside each. Time is the CPU time of the whole process, the monitor's threads included, from a step's start
until its frame is acknowledged by a real server in another process. overhead = sum over kinds of frequency x median
time, over the median bare step, minus one. Its interval is a bootstrap over rounds, whose steps are neighbours and
share the machine's speed. Where that drifts, the same from pairs of neighbouring steps, printed beside it, is steadier.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import internist
from internist.demo.model import ByteGPT, batch, text
from internist.observe.sampling import Due, due

EVERY = 10
BATCH, CONTEXT = 8, 128
REGULAR = 100_000
"""From here on samples are regular: no longer on the geometric grid of a run's beginning."""
KINDS: dict[str, tuple[float, int]] = {
    "dormant": (0.90, REGULAR + 1),
    "light": (0.09, REGULAR + 10),
    "model-heavy + matrix-heavy": (0.01, REGULAR + 100),
}
"""Step kind: how often it comes at the default cadence, and a step number of that kind. Every heavy step is both
model- and matrix-heavy."""
PARTS = ("model-heavy", "matrix-heavy")
"""The two heavy classes alone (on top of a light step), for information."""
TIMES_A_ROUND = {"dormant": 3, "light": 4, "model-heavy + matrix-heavy": 1} | dict.fromkeys(PARTS, 1)
"""Dormant steps are nine in ten of a run: by as much as their median is off, nearly all of the sum is."""
IN_A_ROW = {"dormant": 9}
"""Steps of a kind that are timed together: the losses of dormant steps travel together, a second's at once."""
BAR, BAR_UPPER = 1.02, 1.04
PARTS_OF_THE_RUN = 4
"""The two models change roles between these."""

Step = Callable[[], None]
Trainer = tuple[ByteGPT, Step, torch.optim.Optimizer]
Pairs = dict[str, list[tuple[float, float]]]
"""Of one round, by kind: CPU seconds of a watched step and of the bare step beside it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=32, help="times each kind is measured (default 32, at least 15)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as address:
        rounds, points = measure(max(15, options.rounds), address, Path(folder) / "spool")
    report(rounds, points, as_json=options.json)
    return 0


def measure(rounds: int, address: str, spool: Path) -> tuple[list[Pairs], int]:
    """CPU seconds of the steps of each round, and how many points were produced.

    Two equal models lie at two places in memory; they change roles several times, so that neither place is always the
    watched one.
    """
    torch.set_num_threads(1)
    corpus, generator = text(), torch.Generator().manual_seed(0)
    data = [batch(corpus, BATCH, CONTEXT, generator) for _ in range(8)]
    trainers = trainer(0, data), trainer(0, data)
    found: list[Pairs] = []
    points = 0
    for part in range(PARTS_OF_THE_RUN):
        turns = range(part * rounds // PARTS_OF_THE_RUN, (part + 1) * rounds // PARTS_OF_THE_RUN)
        watched, bare = trainers[part % 2], trainers[1 - part % 2]
        points += measure_one(watched, bare[1], turns, address, spool / str(part), found)
    return found, points


def measure_one(watched: Trainer, bare_step: Step, turns: range, address: str, spool: Path, found: list[Pairs]) -> int:
    """Watch one model and add rounds of its steps, with bare steps of the other beside them; the points it produced."""
    model, watched_step, optimizer = watched
    monitor = internist.watch(
        model,
        optimizer,
        mode="online",
        server=address,
        directory=spool,
        every=EVERY,
        max_overhead=0,
        project="benchmark",
    )
    observer, recorder, spool_file = monitor._observer, monitor._recorder, monitor._spool
    assert observer is not None and recorder is not None and spool_file is not None

    def run_watched(step: int, wish: Due | None = None, steps: int = 1) -> float:
        began = time.process_time()
        for number in range(step, step + steps):
            observer.clock.step = number
            observer.arm(number, wish)  # sets the taps; the end of the step before does this in training
            watched_step()
        recorder.step_under_way = step + steps  # what the next forward would do
        if recorder.holds_step:
            monitor._sender.wake()  # type: ignore[union-attr]
        while recorder.busy or spool_file.acknowledged < spool_file.last_sequence:
            time.sleep(0.02)
        return (time.process_time() - began) / steps

    def run_bare(steps: int = 1) -> float:
        began = time.process_time()
        for _ in range(steps):
            bare_step()
        return (time.process_time() - began) / steps

    for step in (0, 1, 10, 100, 200, 300, 400):  # warm up; declares every series
        run_watched(REGULAR + step)
        run_bare()
    order = random.Random(turns.start)
    before = recorder.points
    for turn in turns:
        plan = [kind for kind, times in TIMES_A_ROUND.items() for _ in range(times)]
        order.shuffle(plan)
        pairs: Pairs = {kind: [] for kind in (*KINDS, *PARTS)}
        for kind in plan:
            wish = None
            step = KINDS.get(kind, KINDS["light"])[1] + 1_000 * turn
            if kind == "model-heavy + matrix-heavy":
                step = REGULAR + 100 * turn  # the quarters of the matrices in rotation
            if kind in PARTS:
                wish = Due(True, kind == "model-heavy", turn % 4 if kind == "matrix-heavy" else None)
            count, steps = recorder.points, IN_A_ROW.get(kind, 1)
            if order.random() < 0.5:
                bare = run_bare(steps)
                pairs[kind].append((run_watched(step, wish, steps), bare))
            else:
                pairs[kind].append((run_watched(step, wish, steps), run_bare(steps)))
            planned = steps * planned_points(monitor, wish or due(step, EVERY))
            if recorder.points - count != planned:
                raise AssertionError(f"{kind} step {step}: {recorder.points - count} points, planned {planned}")
        found.append(pairs)
    points = recorder.points - before
    monitor.finish()
    return points


def planned_points(monitor: Any, wish: Due) -> int:
    """How many points a step of this kind must give, counted from the model's outline alone."""
    if not wish.light:
        return 1  # the loss
    outline = monitor._observer._outline
    blocks = [m for m in outline.modules if m.role == "block"]
    called = [m for m in outline.modules if m.role != "root"]
    embeddings = [m for m in called if m.role == "embedding"]
    roles = [p.roles for p in outline.parameters]
    count = 5 * len(called)  # rms, rms_max, rms_q99, abs_max, nonfinite
    shared = 6 * len(blocks) + 1  # inputs that are another module's output: ln1 but the first, ln_f, lm_head, ...
    count += len(called) - len(embeddings) if wish.heavy else shared  # input_rms_max
    count += 2 * len(blocks) + 2  # contribution, stream; log_z, log_z_max
    count += 5 * len(roles)  # weight.rms; update.rms, relative_rms, unchanged; gradient.rms
    count += 2 * sum(bool(r & {"vector", "embedding", "head"}) for r in roles)
    count += 2 * sum(bool(m.parameters) for m in called)  # own, own_mean
    count += 1 + 3 + 11 + 1  # global_norm; learning_rate, weight_decay, the optimizer's steps; monitor.*; loss
    if wish.heavy:
        count += (3 + 4) * (len(called) - len(embeddings))  # spread, spread_mean, lipschitz; the number formats' shares
        count += 2 * 4 * len(roles) + len(roles)  # those of gradients and weights; gradient.over_eps
        count += 2 * (len(blocks) + 1)  # feature, feature_mean
        count += 2 * sum(getattr(m.module, "heads", 0) for m in called)  # max_logit, max_abs_logit
    if wish.matrices is not None:
        due_now = [p.name for p in outline.parameters if "matrix" in p.roles and wish.owns_matrix(p.turn)]
        pairs = Counter(name.rsplit(".", 2)[0] for name in due_now if name.startswith("blocks."))
        count += 6 * len(due_now)
        count += 4 * list(pairs.values()).count(2)  # product, first_order of both, second_order
        count += 3 * sum("qkv" in name for name in due_now)  # qk_product, qk_first_order, qk_second_order
    return count


def trainer(seed: int, data: list[Any]) -> Trainer:
    """A model and a function that makes one training step of it."""
    torch.manual_seed(seed)
    model = ByteGPT(width=256, depth=6, heads=8, context=CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    turn = iter(range(1 << 60))

    def step() -> None:
        inputs, targets = data[next(turn) % len(data)]
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return model, step, optimizer


def watched_of(rounds: Sequence[Pairs], kind: str) -> list[float]:
    """CPU seconds of the watched steps of a kind."""
    return [watched for pairs in rounds for watched, _ in pairs[kind]]


def bare_of(rounds: Sequence[Pairs]) -> list[float]:
    """CPU seconds of all bare steps."""
    return [bare for pairs in rounds for kind in pairs for _, bare in pairs[kind]]


def paired_ratio(rounds: Sequence[Pairs], kind: str) -> float:
    """Median over the steps of a kind of watched over the bare step beside it."""
    return statistics.median(watched / bare for pairs in rounds for watched, bare in pairs[kind])


def overhead(rounds: Sequence[Pairs]) -> float:
    """Watched over bare, minus one: medians of each kind over the median bare step."""
    weighted = sum(share * statistics.median(watched_of(rounds, kind)) for kind, (share, _) in KINDS.items())
    return weighted / statistics.median(bare_of(rounds)) - 1


def paired_overhead(rounds: Sequence[Pairs]) -> float:
    """The same from the ratios of neighbouring steps, which a machine that slows down for seconds disturbs less."""
    return sum(share * paired_ratio(rounds, kind) for kind, (share, _) in KINDS.items()) - 1


def interval(
    value: Callable[[Sequence[Pairs]], float], rounds: Sequence[Pairs], draws: int = 2_000
) -> tuple[float, float]:
    """Bootstrap 95 % interval of an overhead, rounds drawn whole."""
    chance = random.Random(1)
    found = sorted(value(chance.choices(rounds, k=len(rounds))) for _ in range(draws))
    return found[int(0.025 * draws)], found[int(0.975 * draws) - 1]


def report(rounds: Sequence[Pairs], points: int, *, as_json: bool) -> None:
    """Print the table, or one object a line."""
    bare = statistics.median(bare_of(rounds))
    ratios = {kind: statistics.median(watched_of(rounds, kind)) / bare for kind in (*KINDS, *PARTS)}
    found = {
        name: (1 + value(rounds), *(1 + end for end in interval(value, rounds)))
        for name, value in (("medians", overhead), ("paired", paired_overhead))
    }
    if as_json:
        rows = [(f"ratio.{kind}", ratio) for kind, ratio in ratios.items()]
        for name, (value, low, high) in found.items():
            rows += [(f"overhead.{name}", value), (f"overhead.{name}.low", low), (f"overhead.{name}.high", high)]
        for name, value in rows:
            print(json.dumps({"name": f"client.{name}", "value": round(value, 5), "unit": "of a bare step"}))
        print(json.dumps({"name": "client.points", "value": points, "unit": "points"}))
        return
    print(f"{'step kind':<28} {'frequency':>9} {'n':>4} {'median / bare':>14} {'paired':>8}")
    print(f"{'bare':<28} {'':>9} {len(bare_of(rounds)):>4} {1:>14.4f}")
    for kind, ratio in ratios.items():
        share = f"{KINDS[kind][0]:.2f}" if kind in KINDS else "(part)"
        n = len(watched_of(rounds, kind))
        print(f"{kind:<28} {share:>9} {n:>4} {ratio:>14.4f} {paired_ratio(rounds, kind):>8.4f}")
    print(f"\n{points} points, as planned.")
    for name, (value, low, high) in found.items():
        verdict = "holds" if value <= BAR and high <= BAR_UPPER else "DOES NOT HOLD"
        print(
            f"watched / bare, {name:<7} = {value:.4f}  (95 % {low:.4f} to {high:.4f}); "
            f"bar {BAR}, upper end {BAR_UPPER}: {verdict}"
        )


@contextmanager
def server(folder: Path) -> Any:
    """A real `internist serve` on a free port; gives its address."""
    port_file = folder / "port"
    command = [sys.executable, "-m", "internist", "serve", "--port", "0", "--port-file", str(port_file)]
    process = subprocess.Popen([*command, "--database", str(folder / "benchmark.db")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`internist serve` did not start (exit status {process.poll()})")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    raise SystemExit(main())
