"""Coverage: what became of every watched module and parameter. "No alert" never means "no data"."""

from collections.abc import Mapping, Sequence, Set

from internist.model.outline import Outline
from internist.schema.wire import CoverageEntry


def coverage(
    outline: Outline,
    *,
    measured_modules: Set[int],
    measured_parameters: Set[int],
    stepped: Set[int],
    reasons: Mapping[tuple[str, str], str],
    compiled: bool,
    sampled: bool,
    replay_obstacle: str = "",
) -> tuple[CoverageEntry, ...]:
    """One entry per watched module and parameter, in outline order.

    Args:
        outline: what is watched.
        measured_modules: orders of modules that have been measured.
        measured_parameters: orders of parameters that have been measured.
        stepped: ids of tensors that some optimizer has stepped.
        reasons: by (kind, name): why something cannot be measured.
        compiled: calls of modules may be hidden in compiled code.
        sampled: at least one sampled step is over.
        replay_obstacle: why the probe cannot be replayed; empty if it can.
    """
    entries: list[CoverageEntry] = []
    for module in outline.modules:
        if module.role == "root" and outline.head is not None and not module.parameters:
            continue  # its output is the head's
        reason = reasons.get(("module", module.name), "")
        if module.excluded:
            entries.append(CoverageEntry("module", module.name, "excluded"))
        elif reason:
            entries.append(CoverageEntry("module", module.name, "unsupported", reason))
        elif module.order in measured_modules:
            entries.append(CoverageEntry("module", module.name, "measured"))
        elif compiled and sampled:
            why = (
                replay_obstacle
                or "compiled code hides its calls; call watch() after torch.compile, with the compiled model"
            )
            entries.append(CoverageEntry("module", module.name, "not captured", why))
        else:
            entries.append(
                CoverageEntry("module", module.name, "silent", "never called in a measured training forward")
            )
    for parameter in outline.parameters:
        reason = reasons.get(("parameter", parameter.name), "") or parameter.unsupported
        if parameter.excluded:
            entries.append(CoverageEntry("parameter", parameter.name, "excluded"))
        elif not parameter.tensor.requires_grad:
            entries.append(CoverageEntry("parameter", parameter.name, "frozen", "requires_grad is False"))
        elif reason:
            entries.append(CoverageEntry("parameter", parameter.name, "unsupported", reason))
        elif parameter.order in measured_parameters:
            entries.append(CoverageEntry("parameter", parameter.name, "measured"))
        elif sampled and id(parameter.tensor) not in stepped:
            entries.append(CoverageEntry("parameter", parameter.name, "frozen", "in no optimizer that steps"))
        else:
            entries.append(CoverageEntry("parameter", parameter.name, "silent", "not yet its turn"))
    return tuple(entries)


def coverage_share(entries: Sequence[CoverageEntry]) -> float | None:
    """Measured over all that could be: frozen, idle and excluded ones do not count. None if nothing does."""
    relevant = [entry for entry in entries if entry.state not in ("frozen", "idle", "excluded")]
    return sum(entry.state == "measured" for entry in relevant) / len(relevant) if relevant else None
