"""Answers that many boards ask for at once."""

import asyncio
from typing import Any

import httpx

from internist_dashboard.shared import SharedAnswers
from internist_dashboard.viewer import VIEWER, Viewer
from tests.loops import run_apart

CALLBACK = "/_dash-update-component"


class Counting:
    """Answers with how often it was asked, once all who shall ask together have."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        number = self.asked
        await receive()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(number).encode()})


def answers(*questions: tuple[str, str, str]) -> tuple[int, list[str]]:
    """How often the board was asked, and what each got, for (address, body, token) asked at once."""

    async def ask(shared: Any, address: str, body: str, token: str) -> str:
        VIEWER.set(Viewer({"Cookie": token}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(shared), base_url="http://board") as client:
            return (await client.post(address, content=body)).text

    async def ask_all() -> tuple[int, list[str]]:
        counting = Counting()
        shared = SharedAnswers(counting)
        tasks = [asyncio.create_task(ask(shared, *question)) for question in questions]
        while not counting.asked:
            await asyncio.sleep(0)
        counting.may_answer.set()
        return counting.asked, await asyncio.gather(*tasks)

    return run_apart(ask_all())


def test_fifty_boards_that_ask_the_same_are_answered_once():
    _, got = answers(*[(f"{CALLBACK}?endId={number}", "{}", "t") for number in range(50)])

    assert set(got) == {"1"}


def test_another_question_or_another_viewer_is_answered_anew():
    assert len(set(answers((CALLBACK, "a", "t"), (CALLBACK, "b", "t"))[1])) == 2
    assert len(set(answers((CALLBACK, "a", "t"), (CALLBACK, "a", "u"))[1])) == 2
