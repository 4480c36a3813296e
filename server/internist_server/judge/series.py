"""A series as the judge sees it: its identity and its facts, without its points."""

from dataclasses import dataclass

from internist.schema.metrics import Bound, Kind
from internist.schema.wire import Facts


@dataclass(frozen=True, slots=True)
class JudgedSeries:
    """One series of an attempt; `id` is the server's number for it."""

    id: int
    metric: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    facts: Facts
