"""The pages of the site: those of docs/, those of the repository's root, and one for each metric and condition.

`mkdocs build --strict` uses `on_files`; everything else is text, made of the schema.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from docs.catalogue import CADENCES, CRITERION_HEADS, MERGES, criterion_cells, row, table
from internist.schema import rules
from internist.schema.conditions import CONDITIONS, CRITERIA, Condition, Criterion
from internist.schema.metrics import CATALOGUE, METRICS, Metric

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
OF_THE_ROOT: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "LICENSE": "license.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""Pages that lie outside docs/, and where the site has them."""
_LINK: Final = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_COSTS: Final = {
    "light": "Little: a reduction over what the step has in memory anyway, on every `every`-th step.",
    "model_heavy": "A replay of a few tokens through the model, or of attention's scores, ten times rarer.",
    "matrix_heavy": "Products with the matrix, for a rotating quarter of the matrices, ten times rarer.",
    "logged": "None: the run tells it.",
}


def pages() -> dict[str, str]:
    """Every page that is not a file of docs/, by its path on the site."""
    made = {home: moved((ROOT / name).read_text(encoding="utf-8"), name) for name, home in OF_THE_ROOT.items()}
    made |= {f"metrics/{metric.name}.md": metric_page(metric) for metric in CATALOGUE}
    made |= {f"conditions/{condition.name}.md": condition_page(condition) for condition in CONDITIONS}
    made["api.md"] = api_page()
    made["metrics/index.md"] = _index("Metrics", [(m.name, m.summary) for m in CATALOGUE])
    made["conditions/index.md"] = _index("Conditions", [(c.name, f"{c.title}. {c.summary}") for c in CONDITIONS])
    return made


def metric_page(metric: Metric) -> str:
    """What a metric is, where it comes from, what it costs, and what judges it."""
    judged = [criterion for criterion in CRITERIA if criterion.metric == metric.name]
    lines = [
        f"# {metric.name}",
        metric.summary,
        f"| metric | {metric.name} |\n| --- | --- |\n"
        f"| unit | {metric.unit or 'none'} |\n"
        f"| of a | {metric.kind} |\n"
        f"| measured | {CADENCES[metric.cadence]} |\n"
        f"| parts of ranks and micro-batches merge to | {MERGES[metric.combine]} |\n"
        + (f"| divided by | [{metric.over}]({metric.over}.md) |\n" if metric.over else "")
        + f"| source | {metric.source or 'derived here, or common knowledge'} |",
        f"**What it costs.** {_COSTS[metric.cadence]}",
        "## What judges it",
        *(
            [_criteria(judged, told="metric")]
            if judged
            else ["Nothing: it is shown, and NaN and infinities in it are."]
        ),
        f'Read in Python: `internist.read().run(RUN).frame(metric="{metric.name}")`. All metrics are on'
        " [one page](../metrics.md).",
    ]
    return "\n\n".join(lines) + "\n"


def condition_page(condition: Condition) -> str:
    """What must hold, by which metrics it is told, when it alarms, and what to try."""
    judged = [criterion for criterion in CRITERIA if criterion.condition == condition.name]
    rule = rules.RULE_OF_CONDITION.get(condition.name)
    lines = [
        f"# {condition.title}",
        condition.summary,
        f"When it does not hold: **{condition.fault}.** It is shown on the card *{condition.card}* of the board.",
        "## What to try first",
        f"{condition.advice[0].upper()}{condition.advice[1:]}.",
    ]
    if judged:
        lines += ["## By which metrics it is told", _criteria(judged, told="condition")]
    if rule is not None:
        points = f"{rule.for_points}" if rule.for_points else (
            f"{rules.FOR_POINTS_LIGHT} of a light metric, {rules.FOR_POINTS_HEAVY} of a heavy one"
        )  # fmt: skip
        lines += [
            "## When it alarms",
            f"The rule `{rule.name}` fires after so many points in a row: {points}. Violated it is"
            f" *{rule.violated}*" + (f", drifting *{rule.drifting}*." if rule.drifting else ", drifting it is shown."),
        ]
    return "\n\n".join(lines) + "\n"


def api_page() -> str:
    """The HTTP API, as the server describes itself at `/api/v1/openapi.json`."""
    from internist_server.app import create_api
    from internist_server.settings import Settings

    described = create_api(Settings(database_url="sqlite:///never-opened.db")).openapi()
    lines = [
        "# HTTP API",
        "A server describes its API by itself, for programs at `/openapi.json`. A token, where one is set, is sent as"
        " `Authorization: Bearer TOKEN`. NaN and infinities are the strings `nan`, `inf`, `-inf`.",
    ]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            lines.append(f"## {method.upper()} {path}")
            lines.append(route.get("description") or route.get("summary", ""))
            asked = [_parameter(one) for one in route.get("parameters", []) if one["in"] == "query"]
            lines += ["\n".join(asked)] if asked else []
    return "\n\n".join(lines) + "\n"


def moved(text: str, name: str) -> str:
    """A page of the repository as the site has it: its links lead where their targets are there."""
    here = OF_THE_ROOT.get(name, name.removeprefix("docs/"))

    def follow(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[1]))
        there = OF_THE_ROOT.get(target, target.removeprefix("docs/"))
        if target not in OF_THE_ROOT and not target.startswith("docs/"):
            return f"]({posixpath.relpath('contributing.md', posixpath.dirname(here) or '.')})"  # a file of the source
        return f"]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return _LINK.sub(follow, text)


def navigation() -> list[Any]:
    """The site's pages in the order of reading."""
    return [
        {"Start": ["index.md", "recipes.md", "parallel.md", "board.md", "commands.md", "comparison.md"]},
        {"What is judged": ["metrics.md", {"Conditions": _listed("conditions", [c.name for c in CONDITIONS])},
                            {"Metrics": _listed("metrics", list(METRICS))}]},
        {"Optimizers and μP": ["optimizers.md", "quality.md", "mup.md", "scaling.md", "reference.md"]},
        {"Operation": ["operate.md", "settings.md", "alerts.md", "alertmanager.md", "api.md", "security.md"]},
        {"Design": ["architecture.md", "client.md", "faults.md", "results.md", "glossary.md"]},
        {"Project": ["changelog.md", "contributing.md", "vulnerabilities.md", "license.md"]},
    ]  # fmt: skip


def on_files(files: "Files", config: Any, **_: Any) -> "Files":
    """A hook of MkDocs: the pages of docs/ with links as the site has them, and the pages that are made here."""
    from mkdocs.structure.files import File

    for file in list(files.documentation_pages()):
        if file.src_uri not in OF_THE_ROOT.values():
            text = moved(file.content_string, f"docs/{file.src_uri}")
            files.remove(file)
            files.append(File.generated(config, file.src_uri, content=text))
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    config.nav = [*navigation(), *_unlisted(files)]
    return files


def _unlisted(files: "Files") -> Iterator[Any]:
    """Pages of docs/ that the navigation does not know yet: no page is lost."""
    known = re.findall(r"[\w./-]+\.md", repr(navigation()))
    for file in files.documentation_pages():
        if file.src_uri not in known:
            yield file.src_uri


def _listed(folder: str, names: list[str]) -> list[str]:
    return [f"{folder}/index.md", *(f"{folder}/{name}.md" for name in names)]


def _parameter(parameter: dict[str, Any]) -> str:
    must = ", required" if parameter.get("required") else ""
    return f"- `{parameter['name']}`{must}: {parameter.get('description', '')}"


def _index(title: str, entries: list[tuple[str, str]]) -> str:
    lines = [f"| [{name}]({name}.md) | {summary} |" for name, summary in entries]
    return f"# {title}\n\n| name | what it is |\n| --- | --- |\n" + "\n".join(lines) + "\n"


def _criteria(criteria: list[Criterion], *, told: str) -> str:
    """The rows of the page of metrics with the columns that say something here; names lead to their own pages.

    Args:
        told: the column that the page's own name tells.
    """
    heads = CRITERION_HEADS.split(" | ")
    rows = []
    for criterion in criteria:
        _, _, *cells = criterion_cells(criterion)
        condition = f"[{criterion.condition}](../conditions/{criterion.condition}.md)"
        metric = f"[{criterion.metric}](../metrics/{criterion.metric}.md)"
        rows.append([condition, metric, *cells])
    kept = [place for place, head in enumerate(heads) if head != told and any(cells[place] for cells in rows)]
    words = "What the columns mean is told [with the bands](../metrics.md#bands)."
    lines = [row(*(cells[place] for place in kept)) for cells in rows]
    return "\n".join([*table(" | ".join(heads[place] for place in kept)), *lines, "", words])
