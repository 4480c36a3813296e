"""Which replay of the probe a step asks for: how features change, and what a compiler hides of the training forward."""

from typing import NamedTuple

from internist.observe.attention import METRICS as ATTENTION
from internist.observe.captures import Captures
from internist.observe.sampling import Due, Sampling


class Wanted(NamedTuple):
    """What a replay is to tell."""

    features: bool
    calls: bool
    attention: bool


class Replays:
    """Runs the model on its probe once a round, before the weights change."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self.has_run = False
        """Whether it has in the round under way."""

    def wanted(self, captures: Captures, due: Due, *, is_compiled: bool) -> Wanted:
        """What a replay is to tell of this step."""
        wants, inline = self._sampling.wants, captures.activations.inline
        is_measured = inline is not None and inline.has_measured
        calls = is_compiled and (due.heavy or not is_measured) and captures.activations.wants_calls
        attention = is_compiled and due.heavy and wants(*ATTENTION)
        return Wanted(due.heavy and wants("update.feature", "update.feature_mean"), calls, attention)

    def run(self, captures: Captures, due: Due, *, is_compiled: bool) -> None:
        """Run the model, if the step asks for it and that is possible."""
        probe, wanted = captures.probe, self.wanted(captures, due, is_compiled=is_compiled)
        if self.has_run or not probe.ready or probe.unsupported or not any(wanted):
            return
        self.has_run = True
        if wanted.attention:
            captures.attention.install()
        probe.before(features=wanted.features, activations=wanted.calls or wanted.attention)
        if wanted.attention:
            captures.attention.remove()
