"""Series, and windows of them, as the API answers them: points, bands and heat maps."""

from dataclasses import dataclass

from internist.schema.conditions import Basis
from internist.schema.metrics import Bound, Kind
from internist.schema.views import Number
from internist.schema.wire import Facts


@dataclass(frozen=True, slots=True)
class SeriesView:
    """One series of a run."""

    id: int
    metric: str
    unit: str
    kind: Kind
    subject: str
    index: int | None
    bound: Bound
    facts: Facts
    last_step: int | None
    last_value: Number


@dataclass(frozen=True, slots=True)
class SeriesPage:
    """Series that match a question, in forward order."""

    series: tuple[SeriesView, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Band:
    """The band of a series at each step of its points, as it was judged there; null where there was none. What is
    judged by its own baseline has critical edges alone."""

    basis: Basis
    centre: tuple[Number, ...]
    warn_low: tuple[Number, ...]
    warn_high: tuple[Number, ...]
    critical_low: tuple[Number, ...]
    critical_high: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Points:
    """A window of one series. Where points outnumber the pixel budget, each bucket keeps its low, high and last
    value."""

    series: SeriesView
    steps: tuple[int, ...]
    times_ms: tuple[int, ...]
    values: tuple[Number, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    nonfinite: tuple[int, ...]
    """Number of NaN and infinite points in each bucket."""
    band: Band | None
    thinned: bool


@dataclass(frozen=True, slots=True)
class PointsPage:
    """Windows of several series over the same steps."""

    run: str
    attempt: str
    first_step: int | None
    last_step: int | None
    windows: tuple[Points, ...]


@dataclass(frozen=True, slots=True)
class HeatmapRow:
    """One row: a block, or a module or parameter in it."""

    subject: str
    block: str | None
    order: int
    series: tuple[int, ...]
    ratios: tuple[Number, ...]
    """log2 of value over the band's centre at each step (the largest in magnitude where steps were thinned); null:
    not judged."""
    values: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Layers x steps of one metric."""

    run: str
    attempt: str
    metric: str
    unit: str
    steps: tuple[int, ...]
    rows: tuple[HeatmapRow, ...]
    basis: Basis | None
    metrics: tuple[str, ...]
    """The metrics of this run that can be drawn so."""
    total: int = 0
    """Rows that there are; the answer has the first of them where it was asked for fewer."""
