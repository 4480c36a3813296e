"""The `internist` command. Its subcommands are entry points of the group `internist.commands`, loaded when called."""

import ast
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Final, cast

from internist import __version__
from internist.errors import InternistError

GROUP = "internist.commands"
FAILURE, USAGE, INTERRUPTED = 1, 2, 130
COMPLETING = "_INTERNIST_COMPLETE"
"""Set by a shell that completes a line: see `internist completion`."""

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("completion", "export", "import", "report", "runs", "top"), ("cli",)),
    **dict.fromkeys(("archive", "backup", "receivers", "restore", "rules", "serve", "unarchive"), ("server",)),
    "demo": ("server", "torch"),
    "scaling": ("mup",),
}
"""What a command needs beyond the client. It is written here, so that a list of commands need not load a server to be
shown."""

_OPTIONAL = re.compile(r"^([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]")
_NOT_OFFERED = ("dev", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the arguments name.

    Returns:
        0 when it did its work, 1 when it failed, 2 when the arguments are wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if COMPLETING in os.environ:
        return _complete()
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if arguments and arguments[0] in ("--version", "-V"):
        print(f"internist {__version__}")
        return 0
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview(commands))
        return 0 if arguments else USAGE
    name, *rest = arguments
    if name not in commands:
        return _fail(f"internist: there is no command {name!r}; there are {', '.join(sorted(commands))}", USAGE)
    try:
        return int(_load(commands[name])(rest) or 0)
    except ModuleNotFoundError as error:
        return _fail(f"internist {name}: {_missing(error)}")
    except InternistError as error:
        return _fail(f"internist {name}: {error}")
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.code, int):
            return stop.code
        return _fail(str(stop.code)) if stop.code else 0


def extra_of(module: str) -> str | None:
    """The extra that installs a module, by the requirements of this distribution; None if none does."""
    wanted = module.partition(".")[0].replace("_", "-").lower()
    try:
        optional = [match.groups() for line in requires("internist") or () if (match := _OPTIONAL.match(line))]
    except PackageNotFoundError:
        return None
    extras = [extra for name, extra in optional if name.lower() == wanted and extra not in _NOT_OFFERED]
    return extras[0] if extras else None


def is_installed(extra: str) -> bool:
    """Whether all that an extra asks for is there."""
    try:
        optional = [match.groups() for line in requires("internist") or () if (match := _OPTIONAL.match(line))]
        for name, of in optional:
            if of == extra:
                distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _complete() -> int:
    """Answer a shell that asks how a line goes on; it is told nothing where the extra is missing."""
    try:
        from internist.commands.completion import answer
    except ModuleNotFoundError:
        return FAILURE
    return answer()


def _load(entry: EntryPoint) -> Callable[[list[str]], int]:
    try:
        return cast(Callable[[list[str]], int], entry.load())
    except ModuleNotFoundError as error:
        raise InternistError(_missing(error)) from error
    except (ImportError, AttributeError) as error:
        raise InternistError(f"cannot be loaded: {error}") from error


def _overview(commands: dict[str, EntryPoint]) -> str:
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {_summary(commands[name])}" for name in sorted(commands)]
    usage = "usage: internist COMMAND [ARGUMENT ...]     internist COMMAND --help     internist --version"
    return "\n".join([usage, "", "A doctor for PyTorch training runs.", "", *lines])


def _summary(entry: EntryPoint) -> str:
    """The first line of a command's docstring, which is read and not loaded, or what has to be installed to have it."""
    missing = [extra for extra in EXTRAS.get(entry.name, ()) if not is_installed(extra)]
    if missing:
        return f"(needs pip install 'internist[{','.join(missing)}]')"
    try:
        spec = find_spec(entry.module)
    except ModuleNotFoundError as error:
        return f"({_missing(error)})"
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return f"(cannot be loaded: {entry.module} has no {entry.attr})"


def _missing(error: ModuleNotFoundError) -> str:
    """What to type so that the module is there."""
    extra = extra_of(error.name or "")
    return f"needs pip install 'internist[{extra}]'" if extra else f"cannot be loaded: {error}"


def _fail(message: str, code: int = FAILURE) -> int:
    print(message, file=sys.stderr)
    return code
