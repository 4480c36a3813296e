"""Imports what other tools kept: their files become runs of ours, judged like any."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from internist.errors import ConfigurationError
from internist.history.curves import History
from internist.history.sources import jsonl, mlflow, tensorboard, wandb
from internist.history.writing import write
from internist.ship.credentials import token_for
from internist.ship.sync import SyncReport, Told, say_nothing, sync

Source = Literal["tensorboard", "wandb", "mlflow", "jsonl"]
SOURCES: Final[Mapping[str, Callable[[Path, Mapping[str, str]], list[History]]]] = {
    "tensorboard": tensorboard.read,
    "wandb": wandb.read,
    "mlflow": mlflow.read,
    "jsonl": jsonl.read,
}


@dataclass(frozen=True, slots=True)
class Imported:
    """A run that was imported: its id here, its history there."""

    run: str
    history: History


def read_source(source: Source, path: Path, *, names: Mapping[str, str] | None = None) -> list[History]:
    """The histories that a tool kept at a path.

    Args:
        source: the tool.
        path: its directory, file or database.
        names: what a name of the tool's is called here, such as `{"train/nll": "loss"}`.

    Raises:
        ConfigurationError: there is nothing of that tool's; or no point in it.
    """
    if source not in SOURCES:
        raise ConfigurationError(f"{source!r}: expected one of {', '.join(SOURCES)}")
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist")
    found = [history for history in SOURCES[source](path, names or {}) if history.curves]
    if not found:
        raise ConfigurationError(f"{path} holds no numbers")
    return found


def import_runs(
    histories: Sequence[History],
    *,
    server: str,
    token: str | None = None,
    project: str | None = None,
    told: Told = say_nothing,
) -> tuple[list[Imported], SyncReport]:
    """Write histories as spools and ship them. What the server has already is not stored twice.

    Args:
        histories: what to import.
        server: address of the server.
        token: what it asks for; default: INTERNIST_TOKEN, else what `internist login` kept.
        project: groups the runs, in place of the tool's own word.
        told: is told how many have been shipped, of how many.

    Raises:
        ServerError: the server cannot be used.
        SpoolError: there is no room for the spools.
    """
    with tempfile.TemporaryDirectory(prefix="internist-import-") as name:
        directory = Path(name)
        imported = [
            Imported(write(history, directory, project=project or history.project), history) for history in histories
        ]
        return imported, sync(directory, server=server, token=token_for(server, token), told=told)
