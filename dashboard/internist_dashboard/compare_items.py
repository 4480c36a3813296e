"""The tables of the page that compares runs: how each stands, and what they were started with where that differs."""

from collections.abc import Sequence

from dash import dcc, html

from internist.schema.views import Run
from internist_dashboard import components, words
from internist_dashboard.components import Node
from internist_dashboard.links import link
from internist_dashboard.sentence import ADVICE


def standing(runs: Sequence[Run]) -> Node:
    """Verdict, step and loss of each run, the healthiest first."""
    order = ("ok", "drifting", "not measured", "violated")
    ranked = sorted(runs, key=lambda run: (run.state in ADVICE, order.index(run.verdict), run.open_alerts))
    heads = ("run", "verdict", "says", "step", "loss", "alerts")
    rows = [
        html.Tr(
            [
                html.Th(dcc.Link(run.name, href=link(f"/runs/{run.id}"), className="link"), scope="row"),
                html.Td(
                    components.life_mark(run.state) if run.state in ADVICE else components.mark(run.verdict),
                    className="stands",
                ),
                html.Td(words.crossed(run.sentence) or run.verdict, className="says"),
                *(html.Td(value, className="num", **{"data-name": name}) for name, value in _numbers(run)),
            ]
        )
        for run in ranked
    ]
    return _table(heads, rows, label="how the runs stand", kind="standing")


def _numbers(run: Run) -> list[tuple[str, str]]:
    return [
        ("step", words.step(run.last_step)),
        ("loss", words.number(run.loss)),
        ("alerts", str(run.open_alerts)),
    ]


def differences(runs: Sequence[Run]) -> Node:
    """A row for each setting that is not the same everywhere; what is the same is counted."""
    known = [{**run.config, "optimizer": ", ".join(run.optimizers)} for run in runs]
    keys = list(dict.fromkeys(key for config in known for key in config))
    differing = [key for key in keys if len({str(config.get(key)) for config in known}) > 1]
    rows = [
        html.Tr(
            [
                html.Th(key, scope="row"),
                *(html.Td("—" if config.get(key) is None else str(config[key]), className="num") for config in known),
            ]
        )
        for key in differing
    ]
    same = len(keys) - len(differing)
    said = html.P(f"{words.plural(same, 'setting')} the same everywhere.", className="quiet panel-text")
    if not differing:
        return html.Div([html.P("They were started alike, as far as they told."), said], className="panel-text")
    return html.Div([_table(("setting", *(run.name for run in runs)), rows, label="how the runs differ"), said])


def _table(heads: Sequence[str], rows: list[Node], *, label: str, kind: str = "") -> Node:
    table = html.Table(
        [html.Thead(html.Tr([html.Th(head, scope="col") for head in heads])), html.Tbody(rows)],
        className=f"routing compare-table {kind}",
    )
    return html.Div(table, className="routing-scroll", tabIndex=0, role="region", **{"aria-label": label})
