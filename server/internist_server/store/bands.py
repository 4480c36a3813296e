"""The band of a series at each of its points: the one that it was judged by, as the judge stored it.

A row holds the bands that changed at a step, as BAND: the place of the series in the judge's order, whether its edges
are of values over the schedule's divisor (which each judgement stores), and the edges. A band holds until the next row
that names its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from internist.schema.conditions import Basis
from internist.schema.windows import Band
from internist_server.judge.edges import shown
from internist_server.store.merge import Floats, Ids
from internist_server.store.numbers import numbers
from internist_server.store.tables import BandRow

BAND: Final = np.dtype([("place", "<i4"), ("scheduled", "<i4"), ("edges", "<f4", (4,))])
"""Edges: lower and upper warning edge, lower and upper critical edge; NaN where there is none."""
_BASES: Final[Mapping[int, Basis]] = {1: "target", 2: "reference", 3: "baseline", 4: "sanity"}
_BASELINE: Final = 3
_EDGES: Final = 4
_BAND = BandRow.__table__.c
_UP_TO: Final = (
    select(_BAND.step, _BAND.bands)
    .where(_BAND.attempt_id == bindparam("attempt"), _BAND.step <= bindparam("last"))
    .order_by(_BAND.step)
)
_ADD: Final = insert(BandRow.__table__)  # type: ignore[arg-type]
Records = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class StoredBands:
    """The bands that changed at one step."""

    step: int
    bands: Records
    """As BAND."""


def pack_bands(places: Ids, scheduled: NDArray[np.bool_], edges: Floats) -> Records:
    """Bands as they are stored.

    Args:
        places: in the judge's order.
        scheduled: whether edges are of values over the schedule's divisor.
        edges: (places, 4).
    """
    packed = np.empty(len(places), BAND)
    packed["place"], packed["scheduled"], packed["edges"] = places, scheduled, edges
    return packed


def add_bands(session: Session, attempt_id: int, changed: Sequence[StoredBands]) -> None:
    """Append bands."""
    rows = [
        {"attempt_id": attempt_id, "step": one.step, "bands": one.bands.tobytes()} for one in changed if len(one.bands)
    ]
    if rows:
        session.execute(_ADD, rows)


def read_edges(
    session: Session, attempt_id: int, places: Ids, steps: Ids, divisors: NDArray[np.float64], *, last: int
) -> Floats:
    """Edges of these places of the judge's order at these steps: (steps, places, 4); NaN where none is known.

    Args:
        places: beyond the order's end where a series is not judged.
        steps: rising.
        divisors: what scheduled values were divided by at each of the steps.
        last: bands that changed later than at this step are not looked at.
    """
    edges = np.full((len(steps), len(places), _EDGES), np.nan, np.float32)
    column = {int(place): at for at, place in enumerate(places)}
    rows = session.execute(_UP_TO, {"attempt": attempt_id, "last": last}).all()
    bands = np.frombuffer(b"".join([row.bands for row in rows]), BAND)
    changed = np.repeat([row.step for row in rows], [len(row.bands) // BAND.itemsize for row in rows])
    asked = np.flatnonzero(np.isin(bands["place"], places))
    bands, begins = bands[asked], np.searchsorted(steps, changed[asked])
    for place in np.unique(bands["place"]).tolist():
        mine = np.flatnonzero(bands["place"] == place)
        begin, lasts = begins[mine[0]], np.diff(np.append(begins[mine], len(steps)))
        unit = np.where(np.repeat(bands["scheduled"][mine] != 0, lasts), divisors[begin:], 1.0)
        edges[begin:, column[place]] = np.repeat(bands["edges"][mine], lasts, axis=0) * unit[:, None]
    return edges


def band_of(values: Floats, ratios: NDArray[np.float16], basis: NDArray[np.uint8], edges: Floats) -> Band | None:
    """The band at each point of a series; None where none is known of any.

    Args:
        values: of the points.
        ratios: log2 of value over the band's centre, where it has one.
        basis: what each was judged by; 0: not judged.
        edges: (points, 4).
    """
    judged = basis > 0
    edges = np.where(judged[:, None], edges, np.float32(np.nan))
    if not (~np.isnan(edges)).any():
        return None
    kind = int(basis[judged][-1])
    with np.errstate(all="ignore"):
        centre = (values / np.exp2(ratios.astype(np.float32))).astype(np.float32)
    has_centre = np.isfinite(centre) & (centre > 0) & (basis == _BASELINE)
    shown_centre = numbers(centre, absent=~has_centre)
    return Band(_BASES[kind], shown_centre, *(_edge(edges[:, at]) for at in range(_EDGES)))


def _edge(edge: Floats) -> tuple[float | None, ...]:
    """An edge at each point; there are few different ones, and the shortest number is looked for once of each."""
    different, places = np.unique(edge, return_inverse=True)
    known = [shown(one) for one in different]
    return tuple([known[place] for place in places.tolist()])
