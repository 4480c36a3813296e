"""Coverage: what a run measures of what it could, by subject and metric family. One definition for everyone."""

from collections.abc import Iterable
from typing import Final, Literal

from internist.schema.wire import CoverageEntry, CoverageState

Family = Literal[
    "activation",
    "attention",
    "router",
    "update.own",
    "update.feature",
    "gradient",
    "update",
    "spectrum",
    "loss",
    "clock",
]

FAMILIES: Final[dict[str, str]] = {
    "activation": "size, outliers and dependency of a module's output",
    "attention": "largest attention logits",
    "router": "how a router shares the tokens among experts",
    "update.own": "change of a module's output by its own update",
    "update.feature": "change of a block's output by the whole update",
    "gradient": "gradient of a parameter",
    "update": "size of a parameter and of its update",
    "spectrum": "spectral norms of a matrix and of its update",
    "loss": "the run's loss",
    "clock": "the run's optimizer steps",
}
"""What each family says, in words."""

UNCOUNTED: Final = frozenset(("frozen", "idle", "excluded"))
"""States of what could not be measured even by a perfect monitor."""


def is_missing(state: CoverageState) -> bool:
    """Whether something that could be measured is not."""
    return state != "measured" and state not in UNCOUNTED


def share(entries: Iterable[CoverageEntry]) -> float | None:
    """Measured entries over all that count; None if none does."""
    states = [entry.state for entry in entries if entry.state not in UNCOUNTED]
    return states.count("measured") / len(states) if states else None
