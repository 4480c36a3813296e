"""In which order the page of all runs lists them: kept in the address, answered by the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SORTS: Final = {
    "newest": "newest first",
    "name": "by name",
    "project": "by project",
    "verdict": "worst first",
    "step": "by step",
    "loss": "by loss",
}
"""What the server sorts by, and how the page says it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the list is sorted by, whether the other way round, and whether it is the archive."""

    sort: str = "newest"
    is_reversed: bool = False
    is_archived: bool = False

    @property
    def said(self) -> str:
        """In words."""
        return SORTS[self.sort] + (", the other way round" if self.is_reversed else "")


NEWEST: Final = Order()


def order_of(asked: Mapping[str, Any] | None) -> Order:
    """The order that an address, or the browser's store, names; what it does not know is as without it."""
    known = asked or {}
    sort = known.get("sort")
    return Order(sort if sort in SORTS else "newest", known.get("reverse") == "1", known.get("archived") == "1")
