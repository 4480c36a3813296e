"""A file that one process at a time holds, on every system: by `flock`, by Windows' byte locks, or not at all."""

import errno
import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from internist.ship import files

_LOG = logging.getLogger(__name__)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TRIES = 3
_PAUSE_S = 0.05


def _module(name: str) -> Any:
    """A module of the standard library that not every system has."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_FCNTL = _module("fcntl")
_MSVCRT = _module("msvcrt")


class FileLock:
    """Held from its making to its release, or to the end of the process.

    Where the system or the file system knows no locks, everyone gets it: two writers are then not told apart, and one
    line in the log says so.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._file = files.open_for_writing(path)
        try:
            if not _hold(self._file):
                _LOG.info("%s cannot be locked here: a second writer of this directory would not be noticed", path)
        except OSError:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let the next one have it."""
        _let_go(self._file)
        os.close(self._file)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file that may not be there; False where that cannot be known."""
    try:
        file = files.open_for_writing(path, create=False)
    except OSError:
        return False
    try:
        if _hold(file, shared=True):
            _let_go(file)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _hold(file: int, *, shared: bool = False) -> bool:
    """Take the lock; whether there is such a thing here.

    Raises:
        BlockingIOError: someone else has it.
    """
    if _FCNTL is not None:
        try:
            _FCNTL.flock(file, (_FCNTL.LOCK_SH if shared else _FCNTL.LOCK_EX) | _FCNTL.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:  # some network file systems have no locks
                raise
            return False
        return True
    if _MSVCRT is not None:
        return _hold_first_byte(file, tries=1 if shared else _TRIES)
    return False


def _hold_first_byte(file: int, *, tries: int) -> bool:
    """Windows' way. Several tries: who only asks whether it is held holds it for a moment too."""
    for left in reversed(range(tries)):
        try:
            os.lseek(file, 0, os.SEEK_SET)
            _MSVCRT.locking(file, _MSVCRT.LK_NBLCK, 1)
        except OSError as error:  # EACCES or EDEADLOCK, whose numbers differ
            if left == 0:
                raise BlockingIOError(errno.EAGAIN, "another process holds it") from error
            time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _let_go(file: int) -> None:
    if _FCNTL is None and _MSVCRT is not None:
        os.lseek(file, 0, os.SEEK_SET)
        _MSVCRT.locking(file, _MSVCRT.LK_UNLCK, 1)
