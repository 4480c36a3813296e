"""What is expected: the exponents of a correct width-depth parametrisation, quantity by quantity.

Sources: the width and depth exponents are derived for this project (they agree with the tables of Yang & Hu 2021,
arXiv:2011.14522, where those speak); that every update order of a residual branch of two or more matrices has to be
Theta(1/L) is Condition 3.1 of arXiv:2603.00541, as read in detailed notes on the paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from internist.scaling.members import Member, Role, Window
from internist.schema.scaling import Axis


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity the check judges."""

    metric: str
    role: Role
    window: Window
    label: str
    """In words, as a sentence about an exponent begins."""
    width: float | None = 0.0
    """Expected exponent in width; None: shown, not judged."""
    depth: float | None = 0.0
    """Expected exponent in depth, for branches of two or more matrices."""
    slack: float = 0.0
    """How much less than expected is well, too."""
    since_start: bool = False
    """What is judged is its value over the one at init."""


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("activation.rms", "head", "init", "logits at init", -0.5),
    Quantity("activation.rms", "residual", "init", "residual stream at init", slack=math.inf),
    Quantity("block.contribution", "residual", "init", "first block's contribution at init", 0.0, -1.0),
    Quantity("weight.operator_norm", "hidden", "init", "hidden weights at init"),
    Quantity("attention.max_abs_logit", "attention", "init", "attention logits at init", None),
    Quantity("update.own_mean", "embedding", "init", "embedding"),
    Quantity("update.own_mean", "hidden", "init", "hidden matrices"),
    Quantity("update.operator_norm", "hidden", "init", "norm of hidden updates", slack=0.5),
    Quantity("update.own_mean", "head", "init", "output head"),
    Quantity("update.head_norm", "head", "init", "norm of head updates"),
    Quantity("update.feature_mean", "residual", "init", "residual stream's change"),
    Quantity("update.feature_mean", "head", "init", "logits' change", slack=0.5),
    Quantity("update.own_mean", "embedding", "early", "embedding, first rounds"),
    Quantity("update.own_mean", "hidden", "early", "hidden matrices, first rounds"),
    Quantity("update.operator_norm", "hidden", "early", "norm of hidden updates, first rounds", slack=0.5),
    Quantity("update.own_mean", "head", "early", "output head, first rounds"),
    Quantity("update.head_norm", "head", "early", "norm of head updates, first rounds"),
    Quantity("update.feature_mean", "residual", "early", "residual stream's change, first rounds"),
    Quantity("update.feature_mean", "head", "early", "logits' change, first rounds", slack=0.5),
    Quantity("update.abs_max", "gain", "early", "gains", None, None),
    Quantity("update.abs_max", "bias", "early", "biases", None, None),
    Quantity("attention.max_abs_logit", "attention", "early", "attention logits", None, None),
    Quantity("weight.operator_norm", "hidden", "late", "late growth of hidden weights", 0.0, 0.0, math.inf, True),
    Quantity("activation.rms", "residual", "late", "late growth of the residual stream", 0.0, 0.0, math.inf, True),
    Quantity("attention.max_abs_logit", "attention", "late", "late growth of attention logits", None, None),
    Quantity("update.feature_mean", "residual", "late", "residual stream's late change", None, None),
)
"""In the order of the report's table.

At a finite width the logits' change has a part from rows of the head that did not learn from a token, and the norm of
an update one from entries that are noise. Both fall as the square root of the width, and tell nothing. The residual
stream falls towards what the embedding gives, where few blocks still add much. What is late may be smaller in a larger
model: only growth is a mistake.
"""


def expectation(quantity: Quantity, axis: Axis, members: Sequence[Member]) -> tuple[float | None, str]:
    """The expected exponent of a quantity in a family, and why there is none to judge by.

    Branches of one matrix: the hidden update has to shrink as 1/sqrt(L), and so does a branch's contribution.
    Attention logits at init fall as the square root of the head's width where their scale is one over that width; where
    heads keep their width and grow in number they stay.
    """
    if quantity.metric == "attention.max_abs_logit":
        if axis == "depth" or quantity.window != "init":
            return None, "shown only: what attention learns is no power of the size"
        grows = {m.shape.head_width for m in members if m.shape.head_width}
        return (-0.5 if len(grows) > 1 else 0.0), ""
    expected = quantity.width if axis == "width" else quantity.depth
    if expected is None:
        return None, "shown only"
    if axis == "depth" and all(m.shape.block_matrices == 1 for m in members):
        if quantity.metric == "block.contribution":
            return -0.5, ""
        if quantity.role == "hidden" and quantity.metric.startswith("update."):
            return -0.5, ""
    return expected, ""


def slack(quantity: Quantity, axis: Axis) -> float:
    """How much less than expected is well. In depth the head has what the stream has: less of the first blocks."""
    return max(quantity.slack, 0.5) if axis == "depth" and quantity.role == "head" else quantity.slack
