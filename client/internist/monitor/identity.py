"""Identity: run, attempt, rank, mesh: who is speaking, agreed upon by all ranks without a collective."""

import hashlib
import itertools
import logging
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol, cast

from internist.errors import ConfigurationError
from internist.monitor.launchers import Place, job_of, local_rank_of, place_of
from internist.ship.segments import rank_directories, read_start

_LOG = logging.getLogger(__name__)
_ID: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
_AGREEMENT_S: Final = 30.0
_CALLS = itertools.count()
"""How often this process asked: ranks that watch the same models in the same order share each answer."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is speaking.

    Attributes:
        run: the training job.
        attempt: one start of it.
        parent: the attempt that this one resumes, if any.
        rank: of this process, from 0.
        world_size: number of processes.
        local_rank: of this process on its machine.
        mesh: coordinates of this rank by mesh dimension.
    """

    run: str
    attempt: str
    parent: str | None = None
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    mesh: dict[str, int] = field(default_factory=dict)


class Store(Protocol):
    """What is used of a c10d store."""

    def set(self, key: str, value: str) -> None:
        """Let every process read a value."""

    def get(self, key: str) -> bytes:
        """Read a value that some process has set."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait until keys are set."""

    def clone(self) -> "Store":
        """Another one at the same place, for another thread."""


class _Distributed(Protocol):
    """What is used of `torch.distributed`."""

    def is_available(self) -> bool: ...
    def is_initialized(self) -> bool: ...
    def get_rank(self) -> int: ...
    def get_world_size(self) -> int: ...


def identify(*, id: str | None, resume: str, directory: Path, environ: Mapping[str, str]) -> Identity:
    """Who this process is.

    The run is `id`, else `INTERNIST_RUN_ID`, else torchelastic's run id; the attempt is `INTERNIST_ATTEMPT`, else
    torchelastic's restart. What is still open, rank 0 draws and the other ranks read from the default c10d store if
    `torch.distributed` is initialised; else it follows from the job and step of SLURM, or from the namespace of
    mpirun. Rank 0 never waits; another rank waits 30 s at most.

    Args:
        id: the run, where the user names it.
        resume: `auto`: a run that has an earlier attempt in `directory` resumes it; `never`: it does not; `must`: it
            has to have one.
        directory: the root of all spools.
        environ: the environment.

    Raises:
        ConfigurationError: an id, a rank or `resume` is not a valid value, or there is nothing that must be resumed.
    """
    if resume not in ("auto", "never", "must"):
        raise ConfigurationError(f'resume={resume!r}: expected "auto", "never" or "must"')
    place = _place(environ)
    rank, world_size = place.rank, place.world_size
    named = checked_id(id, "id") if id is not None else _from(environ, "INTERNIST_RUN_ID") or _elastic_run(environ)
    if named is None and resume == "must":
        raise ConfigurationError('resume="must" needs the run to resume: give id= or INTERNIST_RUN_ID')
    attempt = _from(environ, "INTERNIST_ATTEMPT") or _elastic_attempt(environ)
    run = named
    if run is None or attempt is None:
        drawn_run, drawn_attempt = _agree(place, environ)
        run, attempt = run or drawn_run, attempt or drawn_attempt
    parent = None if named is None or resume == "never" else _newest_attempt_before(directory / run, attempt)
    if resume == "must" and parent is None and rank == 0:  # other machines may not see the directory
        raise ConfigurationError(f'resume="must", but {directory} holds no earlier attempt of run {run!r}')
    return Identity(
        run=run,
        attempt=attempt,
        parent=parent,
        rank=rank,
        world_size=world_size,
        local_rank=place.local_rank,
        mesh={"dp": rank} if world_size > 1 else {},
    )


def checked_id(value: str, name: str) -> str:
    """The id itself, if it may be one.

    Raises:
        ConfigurationError: it is not 1 to 128 of the characters that ids are made of.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ConfigurationError(f"{name}={value!r}: expected 1 to 128 characters out of A-Z a-z 0-9 . _ -")
    return value


def _from(environ: Mapping[str, str], name: str) -> str | None:
    value = environ.get(name)
    return checked_id(value, name) if value else None


def _elastic_run(environ: Mapping[str, str]) -> str | None:
    """torchelastic's run id; `none` is what it says when it has none."""
    value = environ.get("TORCHELASTIC_RUN_ID")
    if not value or value == "none":
        return None
    return value if _ID.fullmatch(value) else _digest(value)


def _elastic_attempt(environ: Mapping[str, str]) -> str | None:
    """torchelastic's restart, told apart from other starts by the address where its workers meet.

    The count alone is no identity: it starts at 0 whenever the same run id is submitted again, and it does not rise
    when workers restart because a machine joined or left.
    """
    count = environ.get("TORCHELASTIC_RESTART_COUNT")
    if not count or environ.get("TORCHELASTIC_RUN_ID", "none") == "none":
        return None
    return f"{count}-{_digest(environ.get('MASTER_ADDR', ''), environ.get('MASTER_PORT', ''))[:8]}"


def _place(environ: Mapping[str, str]) -> Place:
    """Where this process stands: as `torch.distributed` says where it is initialised, else as its launcher does."""
    distributed = _distributed()
    if distributed is None:
        return place_of(environ)
    return Place(distributed.get_rank(), distributed.get_world_size(), local_rank_of(environ))


def _agree(place: Place, environ: Mapping[str, str]) -> tuple[str, str]:
    """A run and an attempt id that all ranks share if they can talk to each other, or if their launcher names the job;
    random ones if not."""
    rank, world_size = place.rank, place.world_size
    run, attempt = secrets.token_hex(16), secrets.token_hex(16)
    store = default_store() if world_size > 1 else None
    if store is None:
        job = job_of(environ) if world_size > 1 else None
        if job is not None:
            turn = str(next(_CALLS))
            return _digest("run", job[0], turn), _digest("attempt", job[1], turn)
        if world_size > 1:
            _LOG.warning(
                "rank %d of %d cannot ask the others which run this is, and reports a run of its own: call"
                " torch.distributed.init_process_group first, or set INTERNIST_RUN_ID and INTERNIST_ATTEMPT",
                rank, world_size,
            )  # fmt: skip
        return run, attempt
    key = f"internist/identity/{next(_CALLS)}"
    if rank == 0:
        store.set(key, f"{run} {attempt}")
        return run, attempt
    try:
        store.wait([key], timedelta(seconds=_AGREEMENT_S))
        agreed = store.get(key).decode().split()
    except (RuntimeError, LookupError) as error:  # what stores raise on a timeout differs by backend and version
        _LOG.warning("rank %d heard of no run from rank 0 and reports one of its own: %s", rank, error)
        return run, attempt
    return agreed[0], agreed[1]


def _distributed() -> _Distributed | None:
    """`torch.distributed`, if the training has initialised it. It is never imported from here."""
    module = sys.modules.get("torch.distributed")
    if module is None:
        return None
    distributed = cast(_Distributed, module)
    return distributed if distributed.is_available() and distributed.is_initialized() else None


def default_store() -> Store | None:
    """The store that the processes of `torch.distributed` meet at, if the training has initialised it."""
    if _distributed() is None:
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    return cast(Store, _get_default_store())


def own_store() -> Store | None:
    """The same for a thread of its own: one that waits at a store keeps others from it."""
    store = default_store()
    return None if store is None else store.clone()


def _newest_attempt_before(run_directory: Path, attempt: str) -> str | None:
    """The attempt of this run that an attempt resumes, by what the spools on this machine say."""
    starts = [start for path in rank_directories(run_directory) if (start := read_start(path)) is not None]
    own = [start for start in starts if start.attempt == attempt]
    if own:  # this process goes on with an attempt that has begun: it keeps its parent
        return own[0].parent
    earlier = max(starts, key=lambda start: start.started_at_ms, default=None)
    return earlier.attempt if earlier else None


def _digest(*values: str) -> str:
    return hashlib.sha256(":".join(values).encode()).hexdigest()[:32]
