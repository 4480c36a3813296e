"""What people say of a run, with what changes it: its name, tags and notes, whether it is pinned or archived."""

import json
from typing import Any

from dash import html

from internist.schema.views import Run
from internist_dashboard import components, words
from internist_dashboard.components import Node


def marks(run: Run) -> list[Node]:
    """That a run is pinned, and its tags, beside its name in a list."""
    pinned = [html.Span("pinned", className="tag is-pinned")] if run.pinned else []
    return [*pinned, *(html.Span(tag, className="tag") for tag in run.tags)]


def about(run: Run) -> Node:
    """All of it, with the settings that the run was started with."""
    none = html.Span("none", className="quiet")
    tags: Node = html.Span([html.Span(tag, className="tag") for tag in run.tags]) if run.tags else none
    notes: Node = html.Span(run.notes, className="run-notes") if run.notes else none
    rows = [
        _row("Name", run.name, _edit("rename", "name", run.name)),
        _row("Tags", tags, _edit("edit", "tags", ", ".join(run.tags))),
        _row("Notes", notes, _edit("edit", "notes", run.notes)),
    ]
    switches = [
        _switch("Unpin" if run.pinned else "Pin", {"pinned": not run.pinned}),
        _switch("Restore" if run.archived else "Archive", {"archived": not run.archived}),
        html.Button("Delete", className="small-button", **{"data-delete-run": run.name}),
    ]
    return html.Div(
        [html.Dl(rows, className="about"), html.Div(switches, className="about-switches"), _settings(run)],
        **{"data-run": run.id},
    )


def _row(name: str, value: Node, change: Node) -> Node:
    return html.Div([html.Dt(name), html.Dd([value, change])])


def _edit(said: str, field: str, value: str) -> Node:
    return html.Button(
        said, className="plain link", **{"data-edit": field, "data-value": value, "aria-label": f"{said} {field}"}
    )


def _switch(said: str, change: dict[str, Any]) -> Node:
    return html.Button(said, className="small-button", **{"data-change-run": json.dumps(change)})


def _settings(run: Run) -> Node:
    """What the run was started with, closed at first."""
    known = {**run.config, "optimizer": ", ".join(run.optimizers), "parametrization": run.parametrization}
    shown = [(key, str(value)) for key, value in known.items() if value not in (None, "")]
    if not shown:
        return None
    return html.Details(
        [html.Summary(words.plural(len(shown), "setting")), components.definition(shown)], className="about-settings"
    )
