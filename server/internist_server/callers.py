"""Who asks: what a token lets its bearer do, and in whose name."""

import hashlib
from dataclasses import dataclass
from typing import Final

from internist.schema.access import Scope
from internist_server.errors import Forbidden, RunNotFound

BOOTSTRAP: Final = "bootstrap"
"""Who presents the token of the environment."""
OPEN: Final = "anyone"
"""Who asks a server that asks for no token."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What was presented: a token, or a browser's session."""

    key: str
    """Its hash."""
    is_session: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as its token says."""

    name: str
    """Of the token: what it does is told of under it, and runs that it starts are its own."""
    scopes: frozenset[Scope]
    project: str | None = None
    """The only one that it may touch; None: all."""
    token: str = ""
    """The token's hash; empty without one."""
    expires_at_ms: int | None = None
    """When the token is over; None: never."""

    def may(self, scope: Scope) -> bool:
        """Whether its token is for this."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Refuse what its token is not for.

        Raises:
            Forbidden: it is not.
        """
        if not self.may(scope):
            raise Forbidden(f"the token {self.name!r} is for {', '.join(sorted(self.scopes))}; this needs {scope}")

    def only(self, project: str | None) -> str | None:
        """The project that an answer is about, where this one was asked for; None: all.

        Raises:
            Forbidden: it is none of the caller's.
        """
        if self.project is not None and project not in (None, self.project):
            raise Forbidden(f"the token {self.name!r} is for the project {self.project!r}, not for {project!r}")
        return self.project if self.project is not None else project

    def require_project(self, run: str, project: str) -> None:
        """Refuse a run of another project as if it were not there.

        Raises:
            RunNotFound: it is of another.
        """
        if self.project is not None and project != self.project:
            raise RunNotFound(run)

    def require_start(self, run: str, project: str) -> None:
        """Refuse to start a run in a project that is not the caller's.

        Raises:
            Forbidden: it is not.
        """
        if self.project is not None and project != self.project:
            raise Forbidden(
                f"the token {self.name!r} is for the project {self.project!r}; run {run!r} is to be of {project!r}"
            )

    def require_own(self, run: str, owner: str | None) -> None:
        """Refuse to write to a run that another token started; whoever administers the server may.

        Args:
            run: its id, for the reason.
            owner: the name of the token that started it; None: the server's own, or none.

        Raises:
            Forbidden: it is another's.
        """
        if "admin" not in self.scopes and owner != self.name:
            raise Forbidden(f"run {run!r} was not started with the token {self.name!r}: start one of another id")

    @property
    def grant(self) -> str:
        """What it may see and do: the same for callers who may the same."""
        return f"{','.join(sorted(self.scopes))} {self.project}"

    @property
    def owner(self) -> str | None:
        """Whose the runs are that it starts; None: nobody's in particular."""
        return None if "admin" in self.scopes else self.name


EVERYONE: Final = Caller(OPEN, frozenset({"admin"}))


def hashed(secret: str) -> str:
    """What is kept of a token or of a session: long random text needs no salt, and no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
