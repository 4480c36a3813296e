"""Errors of the board.

BoardError
├── NotSignedIn      the API asks for a token that the viewer did not show
├── NotFound         the API knows no such run, series or alert
├── Refused          the API understood the question and says why it has no answer
└── ServerUnwell     the API did not answer, or not as agreed
"""


class BoardError(Exception):
    """A page cannot be drawn; the message says what happened and what to do."""


class NotSignedIn(BoardError):  # noqa: N818 - it is a state of the viewer, met on every first visit
    """The API asks for a token that the viewer did not show, or refused the one shown."""


class NotFound(BoardError):  # noqa: N818 - named as the page says it
    """The API knows no such run, series or alert."""


class Refused(BoardError):  # noqa: N818 - named as the page says it
    """The API understood the question and says why it has no answer."""


class ServerUnwell(BoardError):  # noqa: N818 - named as the page says it
    """The API did not answer, or not as agreed."""
