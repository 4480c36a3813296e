"""What becomes of a quantity when a model grows: the powers of width and depth by which a larger run may differ from a
smaller one that is well.

Of a run that declares a muP or spectral parametrisation they are those of the right setup. Of one that declares none
they reach from there to what power counting gives a model that does not know its size: such a run is not wrong for
growing, and a mistake that is there from its first step is looked for beyond that.
"""

import math
from dataclasses import dataclass

from internist.scaling.counting import Counted, Family, Interval, Setup, count, right_setup
from internist.scaling.expected import QUANTITIES
from internist.scaling.members import Role, Window
from internist.schema.scaling import Axis

_SMALLER = 0.5
"""How much less than expected is well where the check sets no bound to it: the power of independent terms."""
_COUNTED_AS = {
    "activation.rms_max": "activation.rms",
    "activation.rms_q99": "activation.rms",
    "activation.spread": "activation.rms",
    "attention.max_logit": "attention.max_abs_logit",
    "update.own": "update.own_mean",
    "update.feature": "update.feature_mean",
    "update.row_rms_max": "update.own_mean",
    "weight.spectral_norm": "weight.operator_norm",
}
"""Metrics that grow as another one does, which is counted."""
_WINDOWS: tuple[Window, ...] = ("init", "early")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many times larger one model is than another."""

    width: float
    depth: float
    head_width: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """The powers that hold between two runs."""

    hidden: Family
    """What sort of optimizer steps the hidden matrices,"""
    rest: Family
    """and the others."""
    declared: bool
    """The larger run declares a muP or spectral parametrisation."""
    branch_matrices: int = 2

    def powers(self, metric: str, role: Role, axis: Axis) -> Interval:
        """The smallest and the largest power of a size by which a quantity differs, in the first steps and later."""
        name = _COUNTED_AS.get(metric, metric)
        found = [self._right(axis)] if self.declared else [self._right(axis), self._plain(axis)]
        known = [counted[key] for counted in found for key in _keys(name, role) if key in counted]
        low = min((interval[0] for interval in known), default=0.0)
        high = max((interval[1] for interval in known), default=0.0)
        if name.startswith(("activation.", "attention.")):
            low, high = min(low, 0.0), max(high, 0.0)  # what is learned is of one size, whatever there was at init
        if name in ("weight.head_norm", "update.head_norm") and axis == "width":
            low, high = min(low, 0.0), max(high, 1.0)  # with a multiplier behind it, the head's own entries are
        if name == "block.contribution" and axis == "depth" and not self.declared:
            high = max(high, 0.0)
        return low - _slack(name, role), high

    def reach(self, metric: str, role: Role, sizes: Sizes) -> Interval:
        """log2 of the smallest and the largest factor by which a quantity of the larger model differs."""
        low = high = 0.0
        for axis, ratio in (("width", sizes.width), ("depth", sizes.depth)):
            by = sizes.head_width if axis == "width" and role == "attention" else ratio
            ends = sorted(power * math.log2(by) for power in self.powers(metric, role, axis))  # type: ignore[arg-type]
            low, high = low + ends[0], high + ends[1]
        return low, high

    def _right(self, axis: Axis) -> Counted:
        return count(axis, right_setup(axis, self.hidden, self.rest, branch_matrices=self.branch_matrices))

    def _plain(self, axis: Axis) -> Counted:
        return count(axis, Setup(self.hidden, self.rest))


def _keys(metric: str, role: Role) -> list[tuple[str, Role, Window]]:
    return [(metric, role, window) for window in _WINDOWS]


def _slack(metric: str, role: Role) -> float:
    """How much less is well, as the scaling check has it."""
    known = [q.slack for q in QUANTITIES if q.metric == metric and q.role == role and q.window in _WINDOWS]
    return min(max(known, default=0.0), _SMALLER)
