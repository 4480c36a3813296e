"""The compiled passes of `passes.c`: made once by the machine's own C compiler, where there is one, and kept.

Nothing is compiled before a CPU's matrices are first stepped. Without a compiler, or with INTERNIST_NATIVE=0 in the
environment, there is no library, and who asks for it does without.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock

logger = logging.getLogger("internist")

SWITCH = "INTERNIST_NATIVE"
SOURCE = Path(__file__).with_name("passes.c")
INCLUDED = SOURCE.with_suffix(".h")

FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())
"""Further flags: the first of these that a compiler knows."""

PATIENCE = 60.0
"""Seconds after which a compiler is given up."""

_KINDS = {"i": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
_TAKES = {
    "accumulate": "ppif",
}
_TAKES_OF_TYPE = {
    "advance": "pppiff",
    "advance_with_images": "pppiiffpppp",
    "advance_projected": "pppiiffppppf",
    "correct": "piippppf",
    "combine": "pppiifppppf",
    "images": "piipppp",
    "write": "ppiff",
    "write_corrected": "ppiiffppppf",
    "write_projected": "ppiifffppp",
    "normalize": "piff",
    "scale_sum": "piffp",
}
_TAKES |= {f"{name}_{t}": kinds for name, kinds in _TAKES_OF_TYPE.items() for t in ("float", "bfloat16")}
"""What each function of the source takes: pointers, integers and numbers."""
_GIVE_A_NUMBER = ("advance_with_images", "advance_projected", "normalize")

_lock = Lock()


def library() -> ctypes.CDLL | None:
    """The compiled passes; None where there are none. The first call compiles them, which takes a fraction of a second.

    Every later one gives the same answer, in this process.
    """
    with _lock:
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH, "1") == "0":
        return None
    try:
        found = _loaded(_compiler())
        for name, kinds in _TAKES.items():
            function = getattr(found, name)
            function.argtypes = [_KINDS[kind] for kind in kinds]
            function.restype = ctypes.c_float if name.startswith(_GIVE_A_NUMBER) else None
    except Exception as error:  # a strange compiler, cache or home must not end a training run
        logger.debug("the CPU's passes of the optimizers are made of torch's operators: %s", error)
        return None
    return found


def _compiler() -> list[str]:
    """The command that compiles C: CC, as make knows it, else cc.

    Raises:
        FileNotFoundError: there is none.
    """
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise FileNotFoundError(f"no C compiler {' '.join(command)!r}")
    return command


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    """The library out of the user's cache, or compiled into it; where nothing can be kept, compiled for this process.

    Raises:
        OSError, SubprocessError: it cannot be compiled or loaded.
    """
    made_by = repr((compiler, FLAGS, TUNED)).encode()
    made_of = (SOURCE.read_bytes(), INCLUDED.read_bytes(), made_by, _processor())
    name = f"passes-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:20]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "internist"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder) as own:
                _compile(compiler, Path(own) / name).replace(folder / name)  # other processes see all or nothing
        return ctypes.CDLL(str(folder / name))
    except OSError:
        with tempfile.TemporaryDirectory(prefix="internist-") as own:
            return ctypes.CDLL(str(_compile(compiler, Path(own) / name)))


def _compile(compiler: list[str], target: Path) -> Path:
    failure = ""
    for tuned in TUNED:
        done = subprocess.run(
            [*compiler, *FLAGS, *tuned, "-o", str(target), str(SOURCE)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode == 0:
            return target
        failure = done.stderr
    raise subprocess.SubprocessError(f"{compiler[0]} failed: {failure.strip()[-300:]}")


def _processor() -> bytes:
    """What code made for this processor alone may not be moved away from."""
    lines = [platform.machine()]
    known = Path("/proc/cpuinfo")
    if known.exists():
        lines += sorted({line for line in known.read_text().splitlines() if line.startswith(("flags", "Features"))})
    else:
        lines.append(platform.processor())
    return "\n".join(lines).encode()
