"""CPU time of an optimizer step on a GPT's matrices: ours, torch's and others', in one interleaved run.

    python -m benchmarks.optimizer [--json] [--threads 1] [--quick] [--size "GPT-2-small"]

Sizes are the 24 hidden matrices of a 6-layer GPT of width 384 and the 48 of GPT-2-small. Every contender steps its own
copy of the same weights with the same gradients, one step each in turn, in a new order every round. A step costs the
process's CPU time; figures are medians over rounds, ratios come with a 95 % bootstrap interval over rounds: those of
the medians, and for the bars also the median of the ratios within each round. Accuracy
is of one step from zero weights, against the contender's own polynomials evaluated in float64 on the exact singular
values: relative error of the direction, rms and greatest deviation of the singular values, and ||DD' - I||_F/sqrt(k).

"float32" of torch.optim.Muon is its own routine, from its source, with the cast to bfloat16 taken out. The others are
found if they are installed (`pip install 'internist[bench]'`, and `pip install --no-deps gram-newton-schulz`, whose
other dependencies are for GPUs); one that is not is named, with the reason.
"""

import argparse
import inspect
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import _muon as torchs

from internist.optim import Muon, native
from internist.optim.coefficients import COEFFICIENTS
from internist.optim.muon_plus_plus import MuonPlusPlus

SIZES = {"GPT 6x384": (384, 6), "GPT-2-small": (768, 12)}
ROUNDS = {"GPT 6x384": 30, "GPT-2-small": 6}
WARM_ROUNDS = 3
LR = 0.001
BAR_MUON, BAR_MUON_PLUS_PLUS = 0.7, 1.08

Maker = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass
class Contender:
    """An optimizer as it is measured."""

    name: str
    arithmetic: str
    coefficients: str | None
    """The set that its directions are compared with; None makes none."""
    make: Maker
    reason: str | None = None
    """Why it is not measured."""
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    state_per_entry: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """How far a direction is from what the polynomials make of it in exact arithmetic; the worst over inputs."""

    relative_error: float
    rms_deviation: float
    greatest_deviation: float
    residual: float
    """||DD' - I||_F / sqrt(k), and of the exact direction for comparison."""
    exact_residual: float


def contenders() -> list[Contender]:
    """Ours, torch's, and what is installed."""

    def ours(kind: type, dtype: torch.dtype, **options: Any) -> Maker:
        return lambda params: kind(params, lr=LR, dtype=dtype, **options)

    found = [
        Contender("torch.optim.AdamW fused", "float32", None, lambda params: torch.optim.AdamW(params, LR, fused=True)),
        Contender("torch.optim.Muon", "bfloat16", "jordan", lambda params: torch.optim.Muon(params, LR)),
        Contender("internist Muon", "bfloat16", "jordan", ours(Muon, torch.bfloat16)),
        Contender("internist MuonPlusPlus", "bfloat16", None, ours(MuonPlusPlus, torch.bfloat16)),
        Contender("torch.optim.Muon", "float32", "jordan", lambda params: Float32Muon(params, LR)),
        Contender("internist Muon", "float32", "jordan", ours(Muon, torch.float32)),
        Contender("internist MuonPlusPlus", "float32", None, ours(MuonPlusPlus, torch.float32)),
    ]
    peers: list[tuple[str, str, str, str, Callable[[Any], Maker]]] = [
        ("muon-optimizer", "muon", "bfloat16", "jordan", lambda it: lambda params: it.SingleDeviceMuon(params, lr=LR)),
        (
            "pytorch-optimizer",
            "pytorch_optimizer",
            "bfloat16",
            "jordan",
            lambda it: lambda params: it.Muon([{"params": params, "use_muon": True}], lr=LR),
        ),
        ("heavyball", "heavyball", "bfloat16", "you", lambda it: lambda params: it.Muon(params, lr=LR)),
        (
            "gram-newton-schulz",
            "gram_newton_schulz",
            "float16",
            "you",
            lambda it: (
                lambda params: it.Muon(params, lr=LR, ns_use_kernels=False, ns_coefficients_preset="YOU_COEFFICIENTS")
            ),
        ),
    ]
    for package, module, arithmetic, coefficients, maker in peers:
        name = package
        try:
            name = f"{package} {metadata.version(package)}"
            found.append(Contender(name, arithmetic, coefficients, maker(import_module(module))))
        except Exception as error:  # whatever a stranger's import raises is the reason it is missing
            found.append(Contender(name, arithmetic, coefficients, torch.optim.SGD, reason=_one_line(error)))
    return found


class Float32Muon(torch.optim.Muon):
    """torch.optim.Muon with its iteration in float32: the same source, `grad.bfloat16()` made a float32 copy."""

    _source = inspect.getsource(torchs._zeropower_via_newtonschulz)

    def step(self, closure: Any = None) -> Any:
        assert self._source.count("grad.bfloat16()") == 1
        before = torchs._zeropower_via_newtonschulz
        names = {"torch": torch, "Tensor": Tensor}
        exec(_IN_FLOAT32, names)
        torchs._zeropower_via_newtonschulz = names["_zeropower_via_newtonschulz"]
        try:
            return super().step(closure)
        finally:
            torchs._zeropower_via_newtonschulz = before


_IN_FLOAT32 = compile(Float32Muon._source.replace("grad.bfloat16()", "grad.clone()"), "float32_muon", "exec")


def shapes_of(width: int, layers: int) -> list[tuple[int, int]]:
    """The hidden matrices of a GPT: fused queries, keys and values, output, up, down."""
    return [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers


def measure(entries: Sequence[Contender], shapes: Sequence[tuple[int, int]], rounds: int) -> dict[str, float]:
    """Fill in every contender's times; returns resident memory after the warm rounds and at the end, in MB."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) * 0.02 for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) * 0.01 for shape in shapes]
    running: list[tuple[Contender, torch.optim.Optimizer, list[torch.nn.Parameter]]] = []
    for entry in entries:
        if entry.reason is None:
            params = [torch.nn.Parameter(weight.clone()) for weight in weights]
            try:
                optimizer = entry.make(params)
                for _ in range(WARM_ROUNDS):
                    _give(params, gradients)
                    optimizer.step()
                running.append((entry, optimizer, params))
            except Exception as error:
                entry.reason = _one_line(error)
    resident = _resident_mb()
    order = random.Random(0)
    for _ in range(rounds):
        for entry, optimizer, params in order.sample(running, len(running)):
            _give(params, gradients)
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
            optimizer.step()
            entry.cpu_ms.append((time.process_time_ns() - cpu) / 1e6)
            entry.wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
    entries_held = sum(weight.numel() for weight in weights)
    for entry, optimizer, _ in running:
        held = [v for state in optimizer.state.values() for v in _tensors(state)]
        entry.state_per_entry = sum(v.numel() * v.element_size() for v in held) / (4 * entries_held)
    return {"resident_mb_warm": resident, "resident_mb_end": _resident_mb()}


def _give(params: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Gradients of their own: some contenders write to theirs, or drop them."""
    for parameter, gradient in zip(params, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.copy_(gradient)


def accuracy(entry: Contender, width: int) -> Accuracy | None:
    """Of one step from zero weights on noise and on a decaying spectrum, wide, tall and square."""
    if entry.coefficients is None or entry.reason is not None:
        return None
    worst = [0.0, 0.0, 0.0, 0.0, 0.0]
    for shape in ((width, 4 * width), (4 * width, width), (width, width)):
        for gradient in _inputs(shape):
            weight = torch.nn.Parameter(torch.zeros(shape))
            weight.grad = gradient.clone()
            optimizer = entry.make([weight])
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
            optimizer.step()
            step = -weight.detach().double()
            exact, image = _exact(gradient, entry.coefficients)
            d = step * ((exact * exact).sum() / (step * exact).sum())  # whatever the scale of the step
            deviation = torch.linalg.svdvals(d) - image.sort(descending=True).values
            found = (
                float((d - exact).norm() / exact.norm()),
                float(deviation.square().mean().sqrt()),
                float(deviation.abs().max()),
                _residual(d),
                _residual(exact),
            )
            worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return Accuracy(*worst)


def ratio(over: Sequence[float], under: Sequence[float], draws: int = 2_000) -> tuple[float, float, float]:
    """Ratio of medians, and its 95 % bootstrap interval over rounds."""
    return _over_rounds(
        lambda rounds: statistics.median(over[i] for i in rounds) / statistics.median(under[i] for i in rounds),
        len(over),
        draws,
    )


def paired_ratio(over: Sequence[float], under: Sequence[float], draws: int = 2_000) -> tuple[float, float, float]:
    """Median of the ratios within each round, likewise: what a machine's slow and fast spells change least."""
    return _over_rounds(lambda rounds: statistics.median(over[i] / under[i] for i in rounds), len(over), draws)


def _over_rounds(value: Callable[[Sequence[int]], float], count: int, draws: int) -> tuple[float, float, float]:
    rng, rounds = random.Random(1), range(count)
    drawn = sorted(value([rng.choice(rounds) for _ in rounds]) for _ in range(draws))
    return value(rounds), drawn[int(0.025 * draws)], drawn[int(0.975 * draws)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizer", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the smaller size alone, five rounds")
    parser.add_argument("--size", choices=SIZES, help="this size alone; the larger one takes about ten minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [options.size] if options.size else list(SIZES)[:1] if options.quick else list(SIZES)
    results = {}
    for size in sizes:
        with redirect_stdout(sys.stderr):  # a contender prints
            entries = contenders()
            memory = measure(entries, shapes_of(*SIZES[size]), 5 if options.quick else ROUNDS[size])
            results[size] = summary(entries, SIZES[size][0]) | memory
        if not options.json:
            print_table(size, results[size], options.threads)
            sys.stdout.flush()
    if options.json:
        made = {"threads": options.threads, "torch": torch.__version__, "compiled": native.library() is not None}
        print(json.dumps({**made, "sizes": results}))
    return 0


def summary(entries: Sequence[Contender], width: int) -> dict[str, Any]:
    """What is told of one size."""
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"name": entry.name, "arithmetic": entry.arithmetic, "reason": entry.reason}
        if entry.reason is None:
            found = accuracy(entry, width)
            row |= {
                "cpu_ms": statistics.median(entry.cpu_ms),
                "wall_ms": statistics.median(entry.wall_ms),
                "to_torch_muon": ratio(entry.cpu_ms, _times(entries, "torch.optim.Muon", entry.arithmetic)),
                "state_per_entry": entry.state_per_entry,
                "coefficients": entry.coefficients,
                "accuracy": asdict(found) if found else None,
            }
        rows.append(row)
    bars = {}
    for arithmetic in ("bfloat16", "float32"):
        ours = _times(entries, "internist Muon", arithmetic)
        plus = _times(entries, "internist MuonPlusPlus", arithmetic)
        theirs = _times(entries, "torch.optim.Muon", arithmetic)
        bars[arithmetic] = {
            "muon_to_torch": {"medians": ratio(ours, theirs), "pairs": paired_ratio(ours, theirs)},
            "plus_plus_to_muon": {"medians": ratio(plus, ours), "pairs": paired_ratio(plus, ours)},
        }
    return {"rows": rows, "bars": bars}


def print_table(size: str, result: dict[str, Any], threads: int) -> None:
    """One size for people."""
    compiled = "compiled passes" if native.library() else "no compiled passes"
    how = f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, {compiled}"
    print(f"\n{size}, {how}: CPU ms a step, medians")
    header = ("", "arithmetic", "ms", "of torch Muon", "state", "set", "error", "sv rms", "sv max", "|DD'-I| (exact)")
    print("{:28} {:10} {:>8} {:>22} {:>6} {:8} {:>7} {:>7} {:>7} {:>16}".format(*header))
    for row in result["rows"]:
        if row["reason"] is not None:
            print(f"{row['name']:28} {row['arithmetic']:10} not measured: {row['reason']}")
            continue
        known = row["accuracy"]
        cells = [""] * 4
        if known:
            cells = [f"{known[key]:.4f}" for key in ("relative_error", "rms_deviation", "greatest_deviation")]
            cells.append(f"{known['residual']:.4f} ({known['exact_residual']:.4f})")
        print(
            f"{row['name']:28} {row['arithmetic']:10} {row['cpu_ms']:8.1f} {_interval(row['to_torch_muon']):>22} "
            f"{row['state_per_entry']:6.3f} {row['coefficients'] or '':8} " + "{:>7} {:>7} {:>7} {:>16}".format(*cells)
        )
    for arithmetic, bars in result["bars"].items():
        for what, bar, of in (
            ("muon_to_torch", BAR_MUON, "Muon of torch.optim.Muon"),
            ("plus_plus_to_muon", BAR_MUON_PLUS_PLUS, "MuonPlusPlus of Muon"),
        ):
            medians, pairs = (_interval(bars[what][how]) for how in ("medians", "pairs"))
            print(f"{arithmetic:9} {of:24}: ratio of medians {medians}, median of rounds' ratios {pairs}, bar {bar}")
    print(f"resident memory: {result['resident_mb_warm']:.0f} MB warm, {result['resident_mb_end']:.0f} MB at the end")


def _times(entries: Sequence[Contender], name: str, arithmetic: str) -> list[float]:
    """Of the contender of that name; other arithmetics are compared with bfloat16."""
    arithmetic = arithmetic if arithmetic == "float32" else "bfloat16"
    return next((entry.cpu_ms for entry in entries if (entry.name, entry.arithmetic) == (name, arithmetic)), [])


def _inputs(shape: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(shape[0])
    side = min(shape)
    u = torch.linalg.qr(torch.randn(shape[0], side, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(shape[1], side, generator=generator))[0]
    return [torch.randn(shape, generator=generator), (u / torch.arange(1, side + 1)) @ v.t()]


def _exact(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The direction and its singular values, by the singular value decomposition in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm() / COEFFICIENTS[name].shrink
    for a, b, c in COEFFICIENTS[name].triples:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt, s


def _residual(d: Tensor) -> float:
    gram = d @ d.t() if d.shape[0] <= d.shape[1] else d.t() @ d
    return float((gram - torch.eye(len(gram))).norm() / len(gram) ** 0.5)


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    if isinstance(state, list | tuple):
        return [tensor for value in state for tensor in _tensors(value)]
    return []


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _interval(value: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


if __name__ == "__main__":
    raise SystemExit(main())
