"""Reporting coverage: worked out when it may have changed, told when it has, and at first said in a line of the log."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from internist.model.outline import Outline
from internist.observe.captures import Captures
from internist.observe.coverage import Circumstances, Ledger, coverage, missing
from internist.observe.faults import Faults
from internist.observe.own import has_rule
from internist.observe.sampling import Due, Sampling
from internist.observe.speaker import Speaker
from internist.schema.coverage import Family, share
from internist.schema.wire import CoverageEntry

log = logging.getLogger("internist")

NAMED = 5
"""Lines about what is not measured that the log names."""
FAMILY_METRICS: dict[Family, tuple[str, ...]] = {
    "activation": ("activation.rms", "activation.rms_max", "activation.rms_q99", "activation.abs_max"),
    "attention": ("attention.max_logit", "attention.max_abs_logit"),
    "router": ("router.load", "router.entropy"),
    "update.own": ("update.own", "update.own_mean"),
    "update.feature": ("update.feature", "update.feature_mean"),
    "gradient": ("gradient.rms", "gradient.global_norm"),
    "update": ("update.rms", "weight.rms"),
    "spectrum": ("weight.spectral_norm", "update.spectral_norm", "weight.operator_norm", "update.operator_norm"),
    "loss": ("loss",),
    "clock": (),
}
"""What a family is measured for: it is not missing where none of these is wanted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the observer has seen of the run."""

    rounds: int
    is_compiled: bool
    has_root_calls: bool
    has_loss: bool
    sampling: str = ""
    """How often it is sampled, and why."""


class CoverageReport:
    """Keeps what was measured, and tells what was not.

    Args:
        faults: why something could not be measured.
        sampling: what is wanted at all.
        speaker: who this rank is: one rank says it in the log.
        told: receives the coverage when it has changed.
    """

    def __init__(
        self,
        faults: Faults,
        sampling: Sampling,
        speaker: Speaker,
        told: Callable[[tuple[CoverageEntry, ...]], None],
    ) -> None:
        self._faults, self._sampling, self._speaker, self._told = faults, sampling, speaker, told
        self._ledger = Ledger()
        self._entries: tuple[CoverageEntry, ...] = ()
        self._has_said = False
        self.share: float | None = None
        """Share of what could be measured that was, when it was last told."""

    def outlined(self) -> None:
        """The model was read anew: orders mean other subjects from here on."""
        self._ledger.clear()
        self._entries = ()

    def entries(self, outline: Outline, captures: Captures, seen: Seen) -> tuple[CoverageEntry, ...]:
        """What became of every metric family of every watched module and parameter."""
        hidden = ""
        if seen.is_compiled or (seen.rounds and not seen.has_root_calls and not self._ledger.measured("activation")):
            hidden = captures.probe.unsupported or (
                "compiled code hides its calls; call watch() after torch.compile, with the compiled model"
            )
        known = Circumstances(
            hidden=hidden,
            replay=captures.probe.unsupported,
            stepped=frozenset(captures.parameters.stepped),
            loss="" if seen.has_loss else "no single loss was seen in a round: call internist.log(loss=loss)",
            clock="" if seen.rounds else "no optimizer step was seen",
            sampling=seen.sampling,
            gradients=captures.parameters.unread_gradients,
            routers=captures.activations.routers.orders,
            own_rule=has_rule,
        )
        return coverage(outline, self._ledger, self._faults, known, wanted=self._wants)

    def step_ended(self, outline: Outline, captures: Captures, due: Due, seen: Seen) -> None:
        """A sampled step is over: note what it measured, and on heavy ones tell what has changed."""
        captures.tell(self._ledger, due)
        if not due.heavy and self._entries:
            return
        entries = self.entries(outline, captures, seen)
        if entries == self._entries:
            return
        self._entries, self.share = entries, share(entries)
        self._told(entries)
        if due.heavy and not self._has_said and self._speaker.reports_replicated:
            self._has_said = True
            lines = missing([entry for entry in entries if entry.family != "loss" or seen.rounds > 1])
            if lines:
                log.warning(
                    "internist: not measured: %s; `internist doctor` and the board's coverage list say more",
                    "; ".join(lines[:NAMED]),
                )

    def _wants(self, family: Family) -> bool:
        metrics = FAMILY_METRICS[family]
        return not metrics or self._sampling.wants(*metrics)
