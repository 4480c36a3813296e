"""Migrates a database and dies in the middle: `python -m tests.server.killed_migrations URL EVERY` kills a child at
every so many statements, and says how many it killed."""

import os
import signal
import sys
from typing import Any

from sqlalchemy import Engine, event

from internist_migrations.upgrade import upgrade


def migrate_until(url: str, statement: int) -> None:
    """Migrate in this process, which dies when it is about to make this statement, counted from 0."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        if made == statement:
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1

    event.listen(Engine, "before_cursor_execute", count)
    upgrade(url)


def main(url: str, every: int) -> None:
    """Kill one child after the other, each further on, until one comes to the end; that one's work is what is left."""
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            migrate_until(url, killed * every)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "a migration failed after others were killed"
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    print(killed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
