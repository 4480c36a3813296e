"""Connection to the server: calls over one kept-alive socket, each of which ends in a reply or a named error."""

import http.client
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, ProtocolError, ReadTimeoutError
from urllib3.util import Timeout, Url, parse_url

from internist import __version__
from internist.errors import (
    BodyTooLarge,
    ConfigurationError,
    ConnectionBroken,
    NotInternist,
    RequestRefused,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    TokenRefused,
)
from internist.schema.check import Check
from internist.schema.reference import Trajectory
from internist.schema.scaling import Scaling
from internist.schema.wire import (
    PIECE_BYTES,
    SENT_AT_HEADER,
    SPOOL_CONTENT_TYPE,
    FramesReply,
    Heartbeat,
    HeartbeatReply,
    RunStart,
    RunStarted,
)
from internist.ship.moments import now_ms
from internist.ship.pieces import bare

DEFAULT_SERVER: Final = "http://127.0.0.1:8237"
CONNECT_S: Final = 2.0
READ_S: Final = 30.0
"""Longer than a server lets a request wait before it sends it away."""
MAX_REPLY_BYTES: Final = 8 << 20

LONGEST_WAIT_S: Final = 60.0
"""However long a server asks to be left alone, it is asked again after this."""

_CHUNK = 64 << 10
_SHOWN = 80
_JSON = "application/json"
_PORTS: Final = {"http": 80, "https": 443}
_OF_A_GATEWAY: Final = (400, 403, 408, 411, 414, 500, 502, 503, 504)
"""What proxies, firewalls and load balancers have been seen to answer to a body that is too large for them."""

_Reply = TypeVar("_Reply")


class _Detail(msgspec.Struct):
    """How the server words an error."""

    detail: object = None


class _Answer(NamedTuple):
    """What came back, whoever sent it."""

    status: int
    content_type: str
    location: str
    retry_after: str
    data: bytes


class Connection:
    """One client of one server. One thread at a time may use it.

    Redirects and proxies are not followed: a token goes to the named server and to nobody else.

    Attributes:
        server: the server's address without credentials, as messages name it.

    Args:
        server: `http://host:port`, `https://host/prefix` or `host:port`.
        token: sent as a bearer token; None where the server asks for none.
        timeout: seconds to wait for an answer. Connecting takes at most 2 s of it.
        most: bytes of an answer; a longer one is refused.

    Raises:
        ConfigurationError: the address or the token cannot be one.
    """

    def __init__(
        self, server: str, token: str | None = None, timeout: float = READ_S, most: int = MAX_REPLY_BYTES
    ) -> None:
        address = _parsed(server)
        self.server = address_of(server)
        self._base = (address.path or "").rstrip("/")
        self._patience = timeout
        self._most = most
        self._starts_bare = False
        self._headers = {"User-Agent": f"internist/{__version__}", "Accept": _JSON}
        if token:
            if not token.isascii() or not token.isprintable():
                raise ConfigurationError("the token holds characters that no HTTP header can carry")
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.connection_from_url(
            Url(address.scheme, None, address.host, address.port).url,
            maxsize=1,
            timeout=Timeout(connect=min(CONNECT_S, timeout), read=timeout),
            retries=False,
        )

    def start_run(self, start: RunStart) -> RunStarted:
        """Tell the server who speaks; it answers from where on it wants to hear.

        A start that is too large for what lies on the way, or whose outline the server does not like, goes without
        it; the outline follows in the records.

        Raises:
            ServerError: one of its kinds, see `internist.errors`; so do the other calls.
        """
        body = msgspec.json.encode(bare(start) if self._starts_bare else start)
        try:
            started = self._post("/api/v1/runs", body, _JSON, RunStarted, _sent())
        except ServerError as error:
            is_refused = isinstance(error, RequestRefused) and error.status == 422  # perhaps for what the outline says
            if self._starts_bare or not (is_refused or may_be_too_large(error, len(body))):
                raise
            started = self._post("/api/v1/runs", msgspec.json.encode(bare(start)), _JSON, RunStarted, _sent())
            self._starts_bare = True
        if (started.run, started.attempt) != (start.run, start.attempt):
            raise NotInternist(f"{self.server} answered for run {started.run[:_SHOWN]!r}, not for {start.run!r}")
        return started

    def send(self, run: str, body: bytes, *, attempt: str, rank: int) -> FramesReply:
        """Hand over a slice of a rank's spool as it is."""
        speaker = {"X-Internist-Attempt": attempt, "X-Internist-Rank": str(rank)}
        path = f"/api/v1/runs/{quote(run, safe='')}/frames?{urlencode({'attempt': attempt, 'rank': rank})}"
        return self._post(path, body, SPOOL_CONTENT_TYPE, FramesReply, speaker | _sent())

    def heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """Tell the server that this rank lives."""
        path = f"/api/v1/runs/{quote(run, safe='')}/heartbeat"
        return self._post(path, msgspec.json.encode(heartbeat), _JSON, HeartbeatReply, _sent())

    def scaling(self, runs: Sequence[str] = (), *, family: str | None = None, project: str | None = None) -> Scaling:
        """The scaling check of these runs, by id or name, or of a family; without either, the families there are."""
        asked = [("runs", run) for run in runs] + [("family", family), ("project", project)]
        query = urlencode([(name, value) for name, value in asked if value is not None])
        return self._get(f"/api/v1/scaling?{query}" if query else "/api/v1/scaling", Scaling)

    def check(self, run: str, *, reference: str | None = None, trajectory: bytes | None = None) -> Check:
        """A stored run, judged once more: by itself, held to another run, or to a trajectory as JSON."""
        path = f"/api/v1/runs/{quote(run, safe='')}/check"
        if trajectory is not None:
            return self._post(path, trajectory, _JSON, Check)
        return self._get(path if reference is None else f"{path}?{urlencode({'reference': reference})}", Check)

    def trajectory(self, run: str) -> Trajectory:
        """What another run can be held to, of a stored run."""
        return self._get(f"/api/v1/runs/{quote(run, safe='')}/trajectory", Trajectory)

    def read(self, path: str, reply: type[_Reply], **asked: object) -> _Reply:
        """What the API answers at a path below `/api/v1/`: a type of `internist.schema`, or tuples of one.

        Args:
            path: such as `runs/RUN/points`, quoted.
            reply: the type of the answer.
            asked: parameters of the query; a list is repeated, None is left out.
        """
        query = urlencode({name: value for name, value in asked.items() if value is not None}, doseq=True)
        return self._get(f"/api/v1/{path}{'?' if query else ''}{query}", reply)

    def write(self, path: str, body: object, reply: type[_Reply]) -> _Reply:
        """What the API answers to a JSON body that is posted to a path below `/api/v1/`."""
        return self._post(f"/api/v1/{path}", msgspec.json.encode(body), _JSON, reply)

    def delete(self, path: str, reply: type[_Reply]) -> _Reply:
        """Delete what is at a path below `/api/v1/`; what the API answers."""
        return self._understood(path, self._exchange("DELETE", f"/api/v1/{path}", None, self._headers), reply)

    def close(self) -> None:
        """Let go of the socket."""
        self._pool.close()

    def _post(
        self, path: str, body: bytes, content_type: str, reply: type[_Reply], extra: dict[str, str] | None = None
    ) -> _Reply:
        headers = self._headers | {"Content-Type": content_type} | (extra or {})
        return self._understood(path, self._exchange("POST", path, body, headers), reply)

    def _get(self, path: str, reply: type[_Reply]) -> _Reply:
        return self._understood(path, self._exchange("GET", path, None, self._headers), reply)

    def _understood(self, path: str, answer: _Answer, reply: type[_Reply]) -> _Reply:
        """What an answer says, or the error that it stands for."""
        if answer.status in (200, 201, 202):
            try:
                return msgspec.json.decode(answer.data, type=reply)
            except msgspec.DecodeError as error:
                raise self._stranger(answer) from error
        raise self._refusal(path, answer)

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> _Answer:
        """The answer to a request."""
        for attempt in (1, 2):
            try:
                return self._ask(method, path, body, headers)
            except ProtocolError as error:
                if any(type(cause) is http.client.BadStatusLine for cause in error.args):
                    raise NotInternist(f"what answers at {self.server} does not speak HTTP") from error
                if attempt == 2:  # once may be a kept-alive socket that the server closed meanwhile
                    raise self._broken(error) from error
            except ReadTimeoutError as error:
                raise self._broken(error) from error
            except HTTPError as error:
                message = f"no Internist server answers at {self.server} ({_cause(error)})"
                raise ServerUnreachable(message) from error
        raise AssertionError("the second attempt returns or raises")

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> _Answer:
        deadline = time.monotonic() + self._patience + CONNECT_S
        response = self._pool.urlopen(
            method,
            self._base + path,
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        data = bytearray()
        try:
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > self._most:
                    raise NotInternist(f"{self.server} answered with more than {self._most} bytes")
                if time.monotonic() > deadline:
                    raise ConnectionBroken(f"{self.server} did not finish its answer in {self._patience:g} s")
        except BaseException:
            response.close()
            raise
        response.release_conn()
        found = response.headers
        return _Answer(
            response.status,
            found.get("Content-Type", ""),
            found.get("Location", ""),
            found.get("Retry-After", ""),
            bytes(data),
        )

    def _broken(self, error: HTTPError) -> ConnectionBroken:
        return ConnectionBroken(f"no Internist server answers at {self.server} ({_cause(error)})")

    def _refusal(self, path: str, answer: _Answer) -> ServerError:
        """The error that an answer other than success stands for.

        An answer without a `detail` is not our server's: a proxy's, or another program's.
        """
        status, detail = answer.status, _detail(answer.data)
        if status == 413:
            whose = detail or f"by something on the way, with {self._shown(answer)}"
            return BodyTooLarge(f"{self.server} takes no body of this size (413{_colon(whose)})", status=status)
        if status in (401, 403):
            whose = detail or f"not by an Internist server: {self._shown(answer)}"
            return TokenRefused(f"{self.server} refused the token ({status}{_colon(whose)})", status=status)
        if status in (429, 503) and detail and answer.retry_after.isdecimal():
            wait_s = min(float(answer.retry_after), LONGEST_WAIT_S)
            return ServerBusy(f"{self.server} answered {status}{_colon(detail)}", status=status, wait_s=wait_s)
        if (status >= 500 and status != 501) or status in (408, 429):
            return ServerError(f"{self.server} answered {status}{_colon(detail)}", status=status)
        if 300 <= status < 400 and answer.location:
            return NotInternist(
                f"{self.server} redirects ({status}) to {answer.location[:_SHOWN]!r}, and redirects are not followed:"
                " give the address of the Internist server itself",
                status=status,
            )
        if not detail or (status == 404 and path.endswith("/runs")) or status in (405, 501) or 300 <= status < 400:
            return self._stranger(answer)
        return RequestRefused(f"{self.server} refused the request ({status}{_colon(detail)})", status=status)

    def _stranger(self, answer: _Answer) -> NotInternist:
        return NotInternist(
            f"what answers at {self.server} is not an Internist server: {answer.status} {self._shown(answer)}",
            status=answer.status,
        )

    def _shown(self, answer: _Answer) -> str:
        """The kind and the beginning of a body."""
        text = " ".join(answer.data[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]
        return f"{answer.content_type or 'without type'} {text!r}"


def address_of(server: str) -> str:
    """A server's address as messages and files name it: without credentials, and without what goes without saying.

    Raises:
        ConfigurationError: it cannot be one.
    """
    address = _parsed(server)
    port = None if address.port == _PORTS.get(address.scheme or "") else address.port
    return Url(address.scheme, None, address.host, port, address.path).url.rstrip("/")


def may_be_too_large(error: ServerError, size: int) -> bool:
    """Whether a request may have failed for its size: what lies between here and the server says so in many ways."""
    if isinstance(error, BodyTooLarge):
        return True
    if isinstance(error, ServerBusy):  # our own server, that knows why
        return False
    return size > PIECE_BYTES and (isinstance(error, ConnectionBroken) or error.status in _OF_A_GATEWAY)


def _sent() -> dict[str, str]:
    """Tells the server what this client's clock says."""
    return {SENT_AT_HEADER: str(now_ms())}


def _parsed(server: str) -> Url:
    try:
        address = parse_url(server if "://" in server else f"http://{server}")
    except LocationParseError as error:
        raise ConfigurationError(f"{server!r} is not a server's address such as {DEFAULT_SERVER}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ConfigurationError(f"{server!r} is not a server's address such as {DEFAULT_SERVER}")
    return address


def _detail(data: bytes) -> str:
    """What an error of our server says, in short; empty if this is not one."""
    try:
        detail = msgspec.json.decode(data, type=_Detail).detail
    except msgspec.DecodeError:
        return ""
    return "" if detail is None else str(detail)[: 4 * _SHOWN]


def _colon(detail: str) -> str:
    return f": {detail}" if detail else ""


def _cause(error: HTTPError) -> str:
    """A network error in a few words."""
    text = str(error)
    return text.rpartition(": ")[2].strip()[:_SHOWN] or type(error).__name__
