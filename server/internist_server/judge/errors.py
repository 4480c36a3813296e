"""The judge's errors.

JudgeError
├── JudgeStateError   the stored state of a judge cannot be read (also a ValueError)
└── OutOfOrder        a step was to be judged that is not after the last one (also a ValueError)
"""

from internist_server.errors import ServerError


class JudgeError(ServerError):
    """Base of the judge's errors."""


class JudgeStateError(JudgeError, ValueError):
    """The stored state of a judge cannot be read: damaged, of another version, or of other series."""


class OutOfOrder(JudgeError, ValueError):  # noqa: N818
    """A step was to be judged that is not after the last one."""
