"""Ranks that send whatever happens, keep all that they have sent, and know in the end what must be there."""

from collections.abc import Sequence
from typing import Final

import urllib3

from internist.schema.wire import Record
from internist_server.store_check import check
from tests.server.sending import Sender, module_series, start_of
from tests.torture.servers import Api

METRIC: Final = "activation.rms_max"
"""Of several ranks the largest."""
MODULES: Final = 3
EVERY: Final = 10
MOST: Final = 10_000
"""Points that a server shows at once, every one of them."""
AT_ONCE: Final = 400
"""Records of a request in the end."""


class Down(Exception):  # noqa: N818
    """The server is gone, or says that it cannot take anything now."""


class Rank:
    """One rank of a run."""

    def __init__(self, run: str, rank: int, ranks: int) -> None:
        self.rank = rank
        start = start_of(run, rank=rank, world_size=ranks, every=EVERY)
        self._sender = Sender(None, start, register=False)
        self._series = [module_series(n, METRIC, f"blocks.{n}") for n in range(MODULES)]
        self.records: list[Record] = self._sender.declare(self._series)
        self.steps = 0
        self.acknowledged = -1

    def introduce(self, api: Api) -> None:
        """Say who it is, and hear what the server has.

        Raises:
            Down: the server is.
            AssertionError: it lacks what was acknowledged.
        """
        self._sender.api = api
        try:
            answer = self._sender.post_start()
        except urllib3.exceptions.HTTPError as error:
            raise Down from error
        self._hear(answer)

    def send(self, api: Api, steps: int) -> None:
        """Send what is not acknowledged, and so many steps more.

        Raises:
            Down: the server is.
        """
        for _ in range(steps):
            step = self.steps * EVERY
            self.records.append(self._sender.frame(step, [value(self.rank, n, step) for n in range(MODULES)]))
            self.steps += 1
        self._sender.api = api
        try:
            answer = self._sender.post(self.records[self.acknowledged + 1 :])
        except urllib3.exceptions.HTTPError as error:
            raise Down from error
        self._hear(answer)

    def _hear(self, answer: object) -> None:
        status = answer.status_code  # type: ignore[attr-defined]
        if status in (503, 507):
            raise Down
        assert status == 200, answer.text  # type: ignore[attr-defined]
        reply = answer.json()  # type: ignore[attr-defined]
        assert not reply.get("refused"), reply
        assert reply["acknowledged"] >= self.acknowledged, "what was acknowledged is not there"
        self.acknowledged = reply["acknowledged"]

    def require_all_once(self, api: Api) -> None:
        """Send everything again: nothing of it is new."""
        self._sender.api = api
        for begin in range(0, len(self.records), AT_ONCE):
            reply = self._sender.send(self.records[begin : begin + AT_ONCE])
            assert reply["stored"] == 0, f"{reply['stored']} records had been acknowledged and were not there"

    def points(self, api: Api, module: int) -> dict[int, float]:
        """What the server shows of a module, by step."""
        self._sender.api = api
        found: dict[int, float] = {}
        for first in range(0, self.steps * EVERY, MOST * EVERY):
            last = first + MOST * EVERY - 1
            found |= self._sender.points(
                METRIC, subject=f"^blocks.{module}$", pixels=MOST, from_step=first, to_step=last
            )
        return found


class Run:
    """The ranks of one run."""

    def __init__(self, name: str, ranks: int) -> None:
        self.name = name
        self.ranks = [Rank(name, rank, ranks) for rank in range(ranks)]

    def introduce(self, api: Api) -> None:
        """All ranks say who they are."""
        for rank in self.ranks:
            rank.introduce(api)

    def send(self, apis: Sequence[Api], steps: int) -> None:
        """Each rank sends so many steps, to one server or to another."""
        for rank in self.ranks:
            rank.send(apis[rank.rank % len(apis)], steps)

    def catch_up(self, api: Api) -> None:
        """All ranks come to the same step, and everything is acknowledged."""
        self.introduce(api)
        last = max(rank.steps for rank in self.ranks)
        for rank in self.ranks:
            rank.send(api, last - rank.steps)
            assert rank.acknowledged == len(rank.records) - 1

    def require_whole(self, api: Api) -> None:
        """Nothing is lost, nothing doubled, and every value is what was sent.

        Raises:
            AssertionError: so it is not.
        """
        self.catch_up(api)
        first = self.ranks[0]
        steps = range(0, first.steps * EVERY, EVERY)
        for module in range(MODULES):
            expected = {step: max(value(rank.rank, module, step) for rank in self.ranks) for step in steps}
            assert first.points(api, module) == expected
        for rank in self.ranks:
            rank.require_all_once(api)


def value(rank: int, module: int, step: int) -> float:
    """What a rank measures of a module; a float32 holds it to the bit."""
    return 1.0 + (step * (module + 3) + rank * 7) % 1024 / 64


def require_sound(url: str) -> None:
    """What must be true of a store is.

    Raises:
        AssertionError: something is not.
    """
    problems = [f"{one.name}: {one.text}" for one in check(url) if one.state == "problem"]
    assert not problems, "; ".join(problems)
