"""How what is wrong came about, as alerts tell it: what went before, and what was reached."""

from collections.abc import Sequence

from internist.schema.alerts import Alert
from internist_dashboard import words


def told(alerts: Sequence[Alert], *, condition: str, ended: int | None = None) -> str:
    """What else is to be said beside the first cause; nothing where nothing is wrong now.

    Args:
        alerts: of the line that is drawn: not of a future that was discarded.
        condition: of the first cause, which its own sentence names.
        ended: the last step of a run that has ended: what was wrong then was closed with it, and lasts.
    """
    known = [one for one in alerts if one.opened_step is not None]
    lasting = [one for one in known if one.state == "firing" or (ended is not None and one.closed_step == ended)]
    current = sorted(lasting, key=_began)
    if not current:
        return ""
    over = [one for one in known if one.state == "resolved" and one.closed_step not in (None, ended)]
    parts = (_before(over, _began(current[0])), _way([one for one in current if one.condition == "numeric"], condition))
    return " ".join(part for part in parts if part)


def _before(over: Sequence[Alert], began: int) -> str:
    """The first of what ended not long before the rest began: no longer before than it had lasted."""
    near = [one for one in over if _began(one) < began <= _closed(one) + max(1, _closed(one) - _began(one))]
    if not near:
        return ""
    first = min(near, key=_began)
    where = first.block or words.subject(first.subject, first.index)
    far = words.times(first.worst_ratio) if first.basis == "baseline" else words.number(first.value)
    of = f" {words.measure(first.basis)}" if first.basis == "baseline" else ""
    return f"Before it, {first.condition} of {where} was {far}{of} at steps {_steps(first)}."


def _way(lost: Sequence[Alert], condition: str) -> str:
    """Where what is not finite began, unless that is the first cause, and what it reached."""
    if not lost:
        return ""
    first = lost[0]
    began = f"NaN began in {words.subject(first.subject, first.index)} at step {words.step(_began(first))}"
    blocks = {one.block for one in lost if one.block is not None and one.block != first.block}
    loss = next((one for one in lost[1:] if one.metric == "loss"), None)
    reached = [words.plural(len(blocks), "more block")] if blocks else []
    reached += [f"the loss at step {words.step(_began(loss))}"] if loss is not None else []
    if condition == "numeric":
        return f"It reached {' and '.join(reached)}." if reached else ""
    return f"{began}{' and reached ' if reached else ''}{' and '.join(reached)}."


def _steps(alert: Alert) -> str:
    return f"{words.step(_began(alert))} to {words.step(alert.closed_step)}"


def _began(alert: Alert) -> int:
    """Its first step out of its band: it opened some points later."""
    return alert.pending_step if alert.pending_step is not None else alert.opened_step or 0


def _closed(alert: Alert) -> int:
    return alert.closed_step if alert.closed_step is not None else 0
