"""What the client costs on a GPU: every bar in one command, in at most six minutes on a card.

    PYTHONPATH=client python -m benchmarks.gpu.measure [--sections NAME ...] [--device cuda] [--tiny] [--json FILE]

It needs torch, triton, msgspec and urllib3, and no server. Bare and watched blocks are interleaved, and figures are
medians.
Without a card it rehearses its own logic on CPU tensors (--device cpu --tiny, half a minute), and says "not measured".
A section that fails does not take the others with it: a card's time is dear.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu import single, training
from benchmarks.gpu.model import LARGE, SMALL, TINY
from benchmarks.gpu.rows import Row, report, table
from benchmarks.gpu.training import Bars, Plan

Section = Callable[[str, torch.device, bool], list[Row]]
"""From its name, the device, and whether to be tiny."""


def main() -> int:
    options = _arguments().parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print('no card: not measured. Rehearse with "--device cpu --tiny".', file=sys.stderr)
        return 2
    began, rows, failed = time.perf_counter(), [], []
    for name in options.sections:
        since = time.perf_counter()
        try:
            rows += SECTIONS[name](name, device, options.tiny)
        except Exception:  # whatever a card or a compiler raises; it is printed, and counts at the end
            traceback.print_exc()
            failed.append(name)
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - since:.1f} s", file=sys.stderr, flush=True)
    found = report(rows, device, time.perf_counter() - began) | {"failed": failed}
    print(table(rows, on_card=device.type == "cuda"))
    for name in failed:
        print(f"{name}: FAILED")
    print(json.dumps(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if failed else 0


def _eager(name: str, device: torch.device, tiny: bool) -> list[Row]:
    bars = Bars(fixed=1.04, defaults=1.01, light_ms=4.0, heavy_ms=60.0)
    return training.overhead(name, _plan(tiny, None), bars, device)


def _compiled(name: str, device: torch.device, tiny: bool) -> list[Row]:
    return training.overhead(name, _plan(tiny, "inductor"), Bars(fixed=1.03, defaults=1.01), device)


def _large(name: str, device: torch.device, tiny: bool) -> list[Row]:
    plan = _plan(tiny, "inductor")
    return training.overhead(
        name, plan if tiny else replace(plan, size=LARGE, pairs=2, warm=20), Bars(fixed=1.01), device
    )


def _harmless(name: str, device: torch.device, tiny: bool) -> list[Row]:
    rows = []
    for kind, compiler in (("eager", None), ("compiled", "inductor")):
        found = training.harmless(name, _plan(tiny, compiler), device)
        rows += [replace(row, name=f"{row.name}, {kind}") for row in found]
    return rows


def _optimizers(name: str, device: torch.device, tiny: bool) -> list[Row]:
    if tiny:
        return single.optimizers(name, 32, 1, 0.35, 1.08, device, times=2)
    return [
        *single.optimizers(name, 768, 12, 0.35, 1.08, device),
        *single.optimizers(name, 2048, 8, 0.72, 1.08, device),
        *single.optimizers(name, 4096, 2, None, 1.08, device),
    ]


def _logits(name: str, device: torch.device, tiny: bool) -> list[Row]:
    if tiny:
        return single.largest_logits(name, 64, 1.0, device, heads=4, key_heads=2, times=2)
    return [
        *single.largest_logits(name, 8192, 1.0, device),
        *single.largest_logits(name, 32768, 1.0, device, times=4),
        *single.largest_logits(name, 8192, 1.0, device, key_heads=8),
    ]


def _spectra(name: str, device: torch.device, tiny: bool) -> list[Row]:
    return training.spectra(name, replace(_plan(tiny, None), every=2), 12.0, device)


SECTIONS: dict[str, Section] = {
    "harmless": _harmless,
    "eager": _eager,
    "compiled": _compiled,
    "spectra": _spectra,
    "logits": _logits,
    "optimizers": _optimizers,
    "1B": _large,
}
"""In this order; the longest last."""


def _plan(tiny: bool, compiler: str | None) -> Plan:
    if tiny:  # the graphs of inductor without its compiler
        return Plan(TINY, compiler and "aot_eager", every=2, pairs=1, heavy_steps=1, warm=20)
    return Plan(SMALL, compiler)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.measure", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="only these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps: for the logic alone")
    parser.add_argument("--json", type=Path, help="where to write the JSON too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
