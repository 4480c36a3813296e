"""The schedule of `watch`: a scheduler of torch's, a function of the step, or one that is known by its name."""

import difflib
from collections.abc import Mapping
from typing import Any

from internist.errors import ConfigurationError
from internist.observe.schedules import KINDS, Curve, Named, Schedule, Scheduler

_EXPECTED = (
    "expected a torch scheduler, a function of the step that returns what the learning rate is multiplied by, or a "
    "schedule by its name, such as {'kind': 'cosine', 'steps': 10000, 'warmup': 500}"
)


def settled(schedule: Any) -> Schedule | None:
    """The schedule that a run declares.

    Raises:
        ConfigurationError: it is none.
    """
    if schedule is None:
        return None
    if isinstance(schedule, str):
        schedule = {"kind": schedule}
    if isinstance(schedule, Mapping):
        return Curve(_named(schedule))
    if hasattr(schedule, "get_last_lr") and hasattr(schedule, "optimizer"):
        return Scheduler(schedule)
    if callable(schedule):
        return Curve(schedule)
    raise ConfigurationError(f"schedule={schedule!r}: {_EXPECTED}")


def _named(given: Mapping[Any, Any]) -> Named:
    kind = str(given.get("kind"))
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"schedule names {kind!r}; known are {', '.join(KINDS)}{meant}")
    known = KINDS[kind]
    numbers: dict[str, Any] = {name: value for name, value in given.items() if name != "kind"}
    for name, value in numbers.items():
        if name not in known:
            raise ConfigurationError(f"schedule={dict(given)!r}: {kind} takes {', '.join(known)}, not {name!r}")
        is_share = name == "floor"
        is_number = isinstance(value, int | float) if is_share else isinstance(value, int)
        if isinstance(value, bool) or not is_number or value < 0 or (is_share and value > 1):
            wanted = "a share of the peak from 0 to 1" if is_share else "a whole number of steps, 0 or more"
            raise ConfigurationError(f"schedule's {name}={value!r}: expected {wanted}")
    needed = [name for name in ("steps", "decay") if name in known and not numbers.get(name)]
    if needed:
        raise ConfigurationError(f"schedule={dict(given)!r}: {kind} needs {' and '.join(needed)}, 1 or more")
    return Named(kind, **numbers)
