"""Print how many seconds each file of tests took, the longest first, from pytest's JUnit report."""

import sys
from collections import Counter
from xml.etree import ElementTree

seconds: Counter[str] = Counter()
counts: Counter[str] = Counter()
for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    name = case.get("classname", "")
    seconds[name] += float(case.get("time", "0"))
    counts[name] += 1
for name, total in seconds.most_common():
    print(f"{total:8.1f} s {counts[name]:5d} tests  {name}")
