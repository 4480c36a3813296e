"""What charts are drawn from: series, windows of their points, and heat maps."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from internist.schema.metrics import Kind
from internist.schema.windows import Heatmap, PointsPage, SeriesPage
from internist_server.inputs import LAST_INTEGER
from internist_server.routes import examples
from internist_server.routes.answers import ViewRoute
from internist_server.routes.runs import NOT_FOUND, AttemptQuery, Limit, Offset
from internist_server.routes.services import SessionDep
from internist_server.store import attempts, heatmap, windows
from internist_server.store.attempts import LAST_STEP

router = APIRouter(prefix="/api/v1/runs", route_class=ViewRoute, tags=["charts"])

Id = Annotated[int, Field(ge=0, le=LAST_INTEGER)]
FromStep = Annotated[int, Query(ge=0, le=LAST_STEP, description="First step of the window.")]
ToStep = Annotated[int, Query(ge=0, le=LAST_STEP, description="Last step of the window.")]
Pixels = Annotated[int, Query(ge=1, le=10_000, description="At most so many points, or steps, in the answer.")]
Metrics = Annotated[list[str] | None, Query(max_length=100, description="Names of metrics; may be repeated.")]
Subject = Annotated[str | None, Query(description="A regular expression (RE2) that is searched for in subjects.")]


@router.get("/{run_id}/series", responses={**NOT_FOUND, 200: examples.of("SeriesPage")})
def read_series(
    run_id: str,
    session: SessionDep,
    metric: Metrics = None,
    subject: Subject = None,
    kind: Annotated[Kind | None, Query(description="Only series of this kind of subject.")] = None,
    attempt: AttemptQuery = None,
    prefer: Annotated[
        windows.Preferred,
        Query(
            description="Which of more than `limit`: the first, or of each subject those of the largest last values."
        ),
    ] = "first",
    limit: Limit = 200,
    offset: Offset = 0,
) -> SeriesPage:
    """Series of a run, in forward order, with their last values."""
    chosen = attempts.choose_attempt(session, run_id, attempt)
    return windows.read_series(
        session, chosen, metrics=metric, subject=subject, kind=kind, prefer=prefer, limit=limit, offset=offset
    )


@router.get("/{run_id}/points", responses={**NOT_FOUND, 200: examples.of("PointsPage")})
def read_points(
    run_id: str,
    session: SessionDep,
    series: Annotated[list[Id] | None, Query(max_length=windows.MAX_WINDOWS, description="Ids of series.")] = None,
    metric: Metrics = None,
    subject: Subject = None,
    index: Annotated[int | None, Query(ge=0, le=1 << 31, description="Head or expert.")] = None,
    from_step: FromStep = 0,
    to_step: ToStep = LAST_STEP,
    after: Annotated[int | None, Query(ge=0, le=LAST_STEP, description="Only points of later steps.")] = None,
    pixels: Pixels = 1_000,
    bands: Annotated[bool, Query(description="Whether each window has its band.")] = True,
    attempt: AttemptQuery = None,
) -> PointsPage:
    """Windows of series, by id or by metric and subject. Buckets keep their low and high: no spike is thinned away."""
    chosen = attempts.choose_attempt(session, run_id, attempt)
    found = windows.choose_series(session, chosen, ids=series, metrics=metric, subject=subject, index=index)
    first = from_step if after is None else max(from_step, after + 1)
    return windows.read_points(session, chosen, found, first=first, last=to_step, pixels=pixels, with_bands=bands)


@router.get("/{run_id}/heatmap", responses={**NOT_FOUND, 200: examples.of("Heatmap")})
def read_heatmap(
    run_id: str,
    session: SessionDep,
    metric: Annotated[str | None, Query(max_length=512, description="A judged metric; a telling one without.")] = None,
    from_step: FromStep = 0,
    to_step: ToStep = LAST_STEP,
    pixels: Pixels = 1_000,
    collapse: Annotated[heatmap.Collapse, Query(description="One row a block, or one a module.")] = "blocks",
    opened: Annotated[
        list[str] | None, Query(max_length=1_000, description="Blocks whose modules have rows; may be repeated.")
    ] = None,
    subject: Subject = None,
    limit: Annotated[int, Query(ge=1, le=100_000, description="At most so many rows, the first of them.")] = 100_000,
    attempt: AttemptQuery = None,
) -> Heatmap:
    """Layers x steps of one metric: how far each was from its band. Thinning keeps what is largest in magnitude.

    With `subject`, rows are the modules that match it.
    """
    chosen = attempts.choose_attempt(session, run_id, attempt)
    wanted = heatmap.Rows(collapse, frozenset(opened or ()), subject, limit)
    return heatmap.read_heatmap(
        session, chosen, metric=metric, first=from_step, last=to_step, pixels=pixels, wanted=wanted
    )
