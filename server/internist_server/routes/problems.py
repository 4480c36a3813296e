"""Errors as HTTP, in one place: a status, a code for programs and a sentence for people."""

import logging
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from internist_server import errors
from internist_server.problem import problem

log = logging.getLogger(__name__)

STATUS: Final[dict[type[errors.ServerError], int]] = {
    errors.DatabaseGone: 503,
    errors.NotFound: 404,
    errors.RunNotFound: 404,
    errors.AttemptNotFound: 404,
    errors.FamilyNotFound: 404,
    errors.AlertNotFound: 404,
    errors.SilenceNotFound: 404,
    errors.TokenNotFound: 404,
    errors.Refused: 400,
    errors.Malformed: 400,
    errors.Invalid: 422,
    errors.TooLarge: 413,
    errors.UnsupportedContent: 415,
    errors.NewerVersion: 409,
    errors.Conflict: 409,
    errors.Forbidden: 403,
}
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 401: "token_missing", 403: "token_refused"}
_DISK_FULL: Final = ("database or disk is full", "No space left on device", "DiskFull")


def install(app: FastAPI) -> None:
    """Let the app answer every error in the same form."""
    app.add_exception_handler(errors.ServerError, _server_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(Exception, _bug)


def code_of(error: type[errors.ServerError]) -> str:
    """The code of an error: its name in snake case."""
    return "".join(f"_{sign.lower()}" if sign.isupper() else sign for sign in error.__name__).lstrip("_")


async def _server_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServerError)
    return problem(STATUS.get(type(error), 500), code_of(type(error)), str(error))


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = ("{}: {}".format(".".join(str(part) for part in one["loc"]), one["msg"]) for one in error.errors())
    return problem(422, "invalid", "; ".join(reasons).encode("utf-8", "replace").decode())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"there is nothing at {request.url.path}" if error.status_code == 404 else str(error.detail)
    response = problem(error.status_code, _CODES.get(error.status_code, "refused"), detail)
    response.headers.update(error.headers or {})
    return response


async def _database_error(request: Request, error: Exception) -> Response:
    text = str(error)
    if any(sign in text for sign in _DISK_FULL):
        log.error("%s: the disk is full: %s", request.url.path, error)
        return problem(
            507, "storage_full", "the server's disk is full; what was acknowledged is safe, send again later"
        )
    if isinstance(error, OperationalError | InterfaceError):
        log.error("%s: the database does not answer: %s", request.url.path, error)
        return problem(503, "database_unavailable", "the server's database does not answer; send again later")
    return await _bug(request, error)


async def _bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "internal_error", "the server failed at this request; its log says why")
