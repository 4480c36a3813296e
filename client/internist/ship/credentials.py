"""What is shown to a server that asks for a token, and the file in which `internist login` keeps it."""

import contextlib
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from internist.errors import ConfigurationError
from internist.ship.connection import address_of

_LOG = logging.getLogger(__name__)

PRIVATE: Final = 0o600
"""The owner reads and writes, and nobody else."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def token_for(server: str, given: str | None = None, *, environ: Mapping[str, str] | None = None) -> str | None:
    """What to show to a server: what is given, else INTERNIST_TOKEN, else what `internist login` kept for it.

    A file that cannot be used is said in the log: training goes on without it.

    Args:
        server: its address.
        given: by an argument; empty: nothing.
        environ: None: the process's.

    Raises:
        ConfigurationError: the address cannot be one.
    """
    environ = os.environ if environ is None else environ
    named, address = given or environ.get("INTERNIST_TOKEN") or None, address_of(server)
    if named is not None:
        return named
    try:
        return kept(environ).get(address)
    except (ConfigurationError, OSError) as error:
        _LOG.warning("internist: what `internist login` kept is not used: %s", error)
        return None


def place(environ: Mapping[str, str]) -> Path | None:
    """The file with the tokens, whether it is there or not; None: this user has no home."""
    base, home = environ.get("XDG_CONFIG_HOME", ""), environ.get("HOME", "")
    if Path(base).is_absolute():  # the specification ignores others
        return Path(base) / "internist" / "tokens.json"
    return Path(home) / ".config" / "internist" / "tokens.json" if Path(home).is_absolute() else None


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """Tokens by the address of their server; none where the file is not there.

    Raises:
        ConfigurationError: others may read the file, or it is none that `internist login` wrote.
        OSError: it cannot be read.
    """
    file = place(environ)
    try:
        opened = None if file is None else file.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        opened = None
    if opened is None:
        return {}
    with opened:
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        if os.name == "posix" and mode & _OTHERS:
            raise ConfigurationError(f"{file} may be read by others (mode {mode:04o}): chmod 600 {file}")
        try:
            return msgspec.json.decode(opened.read(), type=dict[str, str])
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{file} does not hold tokens by server: {error}") from error


def keep(server: str, token: str, environ: Mapping[str, str]) -> Path:
    """Keep the token of a server; the file that it is in.

    Raises:
        ConfigurationError: this user has no home, or what is there cannot be used.
        OSError: the file cannot be written.
    """
    return _write(kept(environ) | {address_of(server): token}, environ)


def forget(server: str | None, environ: Mapping[str, str]) -> list[str]:
    """Forget the token of a server, or (None) of all; the addresses whose token was known."""
    known = kept(environ)
    gone = [one for one in known if server is None or one == address_of(server)]
    if gone:
        _write({one: token for one, token in known.items() if one not in gone}, environ)
    return gone


def _write(tokens: Mapping[str, str], environ: Mapping[str, str]) -> Path:
    """Replace the file as a whole: whoever reads it meanwhile sees what was, or what is."""
    file = place(environ)
    if file is None:
        raise ConfigurationError(
            "there is no place for the token: neither XDG_CONFIG_HOME nor HOME is an absolute path"
        )
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(msgspec.json.format(msgspec.json.encode(dict(tokens))) + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    return file
