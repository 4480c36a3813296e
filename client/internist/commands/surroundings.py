"""What surrounds a training run on this machine: versions, processor, server, spool, settings, other tools' patches."""

import email.utils
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
import urllib3
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.nn.utils import clip_grad
from torch.optim import optimizer as torch_optimizer

from internist.errors import SpoolError
from internist.schema.wire import VERSION, RunStart
from internist.ship.segments import rank_directories
from internist.ship.spool import Spool, is_being_written

CLOCK_SKEW_S: Final = 30.0
"""A server tells runs that live from lost ones by its own clock within 60 s."""
FREE_BYTES: Final = 1 << 30
"""What one rank's spool may take."""
_TIMEOUT: Final = urllib3.Timeout(connect=2.0, read=5.0)
_SECRET: Final = ("TOKEN", "SECRET", "PASSWORD")

State = Literal["ok", "note", "problem"]
"""`note`: not as usual, measurements arrive nevertheless; `problem`: some are lost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    name: str
    state: State
    text: str


def surroundings(*, server: str, token: str | None, directory: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that can be seen without a model."""
    yield from _versions()
    yield from _machine(environ)
    yield from _settings(environ)
    yield from server_findings(server, token)
    yield from spool_findings(directory)


def patches() -> Iterator[Finding]:
    """Which of the places that are measured have been taken by somebody else."""
    for owner, name in ((functional, "scaled_dot_product_attention"), (clip_grad, "clip_grad_norm_")):
        function = getattr(owner, name)
        home = getattr(function, "__module__", None) or ""
        is_own = home.startswith(("torch", "internist")) or type(function).__name__ == "builtin_function_or_method"
        text = "torch's own" if is_own else f"replaced by {home}; what it calls is measured, what it does not is not"
        yield Finding("patches", name, "ok" if is_own else "note", text)
    globally = {
        "forward hooks": (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks),
        "optimizer hooks": (
            torch_optimizer._global_optimizer_pre_hooks,
            torch_optimizer._global_optimizer_post_hooks,
        ),
    }
    for name, places in globally.items():
        homes = sorted({_home(hook) for place in places for hook in place.values()} - {"internist", "torch"})
        yield Finding(
            "patches", f"global {name}", "note" if homes else "ok", f"of {', '.join(homes)}" if homes else "none"
        )


def server_findings(server: str, token: str | None) -> Iterator[Finding]:
    """Whether the server answers, what it is, whether it takes the token, and how its clock goes."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib3.PoolManager(timeout=_TIMEOUT, retries=False) as pool:
        try:
            health = pool.request("GET", f"{server}/healthz", redirect=False)
            about = pool.request("GET", f"{server}/openapi.json", headers=headers, redirect=False)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = str(error).rpartition(": ")[2] or type(error).__name__
            yield Finding("server", server, "note", f"does not answer ({reason}); the spool waits: `internist serve`")
            return
    if health.status != 200 or _field(health.data, "service") != "internist":
        yield Finding("server", server, "problem", f"what answers there is no Internist server ({health.status})")
        return
    yield Finding("server", server, "ok", "answers")
    if about.status in (401, 403):
        wrong = "does not take the token" if token else "asks for a token: INTERNIST_TOKEN, or `internist login`"
        yield Finding("server", "token", "problem", wrong)
    else:
        yield Finding("server", "token", "ok", "taken" if token else "none is asked for")
        yield Finding("server", "version", "ok", str(_field(about.data, "info", "version") or "not said"))
    yield _clock(health.headers.get("Date"))


def spool_findings(directory: Path) -> Iterator[Finding]:
    """Whether measurements can be kept, and what waits there."""
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as place:
            spool = Spool(Path(place), _start())
            locks = is_being_written(spool.directory)
            spool.close()
        waiting = {path.parents[1] for path in rank_directories(directory)}
        free = shutil.disk_usage(directory).free
    except (SpoolError, OSError) as error:
        yield Finding("spool", str(directory), "problem", f"cannot be written: {error}")
        return
    finally:
        if not existed and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    yield Finding("spool", str(directory), "ok", "can be written" if existed else "can be made and written")
    works = "works" if locks else "does not work here: two writers of one spool are not told apart"
    yield Finding("spool", "lock", "ok" if locks else "note", works)
    yield Finding("spool", "free", "ok" if free >= FREE_BYTES else "note", f"{free / (1 << 30):.1f} GiB")
    advice = "; `internist sync` ships what the server has not of them" if waiting else ""
    yield Finding("spool", "runs kept", "ok", f"{len(waiting)}{advice}")


def _versions() -> Iterator[Finding]:
    yield Finding(
        "versions", "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield Finding("versions", "internist", "ok", f"{_installed('internist')}, wire format {VERSION}")
    yield Finding("versions", "torch", "ok", torch.__version__)
    yield Finding(
        "versions", "numpy", "ok", _installed("numpy") or "none: a CPU's activations are read by torch, slower"
    )


def _machine(environ: Mapping[str, str]) -> Iterator[Finding]:
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("machine", "processor", "ok", f"{capability}, {torch.get_num_threads()} threads")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("machine", "cuda", "ok", ", ".join(names) or "none")
    compiler = (environ.get("CC") or "cc").split()[0]
    found = shutil.which(compiler)
    text = found or f"none ({compiler} is not found): the optimizers step without compiled passes"
    yield Finding("machine", "C compiler", "ok", text)


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(name for name in environ if name.startswith("INTERNIST_")):
        hidden = any(word in name for word in _SECRET)
        yield Finding("settings", name, "ok", "set, not shown" if hidden else environ[name])


def _clock(date: str | None) -> Finding:
    try:
        server_s = email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Finding("server", "clock", "note", "the server does not tell its time")
    skew_s = server_s - time.time()
    if abs(skew_s) <= CLOCK_SKEW_S:
        return Finding("server", "clock", "ok", f"{skew_s:+.0f} s from this machine's")
    return Finding(
        "server", "clock", "note", f"{skew_s:+.0f} s from this machine's; the board tells times by the server's"
    )


def _field(body: bytes, *names: str) -> Any:
    """A field of a JSON answer; None where there is none."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return None
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _home(hook: Any) -> str:
    """The package that a hook comes from."""
    function = getattr(hook, "__wrapped__", hook)
    return str(getattr(function, "__module__", None) or type(function).__module__).partition(".")[0]


def _start() -> RunStart:
    now_ms = time.time_ns() // 1_000_000
    return RunStart(VERSION, "doctor", str(os.getpid()), 0, 1, "doctor", "doctor", 1, now_ms)
