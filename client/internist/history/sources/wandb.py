"""Runs that wandb keeps on disk: `wandb/offline-run-*` and `wandb/run-*`, each with a file `run-ID.wandb`.

Its records are framed like LevelDB's log; what is in them is told by wandb's own protocol.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from internist.errors import ConfigurationError
from internist.history.curves import CurveBuilder, History
from internist.schema.wire import Outcome, Scalar

_IDENT: Final = b":W&B\xe1\xbe"
_FILE_HEADER: Final = len(_IDENT) + 1
_BLOCK: Final = 32_768
_HEADER: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_NONFINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_CONFIG_OF_ITS_OWN: Final = "_wandb"


def read(path: Path, names: Mapping[str, str]) -> list[History]:
    """The histories of every run file at or below a path, by their file names.

    Raises:
        ConfigurationError: there are none, or one is no file of wandb's.
    """
    files = [path] if path.is_file() else sorted(path.rglob("run-*.wandb"))
    if not files:
        raise ConfigurationError(f"{path} holds no runs of wandb (run-*.wandb)")
    return [_history(file, names) for file in files]


def _history(file: Path, names: Mapping[str, str]) -> History:
    from wandb.proto.wandb_internal_pb2 import Record

    built, config = CurveBuilder(names), dict[str, Scalar]()
    run, name, project, outcome = file.stem.removeprefix("run-"), "", "", "killed"
    for body in records(file):
        record = Record.FromString(body)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run.run_id or run
            name, project = record.run.display_name or name, record.run.project or project
        if kind in ("run", "config"):
            changes = record.run.config if kind == "run" else record.config
            for item in changes.update:
                config.update(_flat(item.key or ".".join(item.nested_key), item.value_json))
        if kind == "history":
            _take(built, record.history)
        if kind == "exit":
            outcome = "failed" if record.exit.exit_code else "finished"
    ended: Outcome = outcome  # type: ignore[assignment]  # one of the three above
    return History(run, name or run, project, config, built.curves(), ended, "wandb")


def _take(built: CurveBuilder, history: Any) -> None:
    """The numbers of one call of `wandb.log`."""
    values: dict[str, Any] = {}
    for item in history.item:
        values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    step = int(history.step.num) if history.HasField("step") else int(values.get("_step", 0))
    time_ms = int(float(values.get("_timestamp", 0)) * 1e3)
    for name, value in values.items():
        if not name.startswith("_"):
            for inner, number in _numbers(name, value):
                built.add(inner, step, time_ms, number)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in a value: itself, or those of a nested mapping."""
    if isinstance(value, dict):
        if "_type" not in value:  # histograms, images and tables say what they are
            for inner, one in value.items():
                yield from _numbers(f"{name}/{inner}", one)
    elif isinstance(value, str) and value in _NONFINITE:
        yield name, _NONFINITE[value]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _flat(name: str, value_json: str) -> dict[str, Scalar]:
    if name == _CONFIG_OF_ITS_OWN:
        return {}
    value = json.loads(value_json)
    if isinstance(value, dict):
        return {key: one for inner, v in value.items() for key, one in _flat(f"{name}.{inner}", json.dumps(v)).items()}
    return {name: value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)}


def records(file: Path) -> Iterator[bytes]:
    """The bodies of a file's records. What a process that died left unfinished at the end is left out.

    Raises:
        ConfigurationError: it is no file of wandb's, or damaged.
    """
    data = file.read_bytes()
    if not data.startswith(_IDENT):
        raise ConfigurationError(f"{file} is no file of wandb's: it begins with {data[:7]!r}")
    at, parts = _FILE_HEADER, list[bytes]()
    while at < len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:  # too little room for a header: the block is filled up
            at += _BLOCK - at % _BLOCK
            continue
        if at + _HEADER.size > len(data):
            return
        checksum, length, kind = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(body) < length or kind == 0:
            return
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            raise ConfigurationError(f"{file} is damaged at byte {at}")
        at += _HEADER.size + length
        if kind in (_FULL, _FIRST):
            parts = []
        parts.append(body)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
