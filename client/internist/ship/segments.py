"""Where spools lie: `ROOT/<run>/<attempt>/rank-00000/000001.spool`, one directory per rank, one file per segment."""

import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from internist.schema.wire import Outline, Record, RunStart
from internist.ship import records
from internist.ship.pieces import join_start

DEFAULT_DIRECTORY = "internist-runs"
"""Where runs are kept unless INTERNIST_DIR says otherwise, from the working directory."""
SUFFIX = ".spool"

_WINDOWS = os.name == "nt"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}


def rank_directory(root: Path, run: str, attempt: str, rank: int) -> Path:
    """The directory of one rank's spool."""
    return root / folder_name(run) / folder_name(attempt) / f"rank-{rank:05d}"


def folder_name(name: str, *, windows: bool = _WINDOWS) -> str:
    """An id as the name of a directory. Windows drops dots at its end and keeps some names for devices."""
    if windows and (name.endswith(".") or name.partition(".")[0].lower() in _RESERVED):
        return f"_{name}_"
    return name


def segment_path(directory: Path, number: int) -> Path:
    """The file of a rank's segment; segments count from 1."""
    return directory / f"{number:06d}{SUFFIX}"


def segment_numbers(directory: Path) -> list[int]:
    """Numbers of the segments that a rank's directory holds, oldest first; empty where none can be seen."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - asked for every frame: `Path` takes twice as long
    except OSError:
        return []
    stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def rank_directories(directory: Path) -> list[Path]:
    """Every rank's directory at or below a root, a run's, an attempt's or a rank's directory, in order of name."""
    below = [path for depth in ("rank-*", "*/rank-*", "*/*/rank-*") for path in directory.glob(depth)]
    return [path for path in sorted({directory, *below}) if segment_numbers(path)]


def read_head(directory: Path, number: int) -> Record | None:
    """The first record of a segment; None if it is not there, not sound, or of a kind this version does not know."""
    try:
        with segment_path(directory, number).open("rb") as file:
            return _next_record(file)
    except OSError:
        return None


def read_start(directory: Path) -> RunStart | None:
    """The newest start that a rank's spool declares, with the outlines that follow it; None if no segment begins with a
    sound one."""
    for number in reversed(segment_numbers(directory)):
        try:
            with segment_path(directory, number).open("rb") as file:
                head = _next_record(file)
                if head is not None and head.start is not None:
                    return join_start(head.start, _outlines(file))
        except OSError:
            continue
    return None


def _outlines(file: BinaryIO) -> list[Outline]:
    """The outlines that a file stands before."""
    found: list[Outline] = []
    while (record := _next_record(file)) is not None and record.outline is not None:
        found.append(record.outline)
    return found


def _next_record(file: BinaryIO) -> Record | None:
    """The record that a file stands before; None unless it is sound and known."""
    data = file.read(records.HEADER.size)
    data += file.read(max(0, records.claimed_size(data) - len(data)))
    try:
        return next((records.decode(body) for body in records.bodies(data)), None)
    except msgspec.DecodeError:
        return None
