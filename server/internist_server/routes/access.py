"""What each route needs of a token, in one place: a route that is not named here needs what administers the server."""

from typing import Annotated, Final

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from internist.schema.access import Scope
from internist_server.auth import OPEN_PATHS, address_of, caller_of
from internist_server.callers import Caller
from internist_server.errors import Forbidden, RunNotFound
from internist_server.routes.services import Services, get_services
from internist_server.store.runs import owner_of

INGEST: Final = frozenset({"/api/v1/runs", "/api/v1/runs/{run_id}/frames", "/api/v1/runs/{run_id}/heartbeat"})
"""Whom training processes post to."""
READ_POSTS: Final = frozenset({"/api/v1/runs/{run_id}/check"})
"""Reads that are asked by post, for what they send."""
OF_ANY_TOKEN: Final = frozenset({"/api/v1/identity"})
"""What every token is for."""
ADMIN_READS: Final = frozenset({"/api/v1/tokens", "/api/v1/audit"})
SHARED: Final = frozenset(
    {
        "/api/v1/runs",
        "/api/v1/alerts",
        "/api/v1/deliveries",
        "/api/v1/scaling",
        "/api/v1/silences",
        "/api/v1/metrics/catalogue",
    }
)
"""That tell a token of one project of that project alone; beside these it may ask for single runs and their alerts."""


def need_of(method: str, path: str) -> Scope | None:
    """What a token must be for; None: for nothing in particular, where one is asked for at all.

    Args:
        method: of HTTP.
        path: the route's, with its parameters' names.
    """
    if path in OPEN_PATHS or path in OF_ANY_TOKEN:
        return None
    if method == "POST" and path in INGEST:
        return "ingest"
    is_read = method in ("GET", "HEAD") and path not in ADMIN_READS
    return "read" if is_read or (method == "POST" and path in READ_POSTS) else "admin"


async def require_access(request: Request) -> None:
    """Refuse what the caller's token is not for.

    Raises:
        Forbidden: it is not.
        RunNotFound, AlertNotFound: it is for another project.
    """
    path = request.scope["route"].path
    need, caller = need_of(request.method, path), caller_of(request.scope)
    if need is None:
        return
    caller.require(need)
    run, alert = request.path_params.get("run_id"), request.path_params.get("alert_id")
    if caller.project is not None and run is None and alert is None:
        is_shared = path in SHARED and (request.method in ("GET", "HEAD") or path in INGEST)
        if not is_shared:
            raise Forbidden(f"the token {caller.name!r} is for the project {caller.project!r} alone")
    if (caller.project is not None or need == "ingest") and (run is not None or alert is not None):
        if "admin" in caller.scopes and caller.project is None:
            return
        await run_in_threadpool(_require_reach, get_services(request), caller, need, run, alert)


async def audit(request: Request, act: str) -> None:
    """Write down what was done, where it was an act of whoever administers the server."""
    if need_of(request.method, request.scope["route"].path) != "admin" or request.method in ("GET", "HEAD"):
        return
    detail = (await request.body()).decode("utf-8", "replace")
    target = " ".join(str(value) for value in request.path_params.values())
    services, caller = get_services(request), caller_of(request.scope)
    address = address_of(request.scope)
    await run_in_threadpool(
        services.audit.record, act, actor=caller.name, address=address, target=target, detail=detail
    )


async def get_caller(request: Request) -> Caller:
    """Who asks."""
    return caller_of(request.scope)


CallerDep = Annotated[Caller, Depends(get_caller)]


def _require_reach(services: Services, caller: Caller, need: Scope, run: str | None, alert: str | None) -> None:
    """Refuse a run, or an alert of one, that the caller may not touch."""
    if run is None:
        run = services.ingest.run_of(int(alert)) if alert is not None and alert.isdecimal() else ""
    with services.database.read() as session:
        found = owner_of(session, run)
    if found is None and need == "ingest":
        return  # what it sends may begin with a start, which is looked at as a start
    if found is None:
        raise RunNotFound(run)
    project, owner = found
    caller.require_project(run, project)
    if need == "ingest":
        caller.require_own(run, owner)


def require_reach(services: Services, caller: Caller, run: str) -> None:
    """Refuse a run that a request names beside its path, where the caller's project is another.

    Raises:
        RunNotFound: it is of another, or there is none of that id.
    """
    if caller.project is not None:
        _require_reach(services, caller, "read", run, None)
