"""Launchers: what the programs that start the processes of a job tell each of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from internist.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Launcher:
    """The variables of one launcher."""

    rank: str
    world_size: str
    local_rank: str
    job: tuple[str, ...] = ()
    """What together is the same for all processes of a job, and different for any other."""
    restart: str = ""
    """What tells its starts apart, where it is started again under the same name."""


LAUNCHERS: Final = (
    Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, and everyone who does as it does
    # of a batch script that starts one process the step has one task, however many the job asked for
    Launcher(
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
        "SLURM_RESTART_COUNT",
    ),
    Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", ("PMIX_NAMESPACE",)),
    Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("PMIX_NAMESPACE",)),  # MPICH, Intel MPI
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands in its job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place_of(environ: Mapping[str, str]) -> Place:
    """Where a process stands, as the first launcher says that tells both rank and size; alone if none does. The
    variables of torch count one by one.

    Raises:
        ConfigurationError: a variable is no whole number, or the rank is not below the size.
    """
    for launcher in LAUNCHERS:
        told = bool(environ.get(launcher.rank)), bool(environ.get(launcher.world_size))
        if all(told) or (any(told) and launcher is LAUNCHERS[0]):
            rank, size = number(environ, launcher.rank), max(1, number(environ, launcher.world_size))
            if rank >= size:
                raise ConfigurationError(f"{launcher.rank}={rank} is not below {launcher.world_size}={size}")
            return Place(rank, size, local_rank_of(environ))
    return Place(local_rank=local_rank_of(environ))


def local_rank_of(environ: Mapping[str, str]) -> int:
    """The number of a process on its machine.

    Raises:
        ConfigurationError: it is no whole number from 0.
    """
    known = (launcher.local_rank for launcher in LAUNCHERS if environ.get(launcher.local_rank))
    return number(environ, next(known, ""))


def job_of(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """What all processes of the job have in common with each other alone, and those of this start of it; None where no
    launcher says."""
    for launcher in LAUNCHERS[1:]:
        told = [environ.get(name, "") for name in launcher.job]
        if environ.get(launcher.rank) and told and all(told):
            job = "/".join(told)
            return job, f"{job}/{environ.get(launcher.restart) or 0}"
    return None


def number(environ: Mapping[str, str], name: str) -> int:
    """A variable's whole number; 0 where it is not set.

    Raises:
        ConfigurationError: it is no whole number from 0.
    """
    value = environ.get(name)
    if not value:
        return 0
    if not value.isdecimal():
        raise ConfigurationError(f"{name}={value!r}: expected a whole number from 0")
    return int(value)
