"""Confusion table of the scaling check: every mistake is made for real, alone, and the diagnosis has to name it first.

`python -m benchmarks.scaling_confusion` trains every family with three seeds; `--quick` smaller models with two. What
is done is kept in a file and not done again. `--docs` writes the table between the marks in docs/scaling.md.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.scaling_provoked import BROKEN, CORRECT, Provocation, members
from internist.scaling.members import Member, RunFacts
from internist.scaling.report import report
from internist.schema.scaling import ScalingReport

STATE = Path(".benchmarks/scaling_confusion.jsonl")
PAGE = Path("docs/scaling.md")
BEGIN, END = "<!-- confusion:begin -->", "<!-- confusion:end -->"
SEEDS, QUICK_SEEDS = 3, 2


@dataclass(frozen=True, slots=True)
class Row:
    """What the check said of one family."""

    name: str
    expects: tuple[str, ...]
    verdict: str
    first: tuple[str, ...]
    """Ids of the first diagnosis, with the facts of the runs,"""
    alone: tuple[str, ...]
    """and without them: the class that the exponents name."""
    others: tuple[str, ...]
    """Ids that further diagnoses begin with."""
    sentence: str
    share: float
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the mistake is named first, alone where facts tell; or nothing is named where nothing is wrong."""
        if not self.expects:
            return not self.first
        return self.first == self.expects[:1] and self.expects[0] in self.alone


def judge(provoked: Provocation, family: Sequence[Member], seconds: float) -> Row:
    """The row of a trained family."""
    found = report(family)
    blind = report([replace(m, facts=_only_algorithms(m.facts)) for m in family])
    return Row(
        provoked.name,
        provoked.expects,
        found.verdict,
        _first(found),
        _first(blind),
        tuple(d.causes[0].id for d in found.diagnoses[1:]),
        found.diagnoses[0].sentence if found.diagnoses else "",
        found.diagnoses[0].score if found.diagnoses else 0.0,
        seconds,
    )


def _first(found: ScalingReport) -> tuple[str, ...]:
    return tuple(cause.id for cause in found.diagnoses[0].causes) if found.diagnoses else ()


def _only_algorithms(facts: RunFacts) -> RunFacts:
    """Facts of a run that recorded who steps what, and the multiplier that the head's change is measured without."""
    return RunFacts(facts.parametrization, facts.algorithms, multipliers=_head_of(facts))


def _head_of(facts: RunFacts) -> dict[Any, float]:
    return {role: factor for role, factor in facts.multipliers.items() if role == "head"}


def table(rows: Iterable[Row]) -> str:
    """The confusion table in Markdown."""
    lines = [
        "| made | verdict | named first | without facts of the runs | explains | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        named = ", ".join(f"`{cause}`" for cause in row.first) or "nothing"
        if row.others:
            named += "; then " + ", ".join(f"`{cause}`" for cause in row.others)
        alone = ", ".join(f"`{cause}`" for cause in row.alone) or "nothing"
        mark = "" if row.holds else " **wrong**"
        share = f"{row.share:.0%}" if row.first else ""
        lines.append(f"| {row.name} | {row.verdict} | {named}{mark} | {alone} | {share} | {row.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_confusion", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller models, two seeds: under three minutes")
    parser.add_argument("--state", type=Path, help=f"file of results (default {STATE}, with --quick none)")
    parser.add_argument("--only", action="append", default=[], help="families whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--docs", type=Path, nargs="?", const=PAGE, help="write the table into this page")
    options = parser.parse_args()
    asked = [p for p in (*CORRECT, *BROKEN) if not options.only or any(word in p.name for word in options.only)]
    state = options.state or (None if options.quick else STATE)
    known = _known(state)
    rows: list[Row] = []
    began = time.monotonic()
    for place, provoked in enumerate(asked, start=1):
        if provoked.name not in known:
            family = provoked.quick() if options.quick else provoked
            at = time.monotonic()
            row = judge(family, list(members(family, QUICK_SEEDS if options.quick else SEEDS)), 0.0)
            row = replace(row, seconds=time.monotonic() - at)
            known[provoked.name] = row
            _keep(state, row)
        rows.append(known[provoked.name])
        if options.json:
            print(json.dumps(_fields(rows[-1])), flush=True)
        else:
            row = rows[-1]
            said = "as it should be" if row.holds else f"WRONG: expected {row.expects or 'nothing'}"
            print(f"{place}/{len(asked)} {row.name}: {row.verdict}, {row.first or 'nothing'}: {said} "
                  f"({row.seconds:.0f} s, {time.monotonic() - began:.0f} s in all)", flush=True)  # fmt: skip
    if not options.json:
        print(table(rows))
    if options.docs is not None:
        write(options.docs, rows)
    return 0 if all(row.holds for row in rows) else 1


def write(page: Path, rows: Sequence[Row]) -> None:
    """Put the table between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table(rows)}\n{end}{after}")


def _fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__} | {"holds": row.holds}


def _known(state: Path | None) -> dict[str, Row]:
    if state is None or not state.exists():
        return {}
    found = [json.loads(line) for line in state.read_text().splitlines()]
    lists = ("expects", "first", "alone", "others")
    return {
        row["name"]: Row(**{k: tuple(v) if k in lists else v for k, v in row.items() if k != "holds"}) for row in found
    }


def _keep(state: Path | None, row: Row) -> None:
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
        with state.open("a") as file:
            file.write(json.dumps(_fields(row)) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
