"""The report: how often healthy runs are alerted of, and how early, rightly and often sick ones are."""

import re
from collections.abc import Sequence
from statistics import median

from benchmarks.faults.injections import FOREVER, KINDS
from benchmarks.faults.running import Found

MODEL = "model"
LEAD = 20
"""Steps that an alert should come ahead of an alarm on the loss where its cause precedes the loss."""
TELLS_WITHIN = 200
"""An alert that comes later than this after a fault began is not its doing, unless it is there from the start."""


def summarise(found: Sequence[Found], *, planned: int) -> Found:
    """All figures, of the tuned half and of the half that is held out."""
    twins = {one["name"]: one for one in found if one["trial"]["fault"] is None}
    rows = [
        judge_fault(one, twins[twin_name(one)])
        for one in found
        if one["trial"]["fault"] is not None and twin_name(one) in twins
    ]
    halves = {}
    for half, is_held_out in (("tuned", False), ("held out", True)):
        well = [one for one in twins.values() if one["held_out"] == is_held_out]
        halves[half] = {
            "healthy": healthy_figures(well), "faults": fault_figures([r for r in rows if r["held_out"] == is_held_out])
        }  # fmt: skip
    return {"planned": planned, "made": len(found), "halves": halves, "faults": rows, "healthy": _cries(twins)}


def twin_name(one: Found) -> str:
    """The run without the fault."""
    name: str = one["name"]
    return name.partition("!")[0]


def judge_fault(one: Found, twin: Found) -> Found:
    """How one fault was told of. An alert that the twin gives too, of the same rule and subject, is none of it."""
    fault = one["trial"]["fault"]
    first, kind = fault["first"], KINDS[fault["kind"]]
    last = first + TELLS_WITHIN if first else FOREVER
    known = {(alert["rule"], alert["subject"], alert["index"]) for alert in twin["alerts"]}
    own = [
        alert
        for alert in one["alerts"]
        if first <= alert["opened_step"] < last and (alert["rule"], alert["subject"], alert["index"]) not in known
    ]
    opened = min((alert["opened_step"] for alert in own), default=None)
    told = _first_told(one, own, opened)
    loss = next((step for step in one["loss_alarms"] if step >= first and step not in twin["loss_alarms"]), None)
    norm = next((step for step in one["norm_alarms"] if step >= first and step not in twin["norm_alarms"]), None)
    return {
        "name": one["name"],
        "held_out": one["held_out"],
        "kind": fault["kind"],
        "place": fault["place"],
        "visible": kind.is_visible,
        "ahead": kind.is_ahead,
        "first": first,
        "opened": opened,
        "loss_alarm": loss,
        "norm_alarm": norm,
        "named": told,
        "rightly": None if fault["place"] is None or opened is None else _is_there(told, fault["place"]),
        "notified": one["notifications"] is not None,
        "firing": sum(note["status"] == "firing" for note in one["notifications"] or ()),
        "resolved": sum(note["status"] == "resolved" for note in one["notifications"] or ()),
        "alerts": len(own),
        "message": next((alert["message"] for alert in own if alert["opened_step"] == opened), ""),
    }


def healthy_figures(runs: Sequence[Found]) -> Found:
    """Of healthy runs."""
    polls = sum(one["polls"] for one in runs)
    return {
        "runs": len(runs),
        "alerted": sum(bool(one["alerts"]) for one in runs),
        "alerts": sum(len(one["alerts"]) for one in runs),
        "loss_alarmed": sum(bool(one["loss_alarms"]) for one in runs),
        "norm_alarmed": sum(bool(one["norm_alarms"]) for one in runs),
        "polls": polls,
        "bad_share": sum(one["bad_polls"]["count"] for one in runs) / polls if polls else None,
        "always_ok": sum(one["bad_polls"]["count"] == 0 for one in runs),
        "not_judged": sum(one["judged_from"] is None for one in runs),
    }


def fault_figures(rows: Sequence[Found]) -> Found:
    """Of faults."""
    visible = [row for row in rows if row["visible"]]
    caught = [row for row in visible if row["opened"] is not None]
    located = [row for row in caught if row["rightly"] is not None]
    seen = [row for row in visible if row["loss_alarm"] is not None]
    both = [row["loss_alarm"] - row["opened"] for row in seen if row["opened"] is not None]
    creeping = [row for row in caught if row["ahead"]]
    leads = [row["loss_alarm"] - row["opened"] for row in creeping if row["loss_alarm"] is not None]
    told = [row["firing"] for row in caught if row["notified"]]
    closed = [row["resolved"] for row in caught if row["notified"]]
    return {
        "faults": len(rows),
        "visible": len(visible),
        "caught": len(caught),
        "loss_caught": len(seen),
        "norm_caught": sum(row["norm_alarm"] is not None for row in visible),
        "located": len(located),
        "rightly": sum(bool(row["rightly"]) for row in located),
        "both": len(both),
        "ahead_median": median(both) if both else None,
        "creeping": len(creeping),
        "leads": len(leads),
        "lead_median": median(leads) if leads else None,
        "lead_or_alone": sum(
            row["loss_alarm"] is None or row["loss_alarm"] - row["opened"] >= LEAD for row in creeping
        ),
        "later": sum(ahead < 0 for ahead in both),
        "missed_where_loss_told": sum(row["opened"] is None for row in seen),
        "notified": len(told),
        "firing_median": median(told) if told else None,
        "firing_most": max(told, default=None),
        "resolved_median": median(closed) if closed else None,
        "resolved_most": max(closed, default=None),
    }


def markdown(report: Found) -> str:
    """The report as Markdown."""
    halves = report["halves"]
    lines = [
        f"{report['made']} of {report['planned']} runs.",
        "",
        "| | to reach | tuned half | held-out half |",
        "| --- | --- | --- | --- |",
    ]
    for part, table in (("healthy", _HEALTHY), ("faults", _FAULTS)):
        for title, bar, words in table:
            lines.append(f"| {title} | {bar} | {words(halves['tuned'][part])} | {words(halves['held out'][part])} |")
    lines += [
        "",
        "| fault | half | first alert | loss alarm | norm alarm | named first | firing, resolved |",
        "| --- " * 7 + "|",
    ]
    for row in sorted(report["faults"], key=lambda one: (one["kind"], one["name"])):
        named = "" if row["rightly"] is None else " (right)" if row["rightly"] else " (**wrong**)"
        delays = [_delay(row, key) for key in ("opened", "loss_alarm", "norm_alarm")]
        lines.append(
            f"| {row['name']} | {'held out' if row['held_out'] else 'tuned'} | {' | '.join(delays)} | "
            f"{row['named'] or ''}{named} | {row['firing']}, {row['resolved']} |"
        )
    lines += ["", "| healthy run that cried | alerts | board drifting or violated | by |", "| --- " * 4 + "|"]
    for cry in report["healthy"]:
        lines.append(f"| {cry['name']} | {cry['alerts']} | {cry['bad']} of {cry['polls']} | {cry['by']} |")
    return "\n".join(lines) + "\n"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


_HEALTHY = (
    ("healthy runs with an alert", "1 of 40", lambda h: _of(h["alerted"], h["runs"])),
    ("the same of a loss alarm", "", lambda h: _of(h["loss_alarmed"], h["runs"])),
    ("the same of a gradient-norm alarm", "", lambda h: _of(h["norm_alarmed"], h["runs"])),
    ("their time after step 300 with a card drifting or violated", "2 %", lambda h: _share(h["bad_share"])),
    ("healthy runs that were always ok after step 300", "", lambda h: _of(h["always_ok"], h["runs"])),
    ("healthy runs that were never judged", "0", lambda h: str(h["not_judged"])),
)
_FAULTS = (
    ("visible faults caught", "95 %", lambda f: _of(f["caught"], f["visible"])),
    ("by a loss alarm", "", lambda f: _of(f["loss_caught"], f["visible"])),
    ("by a gradient-norm alarm", "", lambda f: _of(f["norm_caught"], f["visible"])),
    ("right block or parameter first", "90 %", lambda f: _of(f["rightly"], f["located"])),
    (
        "steps ahead of the loss alarm, median, where its cause precedes the loss and both told", "20",
        lambda f: f"{f['lead_median']} ({f['leads']})",
    ),
    (
        "of those whose cause precedes the loss: told 20 steps ahead of the loss alarm, or it never told", "",
        lambda f: _of(f["lead_or_alone"], f["creeping"]),
    ),
    ("the same of all where both told", "", lambda f: f"{f['ahead_median']} ({f['both']})"),
    ("later than the loss alarm", "0", lambda f: _of(f["later"], f["both"])),
    ("missed where the loss alarm told", "0", lambda f: str(f["missed_where_loss_told"])),
    (
        "opening notifications of a run with a fault: median, most", "1, 1",
        lambda f: f"{f['firing_median']}, {f['firing_most']} ({f['notified']} runs)",
    ),
    (
        "notifications that it is over: median, most", "1, 1",
        lambda f: f"{f['resolved_median']}, {f['resolved_most']}",
    ),
)  # fmt: skip
"""Title, bar, and what to say of a half."""


def _cries(twins: dict[str, Found]) -> list[Found]:
    """Healthy runs that were alerted of, or whose board was not ok all the time."""
    rows = []
    for one in twins.values():
        if not one["alerts"] and not one["bad_polls"]["count"]:
            continue
        by = "; ".join(f"{worst} ({count})" for worst, count in list(one["bad_polls"]["worst"].items())[:2])
        first = one["alerts"][0]["message"] if one["alerts"] else by
        rows.append(
            {
                "name": one["name"], "alerts": len(one["alerts"]), "bad": one["bad_polls"]["count"],
                "polls": one["polls"], "by": first,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["alerts"], -row["bad"]))


def _first_told(one: Found, own: Sequence[Found], opened: int | None) -> str | None:
    """What the first message about the fault named first: of the first alerts, the one a notification leads with. Of a
    group of parameters it is the block that they are in, as the message says."""
    firsts = [alert for alert in own if alert["opened_step"] == opened]
    if not firsts:
        return None
    told = {(alert["rule"], alert["subject"]) for alert in firsts}
    for note in one["notifications"] or ():
        labels = note["labels"]
        subject = labels.get("parameter") or labels.get("group") or labels.get("module") or MODEL
        if note["status"] == "firing" and (labels.get("alertname"), subject) in told:
            first = next(one for one in firsts if (one["rule"], one["subject"]) == (labels["alertname"], subject))
            return labels.get("module") or _home(first["message"]) or str(subject)
    return _home(firsts[0]["message"]) or str(firsts[0]["subject"])


def _home(message: str) -> str | None:
    """Where a group's parameters are, by a message on it."""
    found = re.match(r"(?:learning rate|weight decay) of [^(:]*\(([^)]*)\)", message)
    return found[1] if found else None


def _is_there(named: str | None, place: str) -> bool:
    """Whether a name is of a place: of its block, or of the module itself outside blocks."""
    parts = place.split(".")
    home = ".".join(parts[:2]) if parts[0] in ("blocks", "layers") else place
    return named is not None and (named == home or named.startswith(home + "."))


def _delay(row: Found, key: str) -> str:
    return "–" if row[key] is None else f"+{row[key] - row['first']}"
