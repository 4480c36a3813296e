"""Coverage: what became of every metric family of every watched module and parameter, and of the run.

"No alert" never means "no data": whatever was not measured in its last samples is named here, with the reason.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from internist.model.outline import Outline, WatchedModule, WatchedParameter
from internist.model.roles import is_attention
from internist.observe.faults import Faults
from internist.schema.coverage import FAMILIES, Family, is_missing
from internist.schema.wire import CoverageEntry, CoverageState

WINDOW = 3
"""Samples of a family (times the turns its subjects take) in which a subject must have been measured."""


class Ledger:
    """Which subjects each family measured in its last samples. Subjects are orders of the outline."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[frozenset[int]]] = {}
        self._ever: dict[str, set[int]] = {}

    def note(self, family: Family, orders: Collection[int], *, turns: int = 1) -> None:
        """One sample of a family is over.

        Args:
            orders: subjects it measured.
            turns: samples in which every subject has its turn.
        """
        kept = self._samples.get(family)
        if kept is None or kept.maxlen != WINDOW * turns:
            kept = self._samples[family] = deque(kept or (), maxlen=WINDOW * turns)
        kept.append(frozenset(orders))
        self._ever.setdefault(family, set()).update(orders)

    def measured(self, family: str) -> set[int]:
        """Subjects measured in the last samples of a family."""
        return set().union(*self._samples.get(family, ()))

    def was_measured(self, family: str, order: int) -> bool:
        """Whether a subject was ever measured."""
        return order in self._ever.get(family, ())

    def sampled(self, family: str) -> int:
        """Samples of a family that are remembered."""
        return len(self._samples.get(family, ()))

    def clear(self) -> None:
        """Forget all: orders mean other subjects from here on."""
        self._samples.clear()
        self._ever.clear()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Why something may not be measured, for all subjects alike."""

    hidden: str = ""
    """Why calls of modules are not seen (compiled code); empty if they are."""
    replay: str = ""
    """Why the model is not run again on a probe; empty if it is."""
    stepped: frozenset[int] = frozenset()
    """Orders of parameters that some optimizer has stepped."""
    loss: str = ""
    """Why there is no loss; empty if there is."""
    clock: str = ""
    """Why no step is counted; empty if some are."""
    sampling: str = ""
    """How often the run is sampled, and why, once steps are counted."""
    gradients: Mapping[int, str] = field(default_factory=dict)
    """By order of a parameter: why its gradient is not read."""
    routers: frozenset[int] = frozenset()
    """Orders of the modules that send tokens to experts."""
    own_rule: Callable[[nn.Module], bool] = bool
    """Whether it is known how a module's output depends on its own parameters."""


def coverage(
    outline: Outline, ledger: Ledger, faults: Faults, known: Circumstances, *, wanted: Callable[[Family], bool]
) -> tuple[CoverageEntry, ...]:
    """One entry per family of every subject, in the order of the outline; what a subject lacks comes last."""
    entries: list[CoverageEntry] = []
    measured = {family: ledger.measured(family) for family in FAMILIES}

    def add(kind: str, name: str, found: Iterable[tuple[Family, CoverageState, str]]) -> None:
        listed = [(family, state, reason) for family, state, reason in found if wanted(family)]
        listed.sort(key=lambda each: each[1] != "measured")
        entries.extend(CoverageEntry(kind, name, state, reason, family) for family, state, reason in listed)  # type: ignore[arg-type]

    output = outline.head or (outline.modules[0] if outline.modules else None)
    has_blocks = any(module.role == "block" for module in outline.modules)
    inner, attending = _inside_attention(outline), _innermost_attention(outline)
    for module in outline.modules:
        add(
            "module",
            module.name,
            _of_module(module, outline, ledger, measured, faults, known, inner, attending, has_blocks, output),
        )
    for parameter in outline.parameters:
        add("parameter", parameter.name, _of_parameter(parameter, ledger, measured, faults, known))
    run: list[tuple[Family, CoverageState, str]] = [
        ("clock", "silent" if known.clock else "measured", known.clock or known.sampling),
        ("loss", "silent" if known.loss else "measured", known.loss),
    ]
    add("model", "model", run)
    return tuple(entries)


def _of_module(
    watched: WatchedModule,
    outline: Outline,
    ledger: Ledger,
    measured: dict[str, set[int]],
    faults: Faults,
    known: Circumstances,
    inner: set[int],
    attending: set[int],
    has_blocks: bool,
    output: WatchedModule | None,
) -> Iterator[tuple[Family, CoverageState, str]]:
    module, order = watched.reference(), watched.order
    is_shown = not (watched.role == "root" and outline.head is not None)
    if module is None or (not is_shown and watched is not output):
        return
    if watched.excluded:
        yield "activation", "excluded", "not among what watch() was asked to include"
        return
    fault = faults.reason("module", watched.name)

    def state(family: Family, why: str) -> tuple[Family, CoverageState, str]:
        if order in measured[family]:
            return family, "measured", ""
        if fault:
            return family, "unsupported", fault
        if known.hidden:
            return family, "not captured", known.hidden
        if ledger.was_measured(family, order):
            return family, "idle", f"not called in its last {ledger.sampled(family)} samples"
        return family, "silent", why

    if not _is_list(module):
        why = "never called in a measured training forward"
        if order in inner:
            yield "activation", "idle", "attention computes with its parameters without calling it"
        else:
            yield state("activation", why)
    if order in attending:
        yield (
            state("attention", "its logits were not seen: call internist.attention_logits where they are computed")
            if not (reason := faults.reason("attention", watched.name)) or order in measured["attention"]
            else ("attention", "unsupported", reason)
        )
    if order in known.routers:
        reason = faults.reason("router", watched.name) or faults.reason("router load", watched.name)
        if reason and order not in measured["router"]:
            yield "router", "unsupported", reason
        else:
            yield state("router", "never called in a measured training forward")
    trained = [p for p in watched.parameters.values() if _wants_gradient(p)]
    if watched.parameters and order not in inner and not _is_list(module):
        own_fault = faults.reason("own update", watched.name)
        if order in measured["update.own"]:
            yield "update.own", "measured", ""
        elif not trained:
            yield "update.own", "frozen", "none of its parameters wants a gradient"
        elif own_fault or not known.own_rule(module):
            yield "update.own", "unsupported", own_fault or f"no rule is known for {type(module).__name__}"
        else:
            yield state("update.own", "it was not called, or not stepped, in its last samples")
    if _is_list(module):
        return
    if watched is output or watched.role == "block" or (not has_blocks and watched.parameters and order not in inner):
        if order in measured["update.feature"]:
            yield "update.feature", "measured", ""
        elif known.replay:
            yield "update.feature", "unsupported", known.replay
        else:
            yield state("update.feature", "not seen in a replay of the probe yet")


def _of_parameter(
    parameter: WatchedParameter, ledger: Ledger, measured: dict[str, set[int]], faults: Faults, known: Circumstances
) -> Iterator[tuple[Family, CoverageState, str]]:
    order = parameter.order
    families: list[Family] = ["gradient", "update"]
    if "matrix" in parameter.roles or parameter.view == "unknown":
        families.append("spectrum")
    for family in families:
        reason = faults.reason("parameter", parameter.name) or parameter.unsupported
        if parameter.excluded:
            yield family, "excluded", "not among what watch() was asked to include"
        elif not _wants_gradient(parameter):
            yield family, "frozen", "requires_grad is False"
        elif order in measured[family]:
            yield family, "measured", ""
        elif reason:
            yield family, "unsupported", reason
        elif family == "gradient" and order in known.gradients:
            yield family, "unsupported", known.gradients[order]
        elif ledger.sampled(family) and order not in known.stepped:
            yield family, "frozen", "in no optimizer that steps"
        elif ledger.was_measured(family, order):
            yield family, "idle", f"no gradient in its last {ledger.sampled(family)} samples"
        elif family == "spectrum" and ledger.sampled(family):
            yield family, "silent", "not yet its turn"
        else:
            yield family, "silent", known.clock or "not sampled yet"


def _wants_gradient(parameter: WatchedParameter) -> bool:
    try:
        return parameter.tensor.requires_grad
    except ReferenceError:
        return False


def _is_list(module: nn.Module) -> bool:
    """A container that is never called."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)


def _inside_attention(outline: Outline) -> set[int]:
    """Orders of modules whose parent computes with their parameters without calling them."""
    found: set[int] = set()
    for watched in outline.modules:
        module = watched.reference()
        if isinstance(module, nn.MultiheadAttention):
            inside = {id(child) for child in module.children()}
            found.update(m.order for m in outline.modules if id(m.reference()) in inside)
    return found


def _innermost_attention(outline: Outline) -> set[int]:
    """Orders of attention modules that hold no other: the logits are theirs."""
    named = [m for m in outline.modules if (module := m.reference()) is not None and is_attention(module)]
    outer: set[str] = set()
    for watched in named:
        name = watched.name
        while name := name.rpartition(".")[0]:
            outer.add(name)
    return {watched.order for watched in named if watched.name not in outer}


def departed(before: Sequence[CoverageEntry], now: Sequence[CoverageEntry]) -> tuple[CoverageEntry, ...]:
    """Entries of subjects and families that the model had and has no more: told once, so that they count no longer."""
    known = {(entry.kind, entry.subject, entry.family) for entry in now}
    gone = [entry for entry in before if (entry.kind, entry.subject, entry.family) not in known]
    return tuple(replace(entry, state="excluded", reason="no longer a part of the model") for entry in gone)


def missing(entries: Sequence[CoverageEntry]) -> list[str]:
    """What is not measured, in lines for people: a family, how many subjects, the first of them, and why."""
    lines: list[str] = []
    by_family: dict[tuple[str, str], list[CoverageEntry]] = {}
    for entry in entries:
        if is_missing(entry.state):
            by_family.setdefault((entry.family, entry.reason), []).append(entry)
    for (family, reason), members in by_family.items():
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        lines.append(f"{family} of {members[0].subject}{others}: {members[0].state} ({reason})")
    return lines
