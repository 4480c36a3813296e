"""Answers that many boards ask for at once."""

import asyncio
from typing import Any

import httpx
import orjson

from internist_dashboard.shared import SharedAnswers, chart_question
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


def asked(cursor: int, *, output: str = "loss-graph.figure", headline: str = "", **more: Any) -> bytes:
    """What a page asks, whose headline is no part of the question."""
    inputs = [
        {"id": "tick", "property": "data", "value": {"cursor": cursor} | more},
        {"id": "window", "property": "data", "value": None},
    ]
    state = [{"id": "page", "property": "data", "value": {"run": "sick", "headline": headline}}]
    return orjson.dumps({"output": output, "inputs": inputs, "state": state})


def test_a_chart_is_one_question_for_as_long_as_nothing_is_new_of_its_run():
    assert chart_question(asked(7)) == chart_question(asked(7, headline="other"))
    assert chart_question(asked(7)) != chart_question(asked(8))


def test_what_tells_ages_or_is_asked_for_again_serves_a_moment_only():
    assert chart_question(asked(7, output="..badge.children...sentence.children..")) is None
    assert chart_question(asked(7, again=1)) is None
    assert chart_question(b"{}") is None
    assert chart_question(b"no question") is None
