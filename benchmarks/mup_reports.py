"""How a proof of muP is called, how it resumes, and where it writes what it found."""

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.mup_trials import MupLaboratory
from benchmarks.quality_trials import Trials

STATE = Path(".benchmarks/mup.jsonl")
"""All proofs share it: what two of them need is computed once."""


@dataclass
class Report:
    """What a proof found, as far as it came."""

    markdown: str
    records: Sequence[Mapping[str, object]]
    """One JSON object each."""
    charts: Mapping[str, str] = field(default_factory=dict)
    """File name to SVG."""
    status: int = 0
    """The exit code of the command."""


Study = Callable[[MupLaboratory, bool], Report]
"""Measures and reports; the flag asks for the quick form."""


def run(
    name: str,
    description: str,
    duration: str,
    study: Study,
    arguments: list[str] | None = None,
    *,
    keeps_results: bool = True,
) -> int:
    """Read the command line, make the study and say what came out.

    Args:
        name: of the proof, and of its marks `<!-- proof NAME: begin -->` in `mup.md`.
        duration: of the full form, in words.
        keeps_results: whether the study is long enough to be resumed.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.mup_{name}",
        description=f"{description.partition(chr(10))[0]} The full form takes {duration}.",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute or two, nothing to be quoted")
    parser.add_argument("--state", type=Path, help=f"file of results (default {STATE}; with --quick a new one)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only-report", action="store_true", help="measure nothing: report what the state file has")
    parser.add_argument("--docs", type=Path, nargs="?", const=Path("docs"), help="write tables and charts there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.monotonic()

    def say(line: str) -> None:
        if not options.json:
            print(f"[{(time.monotonic() - began) / 60:5.1f} min] {line}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        is_new = options.quick or not keeps_results
        state = options.state or (Path(folder) / "mup.jsonl" if is_new else STATE)
        if keeps_results and not options.only_report:
            say(f"results go to {state}; all of it takes {'a minute or two' if options.quick else duration}")
        laboratory = MupLaboratory(Trials(state), say, only_read=options.only_report)
        with _quiet(logging.getLogger("internist")):  # Muon++ tells of every pair that is not unique
            report = study(laboratory, options.quick)
    if options.json:
        for record in report.records:
            print(json.dumps({key: _jsonable(value) for key, value in record.items()}))
    else:
        print("\n" + report.markdown)
    if options.docs:
        write_section(options.docs / "mup.md", name, report.markdown)
        for file, chart in report.charts.items():
            (options.docs / "images" / file).write_text(chart, encoding="utf-8")
    return report.status


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_section(page: Path, name: str, markdown: str) -> None:
    """Put a text between a proof's marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- proof {name}: begin -->", f"<!-- proof {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected {begin} and {end} in {page}")
    page.write_text(f"{before}{begin}\n\n{markdown.strip()}\n\n{end}{after}", encoding="utf-8")


def _jsonable(value: Any) -> Any:
    """NaN and infinities as strings, which JSON has no numbers for."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
