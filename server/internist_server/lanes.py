"""How many requests of one kind are worked on at once, how many wait, and who is next: every client in its turn."""

import asyncio
from collections import OrderedDict, deque
from typing import Final

RETRY_AFTER_S: Final = 2
"""When a client that was sent away may come again."""


class Busy(Exception):  # noqa: N818
    """There is no room, or there was none for too long: come again later."""


class Lane:
    """Room for requests of one kind, on one event loop.

    Of those that wait the next one is the oldest of the client that was served longest ago, so that a client with many
    requests keeps none from its turn.
    """

    def __init__(
        self, at_once: int, *, waiting: int = 0, of_one: int = 4, patience_s: float = 5.0, name: str = ""
    ) -> None:
        """A lane that is free.

        Args:
            at_once: requests that are worked on together.
            waiting: requests that may wait.
            of_one: of these so many of one client.
            patience_s: seconds after which one that waits is sent away.
            name: by which it is told of.
        """
        self.name = name
        self._at_once, self._most, self._of_one, self._patience_s = at_once, waiting, of_one, patience_s
        self._busy = self._count = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_closed = False

    @property
    def active(self) -> int:
        """Requests that are worked on."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._count

    def has_room(self, client: str) -> bool:
        """Whether a request of this client may come in or wait."""
        if self._is_closed:
            return False
        if self._busy < self._at_once:
            return True
        return self._count < self._most and len(self._queues.get(client, ())) < self._of_one

    async def enter(self, client: str) -> None:
        """Come in, or wait for it; every entry ends with `leave`.

        Raises:
            Busy: there was no room.
        """
        if not self.has_room(client):
            raise Busy
        if self._busy < self._at_once and not self._count:
            self._busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        self._count += 1
        try:
            async with asyncio.timeout(self._patience_s):
                await turn
        except TimeoutError as error:
            self._withdraw(client, turn)
            raise Busy from error
        except BaseException:
            self._withdraw(client, turn)
            raise

    def leave(self) -> None:
        """Make room for the next one."""
        self._busy -= 1
        self._let_in()

    def close(self) -> None:
        """Send everyone away who waits or comes."""
        self._is_closed = True
        for queue in self._queues.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(Busy())

    def _let_in(self) -> None:
        while self._busy < self._at_once and self._queues:
            client, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[client] = queue
            self._count -= 1
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    def _withdraw(self, client: str, turn: asyncio.Future[None]) -> None:
        """Forget one that waits no more; where it was let in just as it gave up, the next one is."""
        queue = self._queues.get(client)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._count -= 1
            if not queue:
                del self._queues[client]
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            self.leave()
