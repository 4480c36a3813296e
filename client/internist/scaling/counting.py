"""Power counting: the exponents that a setup gives every quantity of the check.

A setup is a set of powers of the width (or of the depth): of learning rates, initial standard deviations, multipliers.
From them follow the powers of what is measured in the first steps, by the rules that a sum of n aligned terms grows as
n, of n independent ones as sqrt(n), and that of two summands the larger power wins. A mistake is a setup that differs
in one of its powers, so its signature is what the counting gives for it, less what it gives for the right setup.

Derived for this project. It reproduces the tables of exponents in width and depth that the documentation states. Where
it depends on what is not known of the model (is the stream normalised before the head? have the updates of the head
outgrown its initial weights? which of two summands is larger at the sizes that were trained?) the exponent is an
interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from internist.scaling.members import Role, Window
from internist.schema.scaling import Axis

Family = Literal["adam", "sgd", "matrix"]
"""How an optimizer's update depends on the gradient: `adam`: entries of size one (Adam, Lion, Sophia, ...); `sgd`:
proportional to it; `matrix`: a spectral norm of its own (Muon, Shampoo)."""

Interval = tuple[float, float]
Counted = dict[tuple[str, Role, Window], Interval]


@dataclass(frozen=True, slots=True)
class Setup:
    """Powers of a size in how a model is set up. Those of learning rates are of what is left after the optimizer's own
    factor; zeros are those of a model that does not know its size."""

    hidden: Family = "adam"
    """The family of the optimizer of the hidden matrices,"""
    rest: Family = "adam"
    """and of that of embedding and head."""
    lr_embedding: float = 0.0
    lr_hidden: float = 0.0
    """Of a matrix optimizer: of the RMS-to-RMS norm of its update, its factor included."""
    lr_head: float = 0.0
    init_hidden: float = 0.0
    """Of the RMS-to-RMS norm of hidden matrices at init: 0 for a variance of 1/fan_in."""
    init_branch: float = 0.0
    """Of the matrix that ends a branch, on top of `init_hidden`."""
    init_head: float = 0.0
    multiplier_head: float = 0.0
    multiplier_branch: float = 0.0
    attention_scale: float = 0.0
    shrink: float = 0.0
    """By how much Adam's eps makes its updates fall, of the hidden matrices"""
    shrink_rest: float = 0.0
    """and of the rest."""
    weight_growth: float = 0.0
    """Of hidden weights late in a run over those at its start."""

    def changed(self, powers: dict[str, float]) -> "Setup":
        """The setup with some of its powers raised by so much."""
        values = {name: getattr(self, name) for name in self.__slots__}
        for name, power in powers.items():
            values[name] += power
        return Setup(**values)


def right_setup(axis: Axis, hidden: Family, rest: Family, *, branch_matrices: int = 2) -> Setup:
    """The powers of a correct width-depth parametrisation (multiplier form).

    Width: hidden standard deviation 1/sqrt(fan_in), output multiplier 1/n; rates of Adam x 1, 1/n, x 1 for embedding,
    hidden, head; of SGD x n, x 1, x n. Depth: branch multiplier 1/L, and hidden SGD rates x L, for branches of two or
    more matrices; 1/sqrt(L) for one, with hidden rates x 1/sqrt(L) (SGD: x 1).
    """
    if axis == "width":
        return Setup(
            hidden,
            rest,
            lr_embedding=1.0 if rest == "sgd" else 0.0,
            lr_hidden=-1.0 if hidden == "adam" else 0.0,
            lr_head=1.0 if rest == "sgd" else 0.0,
            multiplier_head=-1.0,
            attention_scale=-1.0,
        )
    if branch_matrices == 1:
        return Setup(hidden, rest, lr_hidden=0.0 if hidden == "sgd" else -0.5, multiplier_branch=-0.5)
    return Setup(hidden, rest, lr_hidden=1.0 if hidden == "sgd" else 0.0, multiplier_branch=-1.0)


def count(axis: Axis, setup: Setup) -> Counted:
    """The exponents of every quantity that the setup has one of."""
    counted = _COUNTS[axis](setup)
    first: Counted = {
        (metric, role, "init"): power for (metric, role, window), power in counted.items() if window == "early"
    }
    return counted | first


def _width(s: Setup) -> Counted:
    branch = 2 * s.init_hidden + s.init_branch  # two matrices, between what is normalised
    stream = max(0.0, branch)
    learned = {"adam": s.lr_head, "sgd": s.lr_head + s.multiplier_head, "matrix": s.lr_head - 0.5}[s.rest]
    backward = _point(s.multiplier_head + s.init_head)  # of a gradient's entry in the stream
    head = {
        "adam": s.multiplier_head + s.lr_head + 1 - s.shrink_rest,
        "sgd": 2 * s.multiplier_head + s.lr_head + 1,
        "matrix": s.multiplier_head + s.lr_head + 0.5,
    }[s.rest]
    hidden = {
        "adam": _point(s.lr_hidden + 1 - s.shrink),
        "sgd": _plus(backward, s.lr_hidden + 1),
        "matrix": _point(s.lr_hidden),
    }[s.hidden]
    embedding = _plus(backward, s.lr_embedding) if s.rest == "sgd" else _point(s.lr_embedding - s.shrink_rest)
    change = _between(hidden, embedding)
    through = _plus(change, s.multiplier_head + s.init_head + 1)
    through_learned = _plus(change, s.multiplier_head + max(s.init_head, learned) + 1)
    logits = _between(_point(head), through)
    return {
        ("activation.rms", "head", "init"): _point(s.multiplier_head + s.init_head + 0.5),
        ("activation.rms", "residual", "init"): _point(stream),
        ("block.contribution", "residual", "init"): _point(branch),
        ("weight.operator_norm", "hidden", "init"): _point(s.init_hidden + s.init_branch / 2),
        ("attention.max_abs_logit", "attention", "init"): _point(s.attention_scale + 0.5 + 2 * s.init_hidden),
        ("update.own_mean", "embedding", "early"): embedding,
        ("update.own_mean", "hidden", "early"): hidden,
        ("update.operator_norm", "hidden", "early"): hidden,
        ("update.own_mean", "head", "early"): _point(head),
        ("update.head_norm", "head", "early"): _point(head),
        ("update.feature_mean", "residual", "early"): change,
        ("update.feature_mean", "head", "early"): (logits[0], max(logits[1], through_learned[1])),
        ("weight.operator_norm", "hidden", "late"): _point(s.weight_growth),
        ("activation.rms", "residual", "late"): (0.0, 2 * s.weight_growth),
    }


def _depth(s: Setup) -> Counted:
    branch = s.multiplier_branch + s.init_branch + 2 * s.init_hidden
    stream = max(0.0, 0.5 + branch)
    damped = (-stream, 0.0)  # a norm before the head divides what passes it by the stream
    hidden = _plus(damped, s.lr_hidden + s.multiplier_branch) if s.hidden == "sgd" else _point(s.lr_hidden - s.shrink)
    added = _plus(hidden, 1 + s.multiplier_branch)  # the updates of all blocks add up
    embedding = _plus(damped if s.rest == "sgd" else (0.0, 0.0), s.lr_embedding - s.shrink_rest)
    change = _between(added, embedding)
    head = (s.lr_head - s.shrink_rest, s.lr_head - s.shrink_rest + stream * (2 if s.rest == "sgd" else 1))
    head_norm = head if s.rest == "sgd" else (s.lr_head - s.shrink_rest, s.lr_head - s.shrink_rest)
    logits = _between(head, (change[0] - stream, change[1]))
    return {
        ("activation.rms", "head", "init"): (0.0, stream),
        ("activation.rms", "residual", "init"): _point(stream),
        ("block.contribution", "residual", "init"): _point(branch),
        ("weight.operator_norm", "hidden", "init"): (s.init_hidden + s.init_branch / 2, s.init_hidden),
        ("attention.max_abs_logit", "attention", "init"): _point(2 * s.init_hidden),
        ("update.own_mean", "embedding", "early"): embedding,
        ("update.own_mean", "hidden", "early"): hidden,
        ("update.operator_norm", "hidden", "early"): hidden,
        ("update.own_mean", "head", "early"): head,
        ("update.head_norm", "head", "early"): head_norm,
        ("update.feature_mean", "residual", "early"): change,
        ("update.feature_mean", "head", "early"): logits,
        ("weight.operator_norm", "hidden", "late"): _point(s.weight_growth),
        ("activation.rms", "residual", "late"): (0.0, 2 * s.weight_growth),
    }


_COUNTS: dict[Axis, Callable[[Setup], Counted]] = {"width": _width, "depth": _depth}


def _point(power: float) -> Interval:
    return power, power


def _plus(interval: Interval, power: float) -> Interval:
    return interval[0] + power, interval[1] + power


def _between(*intervals: Interval) -> Interval:
    """Of a sum: in the limit the largest power wins; at a finite size any of them may still carry it."""
    return min(i[0] for i in intervals), max(i[1] for i in intervals)
