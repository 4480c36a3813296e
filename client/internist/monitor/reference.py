"""The reference of `watch`: the name of a run that the server holds, or a file with the trajectory of one."""

import os
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec

from internist.errors import ConfigurationError
from internist.schema.reference import TRAJECTORY_VERSION, Trajectory, TrajectoryPiece
from internist.schema.wire import MAX_NAME_LENGTH, PIECE_BYTES

_PIECE: Final = PIECE_BYTES - 512
"""What of a trajectory fits a record beside the record's own fields."""
_DECODER: Final = msgspec.json.Decoder(Trajectory)


def settled(reference: Any) -> tuple[str | None, tuple[TrajectoryPiece, ...]]:
    """What a run's start tells of its reference: its name, and its trajectory where it comes from a file.

    Raises:
        ConfigurationError: it is neither a name nor a file with a trajectory.
    """
    if reference is None:
        return None, ()
    if not isinstance(reference, str | os.PathLike):
        raise ConfigurationError(
            f"reference={reference!r}: expected the id or the name of a run, or a file that `internist check RUN --save"
            " FILE` wrote"
        )
    trajectory = read_file(reference)
    if trajectory is not None:
        return trajectory.name[:MAX_NAME_LENGTH], cut(trajectory)
    name = str(reference)
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ConfigurationError(f"reference={name!r}: expected 1 to {MAX_NAME_LENGTH} printable characters")
    return name, ()


def read_file(reference: str | os.PathLike[str]) -> Trajectory | None:
    """The trajectory in a file; None where there is no such file and it may be the name of a run.

    Raises:
        ConfigurationError: the file cannot be read, or holds no trajectory.
    """
    path = Path(reference)
    try:
        if not path.is_file():
            if isinstance(reference, os.PathLike) or path.suffix == ".json":
                raise ConfigurationError(f"reference={str(reference)!r}: there is no such file")
            return None
        trajectory = _DECODER.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"reference={str(reference)!r}: it holds no trajectory of a run ({error})") from error
    if trajectory.version > TRAJECTORY_VERSION:
        raise ConfigurationError(
            f"reference={str(reference)!r}: it has version {trajectory.version}, and this client knows up to"
            f" {TRAJECTORY_VERSION}"
        )
    return trajectory


def cut(trajectory: Trajectory) -> tuple[TrajectoryPiece, ...]:
    """A trajectory in pieces that each fit a record."""
    packed = zlib.compress(msgspec.json.encode(trajectory))
    bodies = [packed[at : at + _PIECE] for at in range(0, len(packed), _PIECE)]
    return tuple(TrajectoryPiece(number, len(bodies), body) for number, body in enumerate(bodies))
