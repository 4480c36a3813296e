"""TensorBoard's event files, read by TensorBoard: each directory that holds some is a run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from internist.errors import ConfigurationError
from internist.history.curves import CurveBuilder, History

_FILES: Final = "*tfevents*"
_EVERYTHING: Final = 0
"""Of the library's size guidance: keep all points."""


def read(path: Path, names: Mapping[str, str]) -> list[History]:
    """The histories of every directory at or below a path that holds event files; or of one event file.

    Raises:
        ConfigurationError: there are none.
    """
    places = [path] if path.is_file() else sorted({file.parent for file in path.rglob(_FILES)})
    if not places:
        raise ConfigurationError(f"{path} holds no event files of TensorBoard ({_FILES})")
    return [_history(place, path, names) for place in places]


def _history(place: Path, root: Path, names: Mapping[str, str]) -> History:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(place), size_guidance={SCALARS: _EVERYTHING, TENSORS: _EVERYTHING})
    events.Reload()
    built = CurveBuilder(names)
    for tag in events.Tags()[SCALARS]:
        for event in events.Scalars(tag):
            built.add(tag, event.step, _ms(event.wall_time), float(event.value))
    for tag in events.Tags()[TENSORS]:
        for event in events.Tensors(tag):
            value: Any = tensor_util.make_ndarray(event.tensor_proto)
            if value.size == 1 and value.dtype.kind in "fiu":
                built.add(tag, event.step, _ms(event.wall_time), float(value.reshape(-1)[0]))
    name = place.name if place == root else str(place.relative_to(root))
    return History(
        run=str(place.resolve()), name=name, project=root.resolve().name, curves=built.curves(), source="tensorboard"
    )


def _ms(wall_time: float) -> int:
    return 0 if math.isnan(wall_time) else int(wall_time * 1e3)
