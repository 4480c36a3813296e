"""A thread that posts JSON to others until it is stopped, and the one way in which it does."""

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping

import httpx

from internist_server.alerts.calling import open_client
from internist_server.errors import DeliveryError

_SHOWN = 200
"""Characters of an answer that are told."""


def post(client: httpx.Client, url: str, body: object, *, headers: Mapping[str, str] | None = None) -> None:
    """Posts a body.

    Raises:
        DeliveryError: it was answered with an error.
        httpx.HTTPError: it was not answered.
    """
    content = json.dumps(body, allow_nan=False).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    with client.stream("POST", url, content=content, headers=headers) as reply:
        if not reply.is_success:
            text = next(reply.iter_text(_SHOWN), "")  # an answer without an end is nothing to wait for
            raise DeliveryError(f"answered {reply.status_code}: {text[:_SHOWN]}".rstrip(": "))


class Poster(threading.Thread, ABC):
    """Does its rounds, one after the other, each when it is woken or when its wait is over."""

    def __init__(self, name: str, *, timeout_s: float, may_be_local: bool = True) -> None:
        """A thread that is not started yet.

        Args:
            name: of the thread.
            timeout_s: seconds after which a request that is not answered is given up.
            may_be_local: whether it may post to this machine and its link.
        """
        super().__init__(name=name, daemon=True)
        self._timeout_s, self._may_be_local = timeout_s, may_be_local
        self._due, self._stopping = threading.Event(), threading.Event()

    def wake(self) -> None:
        """Begin a round at once; callable from any thread."""
        self._due.set()

    def stop(self) -> None:
        """End the thread after the request in hand."""
        self._stopping.set()
        self._due.set()

    def run(self) -> None:
        """Go round until stopped."""
        with open_client(self._timeout_s, may_be_local=self._may_be_local) as client:
            while not self._stopping.is_set():
                self._due.clear()
                self.go_round(client)
                self.wait()

    @abstractmethod
    def go_round(self, client: httpx.Client) -> None:
        """Post what is due. Nothing that goes wrong may leave it: it would end the thread."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for the next round."""
