"""Who looks at the board: the credentials and the address of the request being answered."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

SESSION_COOKIE = "internist_session"
GRANT = "internist.grant"
"""Where a server says in a request what its viewer may see: equal grants see equal pages."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """The viewer's own credentials, handed on to the API as they came, and the address the viewer uses."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    origin: str = ""
    """Scheme, host and base: what training is given as its server."""
    grant: str | None = None
    """What the viewer may see, where the server says so."""
    base: str = ""
    """The path under which the viewer reaches the board; empty: at the root."""

    @property
    def is_signed_in(self) -> bool:
        """Whether it is a browser that has a session."""
        return "Cookie" in self.headers


VIEWER: ContextVar[Viewer] = ContextVar("internist_viewer", default=Viewer())  # noqa: B039 - frozen, never written to


def viewer_of(
    scheme: str, headers: Iterable[tuple[bytes, bytes]], *, grant: str | None = None, base: str = ""
) -> Viewer:
    """The viewer of an ASGI request. Of the cookies only the board's own is handed on."""
    given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    handed_on: dict[str, str] = {}
    if "authorization" in given:
        handed_on["Authorization"] = given["authorization"]
    for cookie in given.get("cookie", "").split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == SESSION_COOKIE:
            handed_on["Cookie"] = f"{name}={value}"
    scheme = given.get("x-forwarded-proto", scheme)
    return Viewer(handed_on, f"{scheme}://{given.get('host', 'localhost')}{base}", grant, base)
