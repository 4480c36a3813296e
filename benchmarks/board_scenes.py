"""Scenes that strain the board: ten thousand series, thousands of runs, a divergence, names that look like tags."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import msgspec

from benchmarks.rank_scene import four_ranks, stay_alive
from internist.schema.wire import MSGPACK_CONTENT_TYPE, VERSION, RunStart
from tests.dashboard.feeder import EVERY, Feeder

BLOCKS = 96


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to see, and how to make it through the HTTP API of a server."""

    name: str
    says: str
    make: Callable[[httpx.Client], str]
    """Makes the scene; the path of the page that shows it."""
    again: Callable[[httpx.Client], None] | None = None
    """What happens right before its page is looked at, if anything does."""


def many_series(client: httpx.Client, *, series: int, samples: int) -> str:
    """A run of so many series, every one sampled so often; one block is sick from three quarters on."""
    path = f"/runs/series-{series}"
    if client.get(f"/api/v1{path}").is_success:  # of a database that was kept
        return path
    heads = max(1, round(series / BLOCKS) - 18)
    feeder = Feeder(client, f"series-{series}", f"{series} series", layers=BLOCKS, heads=heads, sick=("blocks.40",))
    feeder.sick_from = 3 * samples * EVERY // 4
    feeder.start()
    feeder.train(until=samples * EVERY)
    return path


def many_runs(client: httpx.Client, *, runs: int) -> str:
    """So many runs that have begun and measured nothing yet."""
    headers = {"Content-Type": MSGPACK_CONTENT_TYPE}
    if client.get(f"/api/v1/runs/sweep-{runs - 1:05d}").is_success:
        return "/"
    for number in range(runs):
        name = f"sweep-{number:05d}"
        start = RunStart(VERSION, name, f"{name}-a", 0, 1, f"project-{number % 20}", name, EVERY, _now_ms() + number)
        client.post("/api/v1/runs", content=msgspec.msgpack.encode(start), headers=headers).raise_for_status()
    return "/"


def divergence(client: httpx.Client) -> str:
    """A run whose NaN reaches one module after the other, and whose updates are too large before."""
    sick = tuple(f"blocks.{block}" for block in range(0, BLOCKS, 2))
    feeder = Feeder(client, "diverges", "diverges at night", layers=BLOCKS, heads=2, sick=sick, nonfinite_from=420)
    feeder.start()
    feeder.train(until=600)
    return f"/runs/{feeder.run}"


def calm(client: httpx.Client) -> str:
    """A run of an ordinary size that stays well."""
    feeder = Feeder(client, "calm", "baseline", layers=12, heads=4, tells=True)
    feeder.start()
    feeder.train(until=800)
    return f"/runs/{feeder.run}"


def finished(client: httpx.Client) -> str:
    """A run that has ended, with a name that a careless page would take for tags."""
    feeder = Feeder(client, "ended", "<b>bold</b> & <img src=x> of a sweep with a name that goes on and on", layers=12)
    feeder.start()
    feeder.train(until=400)
    feeder.finish()
    return f"/runs/{feeder.run}"


SCENES = (
    Scene("calm", "a run that stays well", calm),
    Scene("diverges", "a run that diverges", divergence),
    Scene("ranks", "a run of four ranks: one slow, one silent, one whose replica differs", four_ranks, stay_alive),
    Scene("ended", "a run that has ended, with tags in its name", finished),
)
"""The small ones, which are drawn as pictures."""


def _now_ms() -> int:
    return int(time.time() * 1000)
