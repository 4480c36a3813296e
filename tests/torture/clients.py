"""Trainings that die, and what is known of their steps."""

import logging
import os
import struct
import traceback
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

import internist
from internist.ship.sync import sync
from tests.server.sending import Sender, start_of
from tests.torture.ranks import MOST
from tests.torture.servers import Api, at_a_moment

STEP: Final = struct.Struct("<qf")
"""A step and its loss, as they were."""


class Training:
    """A small model that is watched."""

    def __init__(self, run: str, api: Api, directory: Path) -> None:
        self._run, self._api, self._directory = run, api, directory / run
        self._log = directory / f"{run}.steps"

    def live_for(self, seconds: float) -> None:
        """Train in another process, that dies so many seconds after its first step."""
        child = os.fork()
        if child == 0:
            try:
                self._train(seconds)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"training ended by itself: {os.waitstatus_to_exitcode(status)}"

    def require_shipped(self) -> int:
        """Ship what was kept: it is the steps from the first on, without a gap, each with the loss that it had; how
        many.

        Raises:
            AssertionError: it is not, or too little was kept.
        """
        report = sync(self._directory, server=self._api.address)
        assert not (report.refused or report.unreadable or report.corrupt), report
        trained = dict(STEP.iter_unpack(self._log.read_bytes()))
        shown = Sender(self._api, start_of(self._run), register=False).points("loss", pixels=MOST)
        kept = {step: float(np.float32(loss)) for step, loss in shown.items()}  # written with as many digits
        expected = {step: trained[step] for step in sorted(trained)[: len(kept)]}
        assert kept == expected, set(kept.items()) ^ set(expected.items())
        again = sync(self._directory, server=self._api.address, verify=True)
        assert again.missing == 0, again
        return len(kept)

    def _train(self, seconds: float) -> None:
        """In the child."""
        logging.disable()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        internist.watch(
            model,
            optimizer,
            id=self._run,
            server=self._api.address,
            directory=self._directory,
            every=1,
            max_overhead=0,
            mode="online",
        )
        log = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        step = 0
        while True:
            loss = (model(torch.randn(16, 8)) - 1.0).square().mean()
            os.write(log, STEP.pack(step, loss.item()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 0:
                at_a_moment(seconds)()
            step += 1
