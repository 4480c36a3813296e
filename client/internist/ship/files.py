"""The few calls on files that differ between systems, each in a form that all of them know.

No file stays open while it is renamed, and who deletes a file expects that a reader may still have it open: Windows
allows neither. Descriptors are not inherited by programs that are started (PEP 446).
"""

import logging
import os
from pathlib import Path

_LOG = logging.getLogger(__name__)
_BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows translates line ends


def open_for_reading(path: Path) -> int:
    """A descriptor of a file that is there."""
    return os.open(path, os.O_RDONLY | _BINARY)


def open_for_writing(path: Path, *, create: bool = True, empty: bool = False) -> int:
    """A descriptor of a file, made where it is missing (`create`), emptied where it is not (`empty`)."""
    return os.open(path, os.O_RDWR | _BINARY | (os.O_CREAT if create else 0) | (os.O_TRUNC if empty else 0), 0o644)


def read_at(file: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from an offset on. One thread at a time may use the descriptor."""
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, size)


def write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at an offset, or nothing. One thread at a time may use the descriptor.

    Raises:
        OSError: there was no room; the file ends at the offset.
    """
    done = 0
    try:
        while done < len(data):
            done += _write_some(file, data[done:] if done else data, offset + done)
    except OSError:
        os.ftruncate(file, offset)
        raise


def is_deleted(file: int) -> bool:
    """Whether an open file has no name any more."""
    return os.fstat(file).st_nlink == 0


def delete(path: Path) -> bool:
    """Delete a file; False where it cannot be done while a reader has it open."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True


def sync(path: Path) -> None:
    """Put a file, or the names in a directory, on the disk; a failure is the disk's last word and no loss for the
    caller. Windows cannot open directories: it keeps their names by itself."""
    if os.name == "nt" and path.is_dir():
        return
    try:
        file = open_for_reading(path) if path.is_dir() else open_for_writing(path, create=False)
    except OSError as error:
        _LOG.warning("%s is gone: %s", path, error.strerror or error)
        return
    try:
        os.fsync(file)
    except OSError as error:
        _LOG.warning("%s may not be on the disk: %s", path, error.strerror or error)
    finally:
        os.close(file)


def _write_some(file: int, data: bytes, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.write(file, data)
