"""What pytest's JUnit reports say of how long tests took.

python .ci/durations.py REPORT...            seconds by file, the longest first
python .ci/durations.py --record REPORT...   write tests/durations.json, by which the fast tests are chosen
"""

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

RECORD = Path(__file__).parents[1] / "tests" / "durations.json"
NOTABLE = 0.05
"""Seconds from which on a test is recorded."""


def main(arguments: list[str]) -> None:
    """Print or record."""
    records = arguments[:1] == ["--record"]
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    longest: dict[str, float] = {}
    for report in arguments[records:]:
        for case in ElementTree.parse(report).iter("testcase"):
            name, took = case.get("classname", ""), float(case.get("time", "0"))
            seconds[name] += took
            counts[name] += 1
            function = f"{name.replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
            longest[function] = max(took, longest.get(function, 0.0))
    if records:
        notable = {name: round(took, 2) for name, took in sorted(longest.items()) if took >= NOTABLE}
        RECORD.write_text(json.dumps(notable, indent=0) + "\n")
        return
    for name, total in seconds.most_common():
        print(f"{total:8.1f} s {counts[name]:5d} tests  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
