"""What a check of a stored run answers: everything that was out of its band, by the run's own past, by theory and by a
reference run."""

from dataclasses import dataclass

from internist.schema.conditions import Basis, State
from internist.schema.rules import Severity
from internist.schema.views import Number


@dataclass(frozen=True, slots=True)
class Deviation:
    """Something that was out of its band for a while."""

    condition: str
    severity: Severity
    basis: Basis | None
    series: int
    metric: str
    subject: str
    index: int | None
    block: str | None
    opened_step: int
    closed_step: int | None
    """None: it never came back."""
    value: Number
    """When it opened."""
    band_low: Number
    band_high: Number
    message: str
    advice: str
    how_sure: str = ""
    """In words: of how many values how far away it was, and how rarely one of as many alike would be."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is said of a stored run when all of its steps are judged once more."""

    run: str
    attempt: str
    reference: str | None
    """Name of the run that it was held to."""
    state: State
    """The gravest that was told at any step; `not measured` where too little was judged, or nothing by the reference
    that was asked for."""
    sentence: str
    steps: int
    """How many were judged."""
    held: int
    """Series that the reference spoke for."""
    deviations: tuple[Deviation, ...]
    """In the order in which they opened."""
