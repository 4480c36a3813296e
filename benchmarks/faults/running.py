"""One trial: trained, watched, judged as it goes; what it gave as plain data."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import internist
from benchmarks.faults.alarms import loss_alarms, norm_alarms
from benchmarks.faults.clinic import Clinic, Shipment
from benchmarks.faults.injections import KINDS, When
from benchmarks.faults.jobs import Job, draw, make_job, train_step
from benchmarks.faults.trials import Trial
from internist.ship.reader import SpoolReader
from internist.ship.records import bodies, decode
from internist.ship.segments import rank_directories, read_start

Found = dict[str, Any]
"""What a run gave, as plain data."""

POLLS_FROM = 300
"""By then a run should be judged: the board is read after every sampled step from here on."""
_BAD = ("drifting", "violated")
_KEPT = (
    "rule", "condition", "severity", "metric", "subject", "index", "block", "cause", "value", "ratio", "basis",
    "pending_step", "opened_step", "closed_step", "message",
)  # fmt: skip


def run(trial: Trial, clinic: Clinic, folder: Path, *, polls_from: int = POLLS_FROM) -> Found:
    """Train a trial to its end; what was said of it. Its board is read from step `polls_from` on."""
    torch.set_num_threads(1)
    began = time.monotonic()
    job = make_job(trial)
    inject(job, "start", 0)
    monitor = internist.watch(
        job.model,
        job.optimizer,
        mode="offline",
        directory=folder,
        project="faults",
        name=trial.name,
        max_overhead=0,  # a tiny model: a sample costs more than its steps
    )
    shipment = Shipment(monitor, clinic)
    losses, norms, polls, shipped = [], [], [], []
    told = len(clinic.bodies)
    for step in range(trial.steps):
        is_sampled = shipment.is_sampled
        draw(job, step)
        inject(job, "forward", step)
        job.inside_update = lambda: inject(job, "inside", step)  # noqa: B023
        job.after_update = lambda: inject(job, "after", step)  # noqa: B023
        loss, norm = train_step(job, lambda: inject(job, "update", step))  # noqa: B023
        losses.append(loss)
        norms.append(norm)
        if trial.fault is not None and step + 1 == trial.fault.last:
            job.loss_factor = 1.0
        if is_sampled:
            shipment.ship()
            shipped.append(step)
            if step >= polls_from:
                polls.append((step, clinic.get(f"/runs/{monitor.run}/verdicts", limit=0)))
    monitor.finish()
    shipment.ship()
    return {
        "name": trial.name,
        "trial": asdict(trial),
        "held_out": trial.is_held_out,
        "seconds": round(time.monotonic() - began, 1),
        "run": monitor.run,
        "shipped": shipped,
        "losses": [round(loss, 4) for loss in losses[:: max(1, trial.steps // 40)]],
        "loss_alarms": loss_alarms(losses),
        "norm_alarms": norm_alarms(norms),
    } | _said(monitor.run, clinic, polls, told)


def judge_again(found: Found, clinic: Clinic, folder: Path, *, polls_from: int = POLLS_FROM) -> Found:
    """What is said of a run that was made before, from its spool in `folder`, shipped in the same portions. What the
    server wishes is what it wished then: nothing is sampled anew."""
    (directory,) = rank_directories(folder / found["run"])
    start = read_start(directory)
    assert start is not None
    reader, polls, told = SpoolReader(directory), [], len(clinic.bodies)
    clinic.now_ms = start.started_at_ms
    clinic.start_run(start)
    portions = iter([*found["shipped"], None])
    until, portion, last = next(portions), b"", -1
    while True:
        record, last = reader.read(last, 1)
        content = decode(next(bodies(record))) if record else None
        frame = content.frame if content is not None else None
        is_next = frame is not None and until is not None and frame.step > until
        if (is_next or content is None) and portion:
            clinic.send(start.run, portion, attempt=start.attempt, rank=start.rank)
            if until is not None and until >= polls_from:
                polls.append((until, clinic.get(f"/runs/{start.run}/verdicts", limit=0)))
            until, portion = next(portions, None), b""
        if content is None:
            break
        clinic.now_ms = frame.measured_at_ms if frame is not None else clinic.now_ms
        portion += record
    return found | _said(start.run, clinic, polls, told)


def _said(run: str, clinic: Clinic, polls: list[tuple[int, dict[str, Any]]], told: int) -> Found:
    """What was said of a run that is over; `told`: notifications before it."""
    clinic.settle()
    page, final = clinic.get("/alerts", run=run, limit=1000), polls[-1][1]
    fired = [alert for alert in page["alerts"] if alert["opened_step"] is not None]
    return {
        "alerts": [{key: alert[key] for key in _KEPT} for alert in sorted(fired, key=lambda one: one["opened_step"])],
        "notifications": [_brief(body) for body in clinic.bodies[told:]],
        "polls": len(polls),
        "bad_polls": _bad_polls(polls),
        "judged_from": next((step for step, board in polls if board["state"] != "not measured"), None),
        "final": {"state": final["state"], "sentence": final["sentence"]}
        | {card["name"]: card["state"] for card in final["cards"]},
    }


def inject(job: Job, when: When, step: int) -> None:
    """Do what the job's fault does at this moment."""
    fault = job.trial.fault
    if fault is None or KINDS[fault.kind].when != when or not fault.first <= step < fault.last:
        return
    KINDS[fault.kind].act(job, fault.place or "", step == fault.first)


def _bad_polls(polls: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """At how many of these a card drifted or was violated, by card, and the worst members that made it so."""
    cards: Counter[str] = Counter()
    members: Counter[str] = Counter()
    count = 0
    for _, board in polls:
        bad = [card for card in board["cards"] if card["state"] in _BAD]
        count += bool(bad)
        for card in bad:
            cards[card["name"]] += 1
            if card["worst"] is not None:
                members[f"{card['worst']['condition']} {card['worst']['metric']} {card['worst']['subject']}"] += 1
    return {"count": count, "cards": dict(cards), "worst": dict(members.most_common(5))}


def _brief(body: dict[str, Any]) -> dict[str, Any]:
    """What a notification says first."""
    first = body["alerts"][0] if body["alerts"] else {}
    return {
        "status": body["status"],
        "condition": body["groupLabels"]["condition"],
        "members": len(body["alerts"]) + body["truncatedAlerts"],
        "labels": first.get("labels", {}),
        "summary": body["commonAnnotations"].get("summary", ""),
    }
