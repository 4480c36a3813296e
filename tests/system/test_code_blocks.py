"""Every Python block of README and docs runs as it is written, or says above it why it does not.

The recipes' page holds the scripts of examples/recipes, which tests/stacks runs.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import internist
from internist import optim
from tests.client.history.conftest import server  # noqa: F401  # a fixture
from tests.client.mup.mup_models import Llama
from tests.stacks.models import Gpt, cross_entropy, sentences

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/*.md")} - {ROOT / "docs" / "recipes.md"})
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.M | re.S
)
BLOCKS = [
    (page.name, text[: found.start("code")].count("\n") + 1, found["why"], textwrap.dedent(found["code"]))
    for page in PAGES
    for text in [page.read_text(encoding="utf-8")]
    for found in BLOCK.finditer(text)
]
RUN = [(name, line, code) for name, line, why, code in BLOCKS if why is None]


@pytest.fixture
def names(monkeypatch, tmp_path, server):  # noqa: F811
    """What a page may take for granted: a model, its optimizer, a monitor, and what its sentences speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")  # no collector listens where one would
    torch.manual_seed(0)
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: dict[str, Any] = {
        "internist": internist, "torch": torch, "model": model, "optimizer": optimizer, "server": server,
        "QKClip": optim.QKClip, "save": lambda _: None, "width": 16, "seed": 0, "lr": 1e-3,
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    }  # fmt: skip
    yield found
    if "forwarding" in found:
        found["forwarding"].close()
    internist.finish()


@pytest.mark.parametrize(("page", "line", "code"), RUN, ids=[f"{page}:{line}" for page, line, _ in RUN])
def test_a_block_runs_as_it_is_written(names, page, line, code):
    if "plan(" in code:
        names["model"] = Llama(256, 4)  # the pages speak of a base of this size
    if "monitor" in code or "demo" in code:
        names["monitor"] = demo(names, ends="monitor" not in code)

    exec(compile("\n" * line + code, page, "exec"), names)


def demo(names, *, ends):
    """A run called demo: under way, or over and on the server."""
    model, optimizer = names["model"], names["optimizer"]
    monitor = internist.watch(model, optimizer, name="demo" if ends else "under way", server=names["server"], every=1)
    for ids, targets in sentences(2):
        cross_entropy(model(ids), targets).backward()
        optimizer.step()
        internist.log(loss=1.0)
    if ends:
        monitor.finish()
    return monitor


def test_there_are_blocks_and_few_are_not_run():
    skipped = [(page, line) for page, line, why, _ in BLOCKS if why is not None]

    assert len(RUN) >= 8
    assert len(skipped) <= 3
