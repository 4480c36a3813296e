"""Who may ask what: the token of the environment, tokens that were made, and the sessions of browsers."""

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from internist.schema.access import NewToken, Scope, Token
from internist_server.callers import BOOTSTRAP, Caller, Credential, hashed
from internist_server.errors import Conflict, Forbidden
from internist_server.store import access
from internist_server.store.database import Database

PREFIX: Final = "int_"
"""Tokens begin so, that they are known where they do not belong."""
SECRET_BYTES: Final = 32
SESSION_MS: Final = 30 * 86_400_000
KNOWN_S: Final = 5.0
"""How long a process takes a token for what it was, without looking: how late others' revocations come."""
USE_MS: Final = 60_000
"""How often it is written down that a token is used."""
MAX_KNOWN: Final = 4_096


class Keyring:
    """Knows whose a token or a session is. One object serves all threads."""

    def __init__(self, database: Database, token: str | None, *, clock: Callable[[], int]) -> None:
        """The keys of a server.

        Args:
            database: where tokens and sessions are kept.
            token: of the environment; its bearer may do everything. None: the server asks for none.
            clock: ms since 1970.
        """
        self._database, self._clock = database, clock
        self._bootstrap = None if token is None else Caller(BOOTSTRAP, frozenset({"admin"}), token=hashed(token))
        self._lock = threading.Lock()
        self._known: OrderedDict[Credential, tuple[float, Caller]] = OrderedDict()
        self._used_ms: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for a token."""
        return self._bootstrap is None

    def known(self, shown: Credential) -> Caller | None:
        """Whose a token or a session is, as far as that is known without looking."""
        bootstrap = self._bootstrap
        if bootstrap is not None and not shown.is_session and hmac.compare_digest(shown.key, bootstrap.token):
            return bootstrap
        with self._lock:
            until, caller = self._known.get(shown, (0.0, None))
        if caller is None or time.monotonic() >= until:
            return None
        return caller if caller.expires_at_ms is None or self._clock() < caller.expires_at_ms else None

    def find(self, shown: Credential) -> Caller | None:
        """Who presents this; None: nobody may. A session may what its token may, for as long as that may."""
        caller = self.known(shown)
        if caller is None:
            caller = self._of_session(shown.key) if shown.is_session else self._of_token(shown.key)
            if caller is not None:
                self._remember(shown, caller)
        return caller

    def _of_token(self, key: str) -> Caller | None:
        with self._database.read() as session:
            caller = access.find_caller(session, key, now_ms=self._clock())
        if caller is not None:
            self._note_use(key)
        return caller

    def _of_session(self, key: str) -> Caller | None:
        with self._database.read() as session:
            token = access.find_session(session, key, now_ms=self._clock())
        return None if token is None else self.find(Credential(token))

    def sign_in(self, token: str) -> tuple[Caller, str] | None:
        """Who signs in with a token, and the session's secret, which nobody else learns; None: it is no token.

        Raises:
            Forbidden: it may not read.
        """
        caller = self.find(Credential(hashed(token)))
        if caller is None:
            return None
        caller.require("read")
        secret, now_ms = secrets.token_urlsafe(SECRET_BYTES), self._clock()
        with self._database.write() as session:
            access.add_session(
                session, hashed(secret), token=caller.token, now_ms=now_ms, expires_at_ms=now_ms + SESSION_MS
            )
        return caller, secret

    def sign_out(self, key: str) -> None:
        """End the session of this hash."""
        with self._database.write() as session:
            access.end_session(session, key)
        with self._lock:
            self._known.pop(Credential(key, is_session=True), None)

    def create(
        self, *, name: str, scopes: Sequence[Scope], project: str | None, days: float | None, by: Caller
    ) -> NewToken:
        """Make a token; its secret is told this once.

        Raises:
            Conflict: the server asks for none, or one of that name is in force.
            Forbidden: its maker may not do itself what the token would let others do.
        """
        if self.is_open:
            raise Conflict("this server asks for no token, so that one would be for nothing: set INTERNIST_TOKEN first")
        if name in (BOOTSTRAP, "anyone"):
            raise Conflict(f"{name!r} is what the server calls others")
        if by.project is not None and project != by.project:
            raise Forbidden(f"the token {by.name!r} makes tokens for the project {by.project!r} alone")
        secret, now_ms = PREFIX + secrets.token_urlsafe(SECRET_BYTES), self._clock()
        expires_at_ms = None if days is None else now_ms + int(days * 86_400_000)
        with self._database.write() as session:
            made = access.add_token(
                session, name=name, secret=hashed(secret), scopes=scopes, project=project, by=by.name, now_ms=now_ms,
                expires_at_ms=expires_at_ms,
            )  # fmt: skip
        return NewToken(secret, made)

    def revoke(self, token: int) -> Token:
        """Let nobody use a token any more.

        Raises:
            TokenNotFound: there is no such token.
        """
        with self._database.write() as session:
            revoked = access.revoke_token(session, token, now_ms=self._clock())
        with self._lock:
            self._known.clear()
        return revoked

    def _remember(self, shown: Credential, caller: Caller) -> None:
        with self._lock:
            self._known[shown] = (time.monotonic() + KNOWN_S, caller)
            self._known.move_to_end(shown)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def _note_use(self, key: str) -> None:
        now_ms = self._clock()
        if now_ms - self._used_ms.get(key, 0) < USE_MS:
            return
        self._used_ms[key] = now_ms  # tokens are few
        with self._database.write() as session:
            access.note_use(session, key, now_ms=now_ms)
