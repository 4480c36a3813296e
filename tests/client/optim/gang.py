"""Processes of one gloo group that stay up between tests and run a named function on every rank."""

import importlib
import os
import socket
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

import torch
from torch import distributed, multiprocessing

COLLECTIVE_SECONDS = 120
"""A collective that some rank does not join fails after this long instead of hanging."""
ANSWER_SECONDS = 150


class Gang:
    """So many ranks, each a process with one thread, waiting for work."""

    def __init__(self, world: int) -> None:
        self._world = world
        self._patience = ANSWER_SECONDS * max(1.0, world / 2)  # more ranks than cores take turns
        self._start()

    def _start(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])
        self._pipes, self._processes = [], []
        for rank in range(self._world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._world, port), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, module: str, function: str, /, *args: object) -> list[Any]:
        """What the function returned on each rank, which must be picklable: numbers, strings, lists.

        After a failure the processes are made anew: their collectives are out of step.
        """
        for pipe in self._pipes:
            pipe.send((module, function, args))
        until = monotonic() + self._patience
        answers = [
            pipe.recv() if pipe.poll(max(0.0, until - monotonic())) else (True, f"no answer in {self._patience} s")
            for pipe in self._pipes
        ]
        failures = [f"rank {rank}: {answer}" for rank, (failed, answer) in enumerate(answers) if failed]
        if failures:
            self.close()
            self._start()
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    distributed.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    while True:
        module, function, args = pipe.recv()
        try:
            pipe.send((False, getattr(importlib.import_module(module), function)(*args)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))
