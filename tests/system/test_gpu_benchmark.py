"""The benchmark for a card rehearses its own logic where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

SECONDS = 400
"""On a busy machine; a quiet one takes half a minute."""

BARS = {
    "harmless": {0.0, 1.01},
    "eager": {1.04, 1.01, 4.0, 60.0},
    "compiled": {1.03, 1.01},
    "spectra": {12.0},
    "logits": {1.0},
    "optimizers": {0.35, 1.08, 0.0},
    "1B": {1.01},
}


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.measure", *arguments]
    environment = os.environ | {"PYTHONPATH": "client"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.mark.timeout(SECONDS)
def test_every_bar_is_a_row_and_nothing_counts_as_measured_without_a_card(tmp_path):
    done = measure("--device", "cpu", "--tiny", "--json", str(tmp_path / "found.json"))

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found
    rows = found["rows"]
    for section, bars in BARS.items():
        assert {row["bar"] for row in rows if row["section"] == section} - {None} == bars
    assert all(row["value"] is None and row["holds"] is None for row in rows)
    assert done.stdout.count("not measured") == len(rows) + 1
    assert [row["rehearsed"] for row in rows if "differ in a bit" in row["name"]] == [0.0, 0.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so():
    done = measure()

    assert done.returncode == 2
    assert "no card: not measured" in done.stderr
