"""The site of the docs: a page for every metric and condition, and a strict build that fetches nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs import site
from internist.schema.conditions import CONDITIONS, CRITERIA
from internist.schema.metrics import CATALOGUE

ROOT = Path(__file__).parents[2]
SECONDS = 170
"""For MkDocs to write a hundred pages, on a busy machine."""


def test_every_metric_and_condition_has_a_page_that_says_what_judges_it():
    pages = site.pages()

    assert {f"metrics/{metric.name}.md" for metric in CATALOGUE} <= set(pages)
    assert {f"conditions/{condition.name}.md" for condition in CONDITIONS} <= set(pages)
    for criterion in CRITERIA:
        assert f"../conditions/{criterion.condition}.md" in pages[f"metrics/{criterion.metric}.md"]
    assert "tau = 100" in pages["metrics/attention.max_logit.md"]
    assert "## GET /api/v1/runs/{run_id}/points" in pages["api.md"]


def test_no_page_that_is_made_takes_the_place_of_one_that_was_written():
    written = {path.name for path in (ROOT / "docs").glob("*.md")}

    assert written & set(site.pages()) == set()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "[a](docs/client.md#b)", "[a](client.md#b)"),
        ("docs/client.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/client.md", "[a](metrics.md) [b](https://x.y)", "[a](metrics.md) [b](https://x.y)"),
        ("benchmarks/RESULTS.md", "[a](../docs/faults.md)", "[a](faults.md)"),
    ],
)
def test_links_lead_where_their_targets_are_on_the_site(name, text, expected):
    assert site.moved(text, name) == expected


def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'internist[docs]'")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    page = (tmp_path / "conditions" / "update" / "index.html").read_text()
    assert 'src="http' not in page and "fonts.googleapis" not in page
    assert (tmp_path / "search" / "search_index.json").exists()
