"""A run that goes on, and who looks at it: one tab, fifty boards, a tab that is left open."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.board_tab import HEAT, Row, Tab
from tests.dashboard.feeder import EVERY, Feeder
from tests.loops import run_apart

WATCH_S = 20.0
RATE_S = 0.5
"""Between two samples."""
BOARDS = 50
SAMPLES = 60
"""Whose way from commit to pixels is timed."""
NIGHT = 720
"""Samples of two hours, one every ten seconds; here they come as fast as they are drawn."""
SETTLED = 120
"""Of these: by then a tab has seen each of its ways to draw once."""
RUN = "goes-on"


def measure(browser: Any, client: httpx.Client, address: str, server: int) -> Iterator[Row]:
    """All of it, one after the other."""
    feeder = Feeder(client, RUN, "goes on", layers=12, heads=4)
    feeder.start()
    feeder.train(until=1_000)
    tab = Tab(browser, address, server)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url) if "/news?" in request.url else None)
    tab.open(f"/runs/{RUN}", ".card", HEAT)
    tab.page.wait_for_timeout(3_000)
    yield from _samples(feeder, tab)
    yield tab.measure(f"one board, {WATCH_S:.0f} s of 2 samples/s", partial(_watch, feeder, tab.page.wait_for_timeout))
    tab.page.goto("about:blank")
    question = asked[-1]
    act = partial(_boards, feeder, address, question)
    yield tab.measure(f"{BOARDS} boards, the same", act, bar=f"{0.2 * WATCH_S:.0f} s of the server: 0.2 cores")
    yield from _night(browser, feeder, tab)
    tab.close()


def _samples(feeder: Feeder, tab: Tab) -> Iterator[Row]:
    """How long samples take from commit to pixels, one after the other."""
    took = []

    def each() -> None:
        for _ in range(SAMPLES):
            feeder.train(until=feeder.step)
            began = time.perf_counter()
            tab.page.wait_for_function(_IS_DRAWN, arg=feeder.step - EVERY)
            took.append(time.perf_counter() - began)

    row = tab.measure(f"{SAMPLES} samples, from commit to pixels", each, bar="0.3 s, 5 kB each")
    took.sort()
    said = (
        f"a sample, from commit to pixels: median {took[len(took) // 2]:.2f} s, p95 {took[int(0.95 * len(took))]:.2f} s"
    )
    yield row
    parts = (row.clock_s, row.tab_cpu_s, row.server_cpu_s, row.kilobytes)
    yield Row(said, *(part / SAMPLES for part in parts), bar="0.3 s, 5 kB")


_IS_DRAWN = """last => {
  const x = document.querySelector('#loss-graph .js-plotly-plot')._fullData[0].x;
  return x[x.length - 1] >= last;
}"""


def _watch(feeder: Feeder, wait: Callable[[float], object]) -> None:
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        feeder.train(until=feeder.step)
        wait(1_000 * RATE_S)


def _boards(feeder: Feeder, address: str, question: str) -> None:
    """Fifty boards, as the server sees them: each holds a stream, and asks at each change what its tab asked."""

    async def board(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"/api/v1/runs/{RUN}/stream", timeout=None) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:") and '"cursor"' in line:
                    found = re.search(r'"cursor":(\d+),"step":(\d+)', line)
                    if found is None:
                        continue
                    after = re.sub(r"after=\d+", f"after={int(found[2]) - EVERY}", question)
                    await client.get(re.sub(r"cursor=\d+", f"cursor={found[1]}", after))

    async def watch() -> None:
        limits = httpx.Limits(max_connections=2 * BOARDS + 8)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
            boards = [asyncio.create_task(board(client)) for _ in range(BOARDS)]
            await asyncio.to_thread(_watch, feeder, lambda milliseconds: time.sleep(milliseconds / 1_000))
            for one in boards:
                one.cancel()
            await asyncio.gather(*boards, return_exceptions=True)

    run_apart(watch())  # the browser's own loop lives in this thread


def _night(browser: Any, feeder: Feeder, tab: Tab) -> Iterator[Row]:
    """What a tab holds after it has settled, and after two hours of samples."""
    tab.open(f"/runs/{RUN}", ".card", HEAT)
    held = []
    for samples in (SETTLED, NIGHT - SETTLED):
        row = tab.measure(f"{samples} samples", partial(_follow, feeder, tab.page, samples))
        held.append(_held(browser, tab))
        said = ", ".join(f"{name} {value:,.0f}" for name, value in held[-1].items())
        yield Row(f"a tab left open, {row.what}: {said}", row.clock_s, row.tab_cpu_s, row.server_cpu_s, row.kilobytes,
                  "flat")  # fmt: skip


def _follow(feeder: Feeder, page: Any, samples: int) -> None:
    for _ in range(samples):
        feeder.train(until=feeder.step)
        page.wait_for_function(_IS_DRAWN, arg=feeder.step - EVERY)


def _held(browser: Any, tab: Tab) -> dict[str, float]:
    """Memory of the tab, in MB, and elements of its page, once what is not needed is thrown away."""
    counted = tab.counts()
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    resident = [_resident(int(one["id"])) for one in processes if one["type"] == "renderer"]
    return {"resident MB": max(resident) / 1e6, "heap MB": counted["JSHeapUsedSize"] / 1e6, "nodes": counted["Nodes"]}


def _resident(process: int) -> int:
    fields = Path(f"/proc/{process}/status").read_text()
    return 1_000 * int(fields.split("VmRSS:")[1].split()[0])
