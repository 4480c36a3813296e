"""Records what this version says on the wire, for later versions to understand: `python -m tests.system.recording`.

A directory for each released version in tests/system/recorded: a rank's spool as its client wrote it, what its server
answered, and what its decoders expect. They are never written again.
"""

import dataclasses
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from torch import nn

import internist
from internist.schema import access, alerts, reference, views, windows, wire
from tests.client.points import read
from tests.dashboard.serving import served

RECORDED = Path(__file__).with_name("recorded")
SPOOL, POINTS, ANSWERS, TYPES = "rank.spool", "points.json", "answers.json", "types.json"
_QUESTIONS = {
    "Run": "runs/{run}",
    "Verdicts": "runs/{run}/verdicts?limit=3",
    "SeriesPage": "runs/{run}/series?limit=3",
    "PointsPage": "runs/{run}/points?metric=loss",
    "Coverage": "runs/{run}/coverage",
    "AlertsPage": "alerts?run={run}",
}
"""By the type of the answer: what a reader asks."""
_HOMES = re.compile(r"\b(?:[a-z_]+\.)+(?=\w)")
"""Where a type lives is nothing that travels."""


def main() -> None:
    """Train a little model, and keep what was said."""
    directory = RECORDED / internist.__version__
    directory.mkdir(parents=True)
    with TemporaryDirectory() as name:
        spool = _train(Path(name))
        (path,) = spool.glob("*.spool")
        (directory / SPOOL).write_bytes(path.read_bytes())
        points, _, _ = read(spool)
        loss = points["loss", "model", None]
        known = {"series": len(points), "loss": {str(step): value for step, value in loss.items()}}
        (directory / POINTS).write_text(json.dumps(known, indent=1) + "\n")
        answers = _answers(Path(name), path.read_bytes(), run=spool.parents[1].name, attempt=spool.parent.name)
        (directory / ANSWERS).write_text(json.dumps(answers, indent=1) + "\n")
    (directory / TYPES).write_text(json.dumps(declared(), indent=1) + "\n")


def declared() -> dict[str, dict[str, dict[str, Any]]]:
    """What decoders of this version expect: by type and field, what the field is and whether it must be there."""
    return {
        found.__name__: {
            one.name: {
                "type": _HOMES.sub("", str(one.type)).removeprefix("<class '").removesuffix("'>"),
                "required": one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING,
            }
            for one in dataclasses.fields(found)
        }
        for module in (reference, wire, views, windows, alerts, access)
        for found in vars(module).values()
        if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == module.__name__
    }


def _train(directory: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options: dict[str, Any] = {"mode": "offline", "directory": directory, "every": 1, "max_overhead": 0}
    monitor = internist.watch(
        model, optimizer, project="compatibility", name="recorded", id="recorded", config={"lr": 1e-2}, **options
    )
    for step in range(4):
        loss = nn.functional.cross_entropy(model(torch.arange(8)), torch.arange(8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        internist.log(loss=float("nan") if step == 3 else loss)
    internist.alert("a note", "of the user's")
    monitor.finish()
    assert monitor.directory is not None
    return monitor.directory


def _answers(directory: Path, spool: bytes, *, run: str, attempt: str) -> dict[str, Any]:
    with served(directory) as address, httpx.Client(base_url=f"{address}/api/v1/", timeout=60) as api:
        answers = {"FramesReply": send(api, spool, run=run, attempt=attempt)}
        return answers | {kind: api.get(path.format(run=run)).json() for kind, path in _QUESTIONS.items()}


def send(api: Any, spool: bytes, *, run: str, attempt: str) -> Any:
    """Hand a spool over as the client does; the server's answer."""
    answer = api.post(
        f"runs/{run}/frames",
        params={"attempt": attempt, "rank": 0},
        content=spool,
        headers={"Content-Type": "application/x-internist-spool"},
    )
    answer.raise_for_status()
    return answer.json()


if __name__ == "__main__":
    main()
