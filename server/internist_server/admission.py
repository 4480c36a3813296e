"""What may enter: each record checked on its own, and each line of one that has lines, with the reason in words for
what may not. No database here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from internist.schema.wire import (
    MAX_NAME_LENGTH,
    MAX_SERIES_PER_PLAN,
    MAX_TEXT_LENGTH,
    MAX_WORLD_SIZE,
    CoverageEntry,
    Facts,
    Frame,
    Heartbeat,
    Module,
    Note,
    Outline,
    Plan,
    Record,
    Route,
    RunStart,
    Scalar,
    Series,
)
from internist_server.alerts.rule_files import require_thresholds
from internist_server.envelope import require_version
from internist_server.errors import Invalid
from internist_server.inputs import printable, refuse_text, require_id, shown
from internist_server.store.attempts import LAST_STEP, MAX_CONFIG_BYTES, MAX_OUTLINE, fitting_config
from internist_server.store.roster import MAX_POWERS
from internist_server.store.series import NO_SERIES

LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""
LAST_SEQUENCE: Final = (1 << 62) - 1
LAST_COUNT: Final = (1 << 53) - 1
LAST_INDEX: Final = (1 << 31) - 1
MAX_CONFIG_ENTRIES: Final = 10_000
MAX_COVERAGE: Final = 8 * MAX_OUTLINE
"""A module or parameter has an entry for each of its metric families."""
MAX_THRESHOLDS: Final = 1_000
MAX_POWER: Final = 62
"""How large the numbers may be that a heartbeat tells of its sampling."""
_NOT_A_NAME: Final = frozenset({"nan", "inf", "-inf", "+inf", "infinity", "-infinity", "none", "null"})
_CONTENTS: Final = ("start", "series", "plan", "frame", "coverage", "note", "finish", "outline")
_T = TypeVar("_T")


def require_start(start: RunStart) -> None:
    """Refuse a start that no run can have.

    Raises:
        NewerVersion: a newer major version wrote it.
        Invalid: with the reason.
    """
    require_version(start.version)
    for what, value in (("run", start.run), ("attempt", start.attempt)):
        require_id(what, value)
    if start.parent is not None:
        require_id("parent", start.parent)
    if not 1 <= start.world_size <= MAX_WORLD_SIZE:
        raise Invalid(f"the world size lies between 1 and {MAX_WORLD_SIZE}, got {start.world_size}")
    if not 0 <= start.rank < start.world_size:
        raise Invalid(f"the rank lies between 0 and {start.world_size - 1}, got {start.rank}")
    if not 1 <= start.every <= LAST_STEP:
        raise Invalid(f"`every` is at least 1, got {start.every}")
    named = [("project", start.project), ("name", start.name), ("parametrization", start.parametrization)]
    named += [("an optimizer's name", optimizer) for optimizer in start.optimizers]
    _raise(
        next((reason for what, value in named if (reason := _name(what, value))), None)
        or _moment(start.started_at_ms)
        or _step(start.start_step)
        or _text("reference", start.reference or "")
        or _text("client", start.client)
        or _mesh(start.mesh)
    )
    if len(start.thresholds) > MAX_THRESHOLDS:
        raise Invalid(f"a run has at most {MAX_THRESHOLDS} thresholds, got {len(start.thresholds)}")
    require_thresholds(start.thresholds)


def tidy_start(start: RunStart) -> tuple[RunStart, list[str]]:
    """A start without lines that cannot be kept, and why each is left out."""
    kept, reasons = tidy_outline(Outline(start.config, start.modules, start.routing))
    return replace(start, config=kept.config, modules=kept.modules, routing=kept.routing), reasons


def tidy_outline(outline: Outline) -> tuple[Outline, list[str]]:
    """An outline without lines that cannot be kept, and why each is left out. Numbers of the config that JSON cannot
    carry become text, and long text is cut."""
    modules, of_modules = _sift(outline.modules, _module, most=MAX_OUTLINE)
    routing, of_routing = _sift(outline.routing, _route, most=MAX_OUTLINE)
    names, of_config = _sift(tuple(outline.config), _config_name, most=MAX_CONFIG_ENTRIES)
    tidy = {name: _tidy(outline.config[name]) for name in names}
    config = fitting_config(tidy)
    if len(config) < len(tidy):
        of_config.append(
            f"a config has at most {MAX_CONFIG_BYTES} bytes; {len(tidy) - len(config)} entries are left out"
        )
    return Outline(config, modules, routing, outline.trajectory), [*of_config, *of_modules, *of_routing]


def require_heartbeat(heartbeat: Heartbeat) -> None:
    """Refuse a heartbeat that cannot be true.

    Raises:
        Invalid: with the reason.
    """
    require_id("attempt", heartbeat.attempt)
    if not 0 <= heartbeat.rank < MAX_WORLD_SIZE:
        raise Invalid(f"the rank lies between 0 and {MAX_WORLD_SIZE - 1}, got {heartbeat.rank}")
    _raise(_step(heartbeat.step))
    if not 0 <= heartbeat.step_age_ms <= LAST_MS:
        raise Invalid(f"the age of a step is not negative, got {heartbeat.step_age_ms} ms")
    if len(heartbeat.powers) > MAX_POWERS or any(not 0 <= power <= MAX_POWER for power in heartbeat.powers):
        first = heartbeat.powers[: MAX_POWERS + 1]
        raise Invalid(f"powers are at most {MAX_POWERS} whole numbers from 0 to {MAX_POWER}, got {first}")


def require_speaker(attempt: str, rank: int) -> None:
    """Refuse an attempt or a rank that cannot be. One below 0 was never registered.

    Raises:
        Invalid: with the reason.
    """
    require_id("attempt", attempt)
    if rank >= MAX_WORLD_SIZE:
        raise Invalid(f"the rank lies between 0 and {MAX_WORLD_SIZE - 1}, got {rank}")


def tidy_heartbeat(heartbeat: Heartbeat) -> Heartbeat:
    """A heartbeat whose words can be kept: they are a person's, and no reason to take a run for lost."""
    return replace(heartbeat, pause=printable(heartbeat.pause[:MAX_NAME_LENGTH]))


def is_single(record: Record) -> bool:
    """Whether a record holds exactly one content that this server knows."""
    return sum(getattr(record, name) is not None for name in _CONTENTS) == 1


def refuse_sequence(sequence: int) -> str | None:
    """Why a sequence number cannot be, or None."""
    return (
        None
        if 0 <= sequence <= LAST_SEQUENCE
        else f"sequence numbers lie between 0 and {LAST_SEQUENCE}, got {sequence}"
    )


def sift_series(series: Sequence[Series]) -> tuple[tuple[Series, ...], list[str]]:
    """The series of a declaration that are taken, and why the others are not. Of two under one number the first is."""
    if len(series) > MAX_SERIES_PER_PLAN:
        return (), [f"{len(series)} series in one record; at most {MAX_SERIES_PER_PLAN}"]
    firsts: dict[int, Series] = {}
    for one in series:
        firsts.setdefault(one.number, one)
    return _sift(
        series,
        lambda one: _series(one) or (None if firsts[one.number] is one else "another series has its number"),
        named=lambda one: f"series {one.number}",
    )


def refuse_plan(plan: Plan) -> str | None:
    """Why a plan is not taken, or None. Bad series of a good plan are left to `sift_plan`."""
    if not 0 <= plan.number <= LAST_INDEX:
        return f"the plan's number lies between 0 and {LAST_INDEX}, got {plan.number}"
    if not plan.series:
        return f"plan {plan.number} names no series"
    if len(plan.series) > MAX_SERIES_PER_PLAN:
        return f"plan {plan.number} names {len(plan.series)} series; at most {MAX_SERIES_PER_PLAN}"
    if plan.counts and len(plan.counts) != len(plan.series):
        return f"plan {plan.number} has {len(plan.counts)} counts for {len(plan.series)} series"
    return None


def sift_plan(plan: Plan, ids: Mapping[int, int]) -> tuple[list[int], list[str]]:
    """The server ids of a plan's series, and why some are not taken: those are `NO_SERIES`, and their values are not
    read. Of a series that is named twice the first value counts.

    Args:
        ids: server ids by the numbers that the rank has declared.
    """
    found, reasons = [], []
    known: set[int] = set()
    for place, number in enumerate(plan.series):
        one = ids.get(number)
        if one is None:
            reason = f"plan {plan.number} names series {number}, which was not declared; its values are left out"
        elif one in known:
            reason = f"plan {plan.number} names a series twice ({number}); its first value is kept"
        elif plan.counts and not 1 <= plan.counts[place] <= LAST_COUNT:
            reason = f"plan {plan.number} has a count that is not between 1 and {LAST_COUNT}: {plan.counts[place]}"
        else:
            known.add(one)
            found.append(one)
            continue
        found.append(NO_SERIES)
        reasons.append(reason)
    return found, reasons


def one_reason(reasons: Sequence[str]) -> str | None:
    """Several reasons as one; None without any."""
    if not reasons:
        return None
    return reasons[0] if len(reasons) == 1 else f"{reasons[0]} (and {len(reasons) - 1} more of its lines)"


def refuse_frame(frame: Frame, width: int | None) -> str | None:
    """Why a frame is not taken, or None. `width` is the number of series of its plan; None: it is not known."""
    if width is None:
        return f"it follows plan {frame.plan}, which was not sent"
    if len(frame.values) != 4 * width:
        return f"it has {len(frame.values)} bytes of values; plan {frame.plan} has {width} series, {4 * width} bytes"
    return _step(frame.step) or _moment(frame.measured_at_ms)


def sift_coverage(entries: Sequence[CoverageEntry]) -> tuple[tuple[CoverageEntry, ...], list[str]]:
    """The coverage entries that are taken, and why the others are not."""
    return _sift(entries, _coverage_entry, most=MAX_COVERAGE)


def refuse_note(note: Note) -> str | None:
    """Why an alert of the user's own code is not taken, or None."""
    return _name("title", note.title) or _text("text", note.text) or _step(note.step) or _moment(note.noted_at_ms)


def refuse_finish(step: int, finished_at_ms: int) -> str | None:
    """Why an end is not taken, or None."""
    return _step(step) or _moment(finished_at_ms)


def _coverage_entry(entry: CoverageEntry) -> str | None:
    return _subject(entry.subject) or _short("family", entry.family) or _text("reason", entry.reason)


def _series(series: Series) -> str | None:
    if not 0 <= series.number <= LAST_INDEX:
        return f"its number lies between 0 and {LAST_INDEX}, got {series.number}"
    if series.index is not None and not 0 <= series.index <= LAST_INDEX:
        return f"its index lies between 0 and {LAST_INDEX}, got {series.index}"
    return _name("metric", series.metric) or _subject(series.subject) or _facts(series.facts)


def _facts(facts: Facts) -> str | None:
    whole = (facts.order, facts.fan_in, facts.fan_out, facts.group, facts.parameters, facts.probe, facts.cadence)
    if any(number is not None and not 0 <= number <= LAST_COUNT for number in whole):
        return f"a fact of it is not between 0 and {LAST_COUNT}"
    promised = (facts.update_scale, *(facts.update_band or ()))
    if any(number is not None and not math.isfinite(number) for number in promised):
        return "what its optimizer promises is not finite"
    if facts.scale is not None and not math.isfinite(facts.scale):
        return "the scale of its attention logits is not finite"
    texts = (facts.method, facts.block or "", facts.module or "", facts.dtype or "", facts.view or "")
    names = (facts.axis or "", *facts.aliases)
    return next((reason for text in (*texts, *names) if (reason := _short("fact", text))), None)


def _subject(subject: str) -> str | None:
    return _short("subject", subject)  # the model's own subject is the empty name


def _name(what: str, value: str) -> str | None:
    if not value.strip():
        return f"{what} is empty"
    if value.strip().lower() in _NOT_A_NAME:
        return f"{what} is {shown(value)}, which is no name"
    return _short(what, value)


def _short(what: str, value: str) -> str | None:
    return refuse_text(what, value)


def _text(what: str, value: str) -> str | None:
    return refuse_text(what, value, longest=MAX_TEXT_LENGTH, allowed="\n\r\t")


def _step(step: int) -> str | None:
    return None if 0 <= step <= LAST_STEP else f"a step lies between 0 and {LAST_STEP}, got {step}"


def _moment(at_ms: int) -> str | None:
    return None if 0 <= at_ms <= LAST_MS else f"a time in ms since 1970 lies between 0 and {LAST_MS}, got {at_ms}"


def _mesh(mesh: Mapping[str, int]) -> str | None:
    if len(mesh) > 16:
        return f"a mesh has at most 16 dimensions, got {len(mesh)}"
    if any(not 0 <= place < MAX_WORLD_SIZE for place in mesh.values()):
        return f"a coordinate of the mesh lies between 0 and {MAX_WORLD_SIZE - 1}"
    return next((reason for name in mesh if (reason := _name("mesh dimension", name))), None)


def _config_name(name: str) -> str | None:
    return _short("a key of the config", name)


def _tidy(value: Scalar) -> Scalar:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return printable(value[:MAX_TEXT_LENGTH])
    return value if math.isfinite(value) and abs(value) <= LAST_COUNT else str(value)


def _module(module: Module) -> str | None:
    reason = _short("module", module.name) or _short("module type", module.type) or _short("block", module.block or "")
    if reason is None and not 0 <= module.parameters <= LAST_COUNT:
        reason = f"module {shown(module.name)} has {module.parameters} parameters"
    if reason is None and not math.isfinite(module.multiplier):
        reason = f"the multiplier of module {shown(module.name)} is not finite"
    return reason


def _route(route: Route) -> str | None:
    texts = (route.parameter, route.optimizer, route.algorithm, route.group, route.role, route.scale)
    reasons = (_short("route", text) for text in (*texts, route.coefficients, route.policy))
    reason = next((reason for reason in reasons if reason), None)
    if reason is None and (len(route.shape) > 16 or any(not 0 <= size <= LAST_COUNT for size in route.shape)):
        reason = f"the shape of {shown(route.parameter)} is none"
    numbers = (route.lr, route.weight_decay, route.eps, route.init_rms)
    if reason is None and any(number is not None and not math.isfinite(number) for number in numbers):
        reason = f"a number of {shown(route.parameter)} is not finite"
    return reason


def _sift(
    lines: Sequence[_T],
    reason_of: Callable[[_T], str | None],
    *,
    most: int | None = None,
    named: Callable[[_T], str] | None = None,
) -> tuple[tuple[_T, ...], list[str]]:
    """The good ones of some lines, and the reasons of the others; `most` are taken."""
    kept: list[_T] = []
    reasons: list[str] = []
    for line in lines:
        reason = reason_of(line)
        if reason is None and most is not None and len(kept) >= most:
            reason = f"at most {most} are taken, and there are {len(lines)}"
        if reason is None:
            kept.append(line)
        else:
            reasons.append(reason if named is None else f"{named(line)}: {reason}")
    return tuple(kept), reasons


def _raise(reason: str | None) -> None:
    if reason is not None:
        raise Invalid(reason)
