"""The client's errors.

InternistError
├── ConfigurationError   an argument or variable is wrong, or asks for what is not built yet (also a ValueError)
├── NothingToWatch       the model or the optimizer has nothing to measure (also a ValueError)
├── SpoolError           the spool directory cannot be used (also an OSError)
└── ServerError          the server cannot be used
    ├── ServerUnreachable
    ├── NotInternist     something answers there, but it is no Internist server
    ├── TokenRefused
    └── RequestRefused   it understood the request and will not take it
"""


class InternistError(Exception):
    """Base of all errors that Internist raises. None is raised while training; only from the calls a user makes."""


class ConfigurationError(InternistError, ValueError):
    """An argument or environment variable is wrong, or asks for what is not built yet."""


class NothingToWatch(InternistError, ValueError):  # noqa: N818
    """The model or the optimizer has nothing to measure."""


class SpoolError(InternistError, OSError):
    """The spool directory cannot be used."""


class ServerError(InternistError):
    """The server cannot be used."""


class ServerUnreachable(ServerError):  # noqa: N818
    """Nothing answers at the server's address."""


class NotInternist(ServerError):  # noqa: N818
    """Something answers at the server's address, but it is no Internist server."""


class TokenRefused(ServerError):  # noqa: N818
    """The server asks for another token."""


class RequestRefused(ServerError):  # noqa: N818
    """The server understood the request and will not take it.

    Attributes:
        status: the HTTP status it answered: 409 for a format newer than it knows, 413 for a request too large.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
