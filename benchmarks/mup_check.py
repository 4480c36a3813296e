"""Seconds that `internist.mup.check` takes for a family of MLPs: five widths, three seeds, ten steps, on all cores.

python -m benchmarks.mup_check [--json]
"""

import argparse
import json
import time

from torch import nn

import internist

WIDTHS = (64, 128, 256, 512, 1024)
SEEDS, STEPS = 3, 10
VOCABULARY = 256
BAR_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mup_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    began = time.perf_counter()
    found = internist.mup.check(build, widths=WIDTHS, optimizer="adamw", seeds=SEEDS, steps=STEPS)
    seconds = time.perf_counter() - began
    rows = [("seconds", seconds, "s"), ("models", len(found.report.family), "models"), ("bar_seconds", BAR_S, "s")]
    for name, value, unit in rows:
        if options.json:
            print(json.dumps({"name": f"mup_check.{name}", "value": round(value, 2), "unit": unit}))
        else:
            print(f"mup_check.{name:<12} {value:8.4g} {unit}")
    return int(seconds > BAR_S or len(found.report.family) != len(WIDTHS) * SEEDS)


def build(width: int) -> nn.Module:
    """An MLP over tokens with three hidden matrices."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Embedding(VOCABULARY, width), *hidden, nn.Linear(width, VOCABULARY))


if __name__ == "__main__":
    raise SystemExit(main())
