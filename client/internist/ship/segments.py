"""Where spools lie: `ROOT/<run>/<attempt>/rank-00000/000001.spool`, one directory per rank, one file per segment."""

import os
from pathlib import Path

import msgspec

from internist.schema.wire import Record, RunStart
from internist.ship import records

SUFFIX = ".spool"


def rank_directory(root: Path, run: str, attempt: str, rank: int) -> Path:
    """The directory of one rank's spool."""
    return root / run / attempt / f"rank-{rank:05d}"


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
            head = file.read(records.HEADER.size)
            head += file.read(records.claimed_size(head))
        return next((records.decode(body) for body in records.bodies(head)), None)
    except (OSError, msgspec.DecodeError):
        return None


def read_start(directory: Path) -> RunStart | None:
    """The newest start that a rank's spool declares; None if no segment begins with a sound one."""
    heads = (read_head(directory, number) for number in reversed(segment_numbers(directory)))
    return next((head.start for head in heads if head is not None and head.start is not None), None)
