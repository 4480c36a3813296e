"""The client's errors.

InternistError
├── ConfigurationError   an argument or variable is wrong (also a ValueError)
├── NothingToWatch       the model or the optimizer has nothing to measure (also a ValueError)
├── SpoolError           the spool directory cannot be used (also an OSError)
└── ServerError          the server cannot be used
    ├── ServerUnreachable
    │   └── ConnectionBroken   it was cut, or fell silent, while a request was under way
    ├── NotInternist     what answered is no Internist server
    ├── ServerBusy       it has too much to do, and says when to come again
    ├── TokenRefused
    └── RequestRefused   it understood the request and will not take it
        └── BodyTooLarge the server, or something on the way to it, takes no body of this size
"""


class InternistError(Exception):
    """Base of all errors that Internist raises. None is raised while training; only from the calls a user makes."""


class ConfigurationError(InternistError, ValueError):
    """An argument or environment variable is wrong."""


class NothingToWatch(InternistError, ValueError):  # noqa: N818
    """The model or the optimizer has nothing to measure."""


class SpoolError(InternistError, OSError):
    """The spool directory cannot be used."""


class ServerError(InternistError):
    """The server cannot be used.

    Attributes:
        status: the HTTP status that was answered; None without an answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerUnreachable(ServerError):  # noqa: N818
    """Nothing answers at the server's address."""


class ConnectionBroken(ServerUnreachable):
    """The connection was cut, or fell silent, while a request was under way: that is also how some proxies and routers
    treat a body that is too large for them."""


class NotInternist(ServerError):  # noqa: N818
    """Something answers at the server's address, but it is no Internist server."""


class ServerBusy(ServerError):  # noqa: N818
    """The server has more to do than it can.

    Attributes:
        wait_s: seconds after which it asks to be asked again.
    """

    def __init__(self, message: str, *, status: int | None = None, wait_s: float = 1.0) -> None:
        super().__init__(message, status=status)
        self.wait_s = wait_s


class TokenRefused(ServerError):  # noqa: N818
    """The server asks for another token."""


class RequestRefused(ServerError):  # noqa: N818
    """The server understood the request and will not take it, for example (409) because it is of a format newer than it
    knows."""


class BodyTooLarge(RequestRefused):
    """The server, or a proxy in between, takes no body of this size."""
