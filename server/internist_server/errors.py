"""The server's errors; `routes/problems.py` says what HTTP status each has.

ServerError
├── SettingsError          a setting is wrong, or unsafe together with another (also a ValueError)
├── RulesError             a file of rules is wrong: a line for each mistake (also a ValueError)
├── DeliveryError          a receiver did not take what it was sent
├── DatabaseGone           its file is no longer where it was
├── NotFound               what was asked for is not here
│   ├── RunNotFound
│   ├── AttemptNotFound
│   ├── FamilyNotFound
│   ├── AlertNotFound
│   ├── SilenceNotFound
│   └── TokenNotFound
└── Refused                what was sent is not taken; nothing of it was stored
    ├── Malformed          it cannot be read at all
    ├── Invalid            it can be read, and asks for something impossible
    ├── TooLarge           it is over a limit
    ├── UnsupportedContent its content type or encoding is not known
    ├── NewerVersion       it was written by a newer major version
    ├── Conflict           it contradicts what is stored
    └── Forbidden          the token that was presented is not for it
"""


class ServerError(Exception):
    """Base of all errors that the server raises."""


class SettingsError(ServerError, ValueError):
    """A setting is wrong, or unsafe together with another."""


class RulesError(ServerError, ValueError):
    """A file of rules is wrong: a line for each mistake."""


class DeliveryError(ServerError):
    """A receiver did not take what it was sent."""


class DatabaseGone(ServerError):  # noqa: N818
    """The database's file is no longer where it was: what is written to it would be lost."""

    def __init__(self) -> None:
        super().__init__("the database's file was deleted or replaced: restart the server")


class NotFound(ServerError):  # noqa: N818
    """What was asked for is not here."""


class RunNotFound(NotFound):
    """No such run."""

    def __init__(self, run: str, *, nearest: str | None = None) -> None:
        meant = f"; did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"there is no run {run!r} on this server{meant}")


class AttemptNotFound(NotFound):
    """The run has no such attempt."""

    def __init__(self, run: str, attempt: str) -> None:
        super().__init__(f"run {run!r} has no attempt {attempt!r}; POST /api/v1/runs registers one")


class FamilyNotFound(NotFound):
    """No such family of runs."""

    def __init__(self, family: str) -> None:
        super().__init__(f"there is no family {family!r} on this server; GET /api/v1/scaling lists them")


class AlertNotFound(NotFound):
    """No such alert."""

    def __init__(self, alert: int) -> None:
        super().__init__(f"there is no alert {alert}")


class SilenceNotFound(NotFound):
    """No such silence."""

    def __init__(self, silence: int) -> None:
        super().__init__(f"there is no silence {silence}; GET /api/v1/silences lists them")


class TokenNotFound(NotFound):
    """No such token."""

    def __init__(self, token: int) -> None:
        super().__init__(f"there is no token {token}; GET /api/v1/tokens lists them")


class Refused(ServerError):  # noqa: N818
    """What was sent is not taken; nothing of it was stored."""


class Malformed(Refused):
    """It cannot be read at all."""


class Invalid(Refused):
    """It can be read, and asks for something impossible."""


class TooLarge(Refused):
    """It is over a limit."""


class UnsupportedContent(Refused):
    """Its content type or encoding is not known."""


class NewerVersion(Refused):
    """It was written by a newer major version."""


class Conflict(Refused):
    """It contradicts what is stored."""


class Forbidden(Refused):
    """The token that was presented is not for it."""
