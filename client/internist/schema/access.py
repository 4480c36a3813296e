"""Who may ask what, as the API answers it: tokens, what they are for, and what was done with them."""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["ingest", "read", "admin"]
"""What a token is for: to send what runs measure, to read, or everything."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token. The token itself is told once, when it is made."""

    id: int
    name: str
    scopes: tuple[Scope, ...]
    project: str | None
    """The only one whose runs it is for; None: all."""
    created_by: str
    created_at_ms: int
    expires_at_ms: int | None
    last_used_ms: int | None
    """To about a minute."""
    revoked_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Identity:
    """For whom a server takes whoever asks."""

    name: str
    """Of the token; `anyone` where the server asks for none."""
    scopes: tuple[Scope, ...]
    project: str | None
    """The only one whose runs it is for; None: all."""
    expires_at_ms: int | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was made just now."""

    secret: str
    """What is presented. The server keeps its hash alone."""
    token: Token


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did who administers the server: a line of its audit log."""

    at_ms: int
    actor: str
    """The name of the token that was presented."""
    address: str
    """Where the request came from."""
    act: str
    target: str
    """Whom it was done to: ids of the request's path."""
    detail: str
    """What was sent."""
