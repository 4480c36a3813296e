"""What the board costs in a real browser, at sizes at which boards of others break.

    python -m benchmarks.board [--quick] [--place DIRECTORY] [--json]

A real server on SQLite, a real headless Chromium. Where the machine is shared, seconds on the clock say little: CPU
seconds of the tab and of the server stand beside them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import board_live, board_scenes
from benchmarks.board_server import serving
from benchmarks.board_tab import HEAT, Row, Tab, chromium

WATCH_S = 20.0


def measure(browser: Any, client: httpx.Client, address: str, server: int, *, quick: bool) -> Iterator[Row]:
    """All measurements, one after the other."""
    size = {"series": 1_900, "samples": 200} if quick else {"series": 12_000, "samples": 2_000}
    big = board_scenes.many_series(client, **size)
    runs = 200 if quick else 5_000
    board_scenes.many_runs(client, runs=runs)
    tab = Tab(browser, address, server)
    said = f"{size['series']:,} series x {size['samples']:,} samples"
    yield tab.measure(f"{said}: first paint, cold", lambda: tab.open(big, ".card", HEAT), bar="1.5 s, 1,000 kB")
    yield tab.measure(f"{said}: first paint, warm", lambda: tab.open(big, ".card", HEAT), bar="1.5 s, 100 kB")
    tab.page.wait_for_timeout(2_000)
    yield tab.measure("the first zoom", partial(_zoom, tab.page))
    for _ in range(2):
        tab.page.wait_for_timeout(2_000)
        tab.page.click("#reset-zoom")
        tab.page.wait_for_timeout(2_000)
        yield tab.measure("zoom", partial(_zoom, tab.page), bar="0.3 s")
    yield tab.measure("filter", partial(_filter, tab.page), bar="200 rows at most")
    yield tab.measure(f"runs page, {runs:,} runs", lambda: tab.open("/", ".runs tbody tr"))
    yield tab.measure(
        "its answer of the API", lambda: client.get("/api/v1/runs?limit=51").raise_for_status(), bar="0.05 s"
    )
    yield tab.measure("alerts page", lambda: tab.open("/alerts", ".alert-item"))
    tab.page.wait_for_timeout(5_000)  # it has come to rest, and its tools are there
    yield tab.measure(
        f"alerts page, {WATCH_S:.0f} s", lambda: tab.page.wait_for_timeout(1_000 * WATCH_S), bar="0.02 cores"
    )
    tab.close()
    yield from board_live.measure(browser, client, address, server)


def _zoom(page: Any) -> None:
    plot = page.locator("#loss-graph .nsewdrag").first.bounding_box()
    middle = plot["y"] + plot["height"] / 2
    page.mouse.move(plot["x"] + plot["width"] * 0.3, middle)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.6, middle, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "(() => { const x = id => document.querySelector(`#${id} .js-plotly-plot`).layout.xaxis.range;"
        " return Math.abs(x('heat-graph')[0] - x('loss-graph')[0]) < 1; })()"
    )


def _filter(page: Any) -> None:
    page.fill("#filter-box", "attn|mlp")
    page.wait_for_function(
        "(() => { const y = document.querySelector('#heat-graph .js-plotly-plot')._fullLayout.yaxis.categoryarray;"
        " return y && y.length && [...y].every(name => /attn|mlp/.test(name)); })()"
    )


def _place(kept: str | None) -> AbstractContextManager[str]:
    return nullcontext(kept) if kept else tempfile.TemporaryDirectory(prefix="internist-board-")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller scenes, minutes instead of half an hour")
    parser.add_argument("--place", help="a directory whose database is kept, so that scenes are made once")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    with (
        nullcontext(arguments.place)
        if arguments.place
        else tempfile.TemporaryDirectory(prefix="internist-board-") as place,
        serving(Path(place)) as (server, address),
        httpx.Client(base_url=address, timeout=600) as client,
        chromium() as browser,
    ):
        for row in measure(browser, client, address, server, quick=arguments.quick):
            if arguments.json:
                print(json.dumps(asdict(row)), flush=True)
                continue
            cost = f"{row.clock_s:7.2f} s  tab {row.tab_cpu_s:6.2f} s  server {row.server_cpu_s:6.2f} s"
            print(f"{row.what:48} {cost}  {row.kilobytes:8.1f} kB  {row.bar and 'bar: ' + row.bar}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
