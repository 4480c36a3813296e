"""What may enter: each record checked on its own, with the reason in words when it may not. No database here."""

import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from internist.schema.wire import (
    MAX_NAME_LENGTH,
    MAX_SERIES_PER_PLAN,
    MAX_TEXT_LENGTH,
    MAX_WORLD_SIZE,
    CoverageEntry,
    Facts,
    Frame,
    Heartbeat,
    Note,
    Plan,
    Record,
    Route,
    RunStart,
    Scalar,
    Series,
)
from internist_server.envelope import require_version
from internist_server.errors import Invalid
from internist_server.store.attempts import LAST_STEP

LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999."""
LAST_SEQUENCE: Final = (1 << 62) - 1
LAST_COUNT: Final = (1 << 53) - 1
LAST_INDEX: Final = (1 << 31) - 1
MAX_CONFIG_ENTRIES: Final = 10_000
MAX_MODULES: Final = 200_000
MAX_ROUTES: Final = 200_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NOT_A_NAME: Final = frozenset({"nan", "inf", "-inf", "+inf", "infinity", "-infinity", "none", "null"})
_CONTENTS: Final = ("start", "series", "plan", "frame", "coverage", "note", "finish")


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
        or _config(start.config)
        or _outline(start)
        or _routing(start.routing)
    )


def require_heartbeat(beat: Heartbeat) -> None:
    """Refuse a heartbeat that cannot be true.

    Raises:
        Invalid: with the reason.
    """
    require_id("attempt", beat.attempt)
    if not 0 <= beat.rank < MAX_WORLD_SIZE:
        raise Invalid(f"the rank lies between 0 and {MAX_WORLD_SIZE - 1}, got {beat.rank}")
    _raise(_step(beat.step))
    if not 0 <= beat.step_age_ms <= LAST_MS:
        raise Invalid(f"the age of a step is not negative, got {beat.step_age_ms} ms")


def require_id(what: str, value: str) -> None:
    """Refuse an id that could not stand in a path."""
    if not _ID.fullmatch(value):
        raise Invalid(f"the id of the {what} is 1 to 128 letters, digits, `.`, `_`, `-`, got {_shown(value)}")


def tidy_config(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The config as it is kept: numbers that JSON cannot carry become text, long text is cut. Nothing is refused."""
    return {key: _tidy(value) for key, value in config.items()}


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


def refuse_series(series: Sequence[Series]) -> str | None:
    """Why a declaration of series is not taken, or None."""
    if len(series) > MAX_SERIES_PER_PLAN:
        return f"{len(series)} series in one record; at most {MAX_SERIES_PER_PLAN}"
    if len({one.number for one in series}) != len(series):
        return "it gives two series the same number"
    return next((f"series {one.number}: {reason}" for one in series if (reason := _series(one))), None)


def refuse_plan(plan: Plan, numbers: Mapping[int, int]) -> str | None:
    """Why a plan is not taken, or None. `numbers` are the series this rank has declared."""
    if not 0 <= plan.number <= LAST_INDEX:
        return f"the plan's number lies between 0 and {LAST_INDEX}, got {plan.number}"
    if not plan.series:
        return f"plan {plan.number} names no series"
    if len(plan.series) > MAX_SERIES_PER_PLAN:
        return f"plan {plan.number} names {len(plan.series)} series; at most {MAX_SERIES_PER_PLAN}"
    if len(set(plan.series)) != len(plan.series):
        return f"plan {plan.number} names a series twice"
    unknown = next((number for number in plan.series if number not in numbers), None)
    if unknown is not None:
        return f"plan {plan.number} names series {unknown}, which was not declared"
    if plan.counts and len(plan.counts) != len(plan.series):
        return f"plan {plan.number} has {len(plan.counts)} counts for {len(plan.series)} series"
    if any(not 1 <= count <= LAST_COUNT for count in plan.counts):
        return f"plan {plan.number} has a count that is not between 1 and {LAST_COUNT}"
    return None


def refuse_frame(frame: Frame, width: int | None) -> str | None:
    """Why a frame is not taken, or None. `width` is the number of series of its plan; None: it is not known."""
    if width is None:
        return f"it follows plan {frame.plan}, which was not sent"
    if len(frame.values) != 4 * width:
        return f"it has {len(frame.values)} bytes of values; plan {frame.plan} has {width} series, {4 * width} bytes"
    return _step(frame.step) or _moment(frame.measured_at_ms)


def refuse_coverage(entries: Collection[CoverageEntry]) -> str | None:
    """Why coverage entries are not taken, or None."""
    if len(entries) > MAX_MODULES:
        return f"{len(entries)} coverage entries in one record; at most {MAX_MODULES}"
    reasons = (_subject(entry.subject) or _text("reason", entry.reason) for entry in entries)
    return next((reason for reason in reasons if reason), None)


def refuse_note(note: Note) -> str | None:
    """Why an alert of the user's own code is not taken, or None."""
    return _name("title", note.title) or _text("text", note.text) or _step(note.step) or _moment(note.noted_at_ms)


def refuse_finish(step: int, finished_at_ms: int) -> str | None:
    """Why an end is not taken, or None."""
    return _step(step) or _moment(finished_at_ms)


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
    texts = (facts.method, facts.block or "", facts.module or "", facts.dtype or "", facts.view or "", *facts.aliases)
    return next((reason for text in texts if (reason := _short("fact", text))), None)


def _subject(subject: str) -> str | None:
    return _short("subject", subject)  # the model's own subject is the empty name


def _name(what: str, value: str) -> str | None:
    if not value.strip():
        return f"{what} is empty"
    if value.strip().lower() in _NOT_A_NAME:
        return f"{what} is {_shown(value)}, which is no name"
    return _short(what, value)


def _short(what: str, value: str) -> str | None:
    if len(value) > MAX_NAME_LENGTH:
        return f"{what} has {len(value)} characters; at most {MAX_NAME_LENGTH}"
    return _unprintable(what, value, allowed="")


def _text(what: str, value: str) -> str | None:
    if len(value) > MAX_TEXT_LENGTH:
        return f"{what} has {len(value)} characters; at most {MAX_TEXT_LENGTH}"
    return _unprintable(what, value, allowed="\n\r\t")


def _unprintable(what: str, value: str, *, allowed: str) -> str | None:
    if value.isascii() and value.isprintable():
        return None
    if any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in allowed for sign in value):
        return f"{what} has a control character: {_shown(value)}"
    return None


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


def _config(config: Mapping[str, Scalar]) -> str | None:
    if len(config) > MAX_CONFIG_ENTRIES:
        return f"a config has at most {MAX_CONFIG_ENTRIES} entries, got {len(config)}"
    return next((reason for key in config if (reason := _short("a key of the config", key))), None)


def _tidy(value: Scalar) -> Scalar:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return "".join(sign if sign.isprintable() or sign in "\n\t" else " " for sign in value[:MAX_TEXT_LENGTH])
    return value if math.isfinite(value) and abs(value) <= LAST_COUNT else str(value)


def _outline(start: RunStart) -> str | None:
    if len(start.modules) > MAX_MODULES:
        return f"a model's outline has at most {MAX_MODULES} modules, got {len(start.modules)}"
    for module in start.modules:
        reason = (
            _short("module", module.name) or _short("module type", module.type) or _short("block", module.block or "")
        )
        if reason is None and not 0 <= module.parameters <= LAST_COUNT:
            reason = f"module {_shown(module.name)} has {module.parameters} parameters"
        if reason is None and not math.isfinite(module.multiplier):
            reason = f"the multiplier of module {_shown(module.name)} is not finite"
        if reason is not None:
            return reason
    return None


def _routing(routes: Sequence[Route]) -> str | None:
    if len(routes) > MAX_ROUTES:
        return f"a routing table has at most {MAX_ROUTES} lines, got {len(routes)}"
    for route in routes:
        texts = (route.parameter, route.optimizer, route.algorithm, route.group, route.role, route.scale)
        reasons = (_short("route", text) for text in (*texts, route.coefficients, route.policy))
        reason = next((reason for reason in reasons if reason), None)
        if reason is None and (len(route.shape) > 16 or any(not 0 <= size <= LAST_COUNT for size in route.shape)):
            reason = f"the shape of {_shown(route.parameter)} is none"
        numbers = (route.lr, route.weight_decay, route.eps, route.init_rms)
        if reason is None and any(number is not None and not math.isfinite(number) for number in numbers):
            reason = f"a number of {_shown(route.parameter)} is not finite"
        if reason is not None:
            return reason
    return None


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _raise(reason: str | None) -> None:
    if reason is not None:
        raise Invalid(reason)
