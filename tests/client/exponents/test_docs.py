"""The page on the scaling check says what the code has."""

from pathlib import Path

from internist.scaling.causes import MISTAKES
from internist.scaling.expected import QUANTITIES

PAGE = Path("docs/scaling.md").read_text()


def test_every_mistake_is_on_the_page_in_the_words_of_the_report():
    missing = [m.id for m in MISTAKES if f"| `{m.id}` | {m.sentence} | {m.fact} |" not in PAGE]

    assert missing == []


def test_every_judged_metric_is_on_the_page():
    judged = {quantity.metric for quantity in QUANTITIES if quantity.width is not None}

    assert [metric for metric in sorted(judged) if f"`{metric}`" not in PAGE] == []
