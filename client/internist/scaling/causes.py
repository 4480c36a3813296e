"""Mistakes in a parametrisation, as data: what each does to the setup, in words, and which fact of a run shows it.

The rows are those of the table of suspects in the documentation. A mistake's signature is not written here: it follows
from what it does to the setup (`counting`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from internist.scaling.counting import Family
from internist.scaling.members import Role
from internist.schema.scaling import Axis

Fact = tuple[str, Role]
"""A field of `RunFacts` and a role."""

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
"""Of mistakes without a definite power (an eps that matters more or less), tried in this order."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing done wrong."""

    id: str
    axis: Axis
    powers: Mapping[str, float]
    """What it adds to the powers of the right setup."""
    sentence: str
    fact: str
    """The run fact that shows it, in words."""
    shows: Mapping[Fact, float] = field(default_factory=dict)
    """That fact: a sum of recorded numbers' exponents, with these weights, ..."""
    shown: float = 0.0
    """... that the mistake makes this, ..."""
    right: float = 0.0
    """... and a correct setup this."""
    hidden: Family | None = None
    """Only under this family of the hidden matrices' optimizer; None: under any."""
    rest: Family | None = None
    """And of that of embedding and head."""
    has_strength: bool = False
    """The powers are upper limits."""
    branch_matrices: int | None = None
    """1: only on branches of one matrix; 2: of two or more."""


_HIDDEN_RATE: dict[Fact, float] = {("lr", "hidden"): 1.0}
_HEAD_RATE: dict[Fact, float] = {("lr", "head"): 1.0, ("multipliers", "head"): 1.0}
_HEAD_INIT: dict[Fact, float] = {("init_rms", "head"): 1.0, ("multipliers", "head"): 1.0}
_MULTIPLIER: dict[Fact, float] = {("multipliers", "head"): 1.0}
_BRANCH: dict[Fact, float] = {("multipliers", "residual"): 1.0}
_DECAY: dict[Fact, float] = {("lr", "hidden"): 1.0, ("weight_decay", "hidden"): 1.0}
_RATE_WORDS = "learning rate of the hidden group at each size"
_HEAD_RATE_WORDS = "learning rate of the head's group and output multiplier at each size"
_HEAD_INIT_WORDS = "initial RMS of the head's weight and output multiplier at each size"

MISTAKES: tuple[Mistake, ...] = (
    # ---- width: hidden matrices
    Mistake(
        "hidden_rate_not_divided", "width", {"lr_hidden": 1.0},
        "the hidden learning rate is not divided by the width ratio",
        _RATE_WORDS, _HIDDEN_RATE, 0.0, -1.0, hidden="adam",
    ),
    Mistake(
        "hidden_rate_divided_twice", "width", {"lr_hidden": -1.0},
        "the hidden learning rate is divided by the width ratio twice",
        _RATE_WORDS, _HIDDEN_RATE, -2.0, -1.0, hidden="adam",
    ),
    Mistake(
        "matrix_factor_not_divided", "width", {"lr_hidden": 0.5},
        "the optimizer's factor grows as the square root of the width (Moonlight's and Kimi's match_rms_adamw, "
        "Megatron's spectral), and the hidden learning rate is not divided by the square root of the width ratio",
        _RATE_WORDS, _HIDDEN_RATE, 0.0, -0.5, hidden="matrix",
    ),
    Mistake(
        "matrix_factor_divided_by_width", "width", {"lr_hidden": -0.5},
        "the hidden learning rate is divided by the width ratio as for Adam, although the optimizer's factor "
        "(match_rms_adamw) wants its square root",
        _RATE_WORDS, _HIDDEN_RATE, -1.0, -0.5, hidden="matrix",
    ),
    Mistake(
        "matrix_rate_divided_by_root", "width", {"lr_hidden": -0.5},
        "the hidden learning rate is divided by the square root of the width ratio, although the optimizer's factor "
        "does not grow with the width",
        _RATE_WORDS, _HIDDEN_RATE, -0.5, 0.0, hidden="matrix",
    ),
    Mistake(
        "matrix_rate_divided_by_width", "width", {"lr_hidden": -1.0},
        "the hidden learning rate is divided by the width ratio as for Adam, although the optimizer's factor makes "
        "the update the same at every width",
        _RATE_WORDS, _HIDDEN_RATE, -1.0, 0.0, hidden="matrix",
    ),
    Mistake(
        "sgd_hidden_rate_divided", "width", {"lr_hidden": -1.0},
        "the hidden learning rate is divided by the width ratio as for Adam, although SGD needs no factor there",
        _RATE_WORDS, _HIDDEN_RATE, -1.0, 0.0, hidden="sgd",
    ),
    Mistake(
        "hidden_init_not_scaled", "width", {"init_hidden": 0.5},
        "the initial standard deviation of hidden matrices does not fall as 1/sqrt(fan_in)",
        "initial RMS of the hidden matrices at each size", {("init_rms", "hidden"): 1.0}, 0.0, -0.5,
    ),
    # ---- width: embedding
    Mistake(
        "embedding_rate_divided", "width", {"lr_embedding": -1.0},
        "the embedding's learning rate is divided by the width ratio, and should not be",
        "learning rate of the embedding's group at each size", {("lr", "embedding"): 1.0}, -1.0, 0.0, rest="adam",
    ),
    Mistake(
        "sgd_embedding_rate_not_raised", "width", {"lr_embedding": -1.0},
        "the embedding's learning rate is not multiplied by the width ratio, as SGD needs",
        "learning rate of the embedding's group at each size", {("lr", "embedding"): 1.0}, 0.0, 1.0, rest="sgd",
    ),
    # ---- width: head
    Mistake(
        "output_multiplier_missing", "width", {"multiplier_head": 1.0},
        "the logits are not divided by the width ratio: the output multiplier is missing",
        "output multiplier at each size", _MULTIPLIER, 0.0, -1.0,
    ),
    Mistake(
        "output_multiplier_twice", "width", {"multiplier_head": -1.0},
        "the output multiplier is applied twice",
        "output multiplier at each size", _MULTIPLIER, -2.0, -1.0,
    ),
    Mistake(
        "standard_head", "width", {"multiplier_head": 1.0, "init_head": -0.5},
        "the head is that of the standard parametrisation: initial variance 1/fan_in and no output multiplier",
        _HEAD_INIT_WORDS, _HEAD_INIT, -0.5, -1.0,
    ),
    Mistake(
        "head_init_too_large", "width", {"init_head": 0.5},
        "the head's initial variance, multiplier included, is 1/fan_in instead of 1/fan_in^2",
        _HEAD_INIT_WORDS, _HEAD_INIT, -0.5, -1.0,
    ),
    Mistake(
        "head_init_too_small", "width", {"init_head": -0.5},
        "the head's initial variance is divided by the width although the output multiplier stands for that",
        _HEAD_INIT_WORDS, _HEAD_INIT, -1.5, -1.0,
    ),
    Mistake(
        "head_rate_not_divided", "width", {"lr_head": 1.0},
        "the head's learning rate is not divided by the width ratio, and no multiplier does it",
        _HEAD_RATE_WORDS, _HEAD_RATE, 0.0, -1.0, rest="adam",
    ),
    Mistake(
        "head_rate_divided_again", "width", {"lr_head": -1.0},
        "the head's learning rate is divided by the width ratio on top of the output multiplier",
        _HEAD_RATE_WORDS, _HEAD_RATE, -2.0, -1.0, rest="adam",
    ),
    Mistake(
        "sgd_head_rate_not_raised", "width", {"lr_head": -1.0},
        "the head's learning rate is not multiplied by the width ratio, as SGD needs",
        "learning rate of the head's group at each size", {("lr", "head"): 1.0}, 0.0, 1.0, rest="sgd",
    ),
    # ---- width: attention, eps, all rates, weight decay
    Mistake(
        "attention_scale_root", "width", {"attention_scale": 0.5},
        "attention logits are scaled by 1/sqrt(d_head) instead of 1/d_head",
        "attention scale at each size", {("attention_scale", "attention"): 1.0}, -0.5, -1.0,
    ),
    Mistake(
        "eps_not_scaled", "width", {"shrink": 1.0, "shrink_rest": 1.0},
        "Adam's eps is not divided by the width ratio, while the gradients fall with the width",
        "Adam's eps at each size", {("eps", "hidden"): 1.0}, 0.0, -1.0, hidden="adam", rest="adam", has_strength=True,
    ),
    Mistake(
        "eps_of_the_rest_not_scaled", "width", {"shrink_rest": 1.0},
        "the eps of the Adam that steps embedding and head is not divided by the width ratio, while the gradients "
        "fall with the width",
        "Adam's eps at each size", {("eps", "embedding"): 1.0}, 0.0, -1.0, rest="adam", has_strength=True,
    ),
    Mistake(
        "all_rates_fall", "width", {"lr_embedding": -1.0, "lr_hidden": -1.0, "lr_head": -1.0},
        "the learning rates of all groups fall with the width, on top of the rule of each",
        "learning rate of the embedding's group at each size", {("lr", "embedding"): 1.0}, -1.0, 0.0, rest="adam",
        has_strength=True,
    ),
    Mistake(
        "weight_decay_not_scaled", "width", {"weight_growth": 1.0},
        "hidden weights grow late in the run, the more the wider the model: weight decay times learning rate falls "
        "with the width, and with it the ceiling it puts on the weights",
        "weight decay and learning rate of the hidden group at each size", _DECAY, -1.0, 0.0, has_strength=True,
    ),
    Mistake(
        "weights_grow", "width", {"weight_growth": 1.0},
        "hidden weights grow late in the run, the more the wider the model: look at their norm and at weight decay, "
        "not at the learning rate",
        "weight decay and learning rate of the hidden group at each size", _DECAY, 0.0, 0.0, has_strength=True,
    ),
    # ---- depth
    Mistake(
        "branch_multiplier_missing", "depth", {"multiplier_branch": 1.0},
        "residual branches are not divided by the depth ratio: the branch multiplier is missing",
        "multiplier of the residual branches at each depth", _BRANCH, 0.0, -1.0, branch_matrices=2,
    ),
    Mistake(
        "branch_multiplier_root", "depth", {"multiplier_branch": 0.5},
        "residual branches of two or more matrices are divided by the square root of the depth ratio instead of by "
        "the depth ratio",
        "multiplier of the residual branches at each depth", _BRANCH, -0.5, -1.0, branch_matrices=2,
    ),
    Mistake(
        "branch_scaled_at_init_only", "depth", {"multiplier_branch": 1.0, "init_branch": -0.5},
        "residual branches are scaled by 1/sqrt(L) in their initial weights only, so their updates are not scaled",
        "multiplier of the residual branches at each depth", _BRANCH, 0.0, -1.0, branch_matrices=2,
    ),
    Mistake(
        "branch_multiplier_twice", "depth", {"multiplier_branch": -1.0},
        "the multiplier of residual branches is applied twice",
        "multiplier of the residual branches at each depth", _BRANCH, -2.0, -1.0, branch_matrices=2,
    ),
    Mistake(
        "single_branch_multiplier_missing", "depth", {"multiplier_branch": 0.5},
        "residual branches of one matrix are not divided by the square root of the depth ratio",
        "multiplier of the residual branches at each depth", _BRANCH, 0.0, -0.5, branch_matrices=1,
    ),
    Mistake(
        "single_branch_divided_by_depth", "depth", {"multiplier_branch": -0.5},
        "residual branches of one matrix are divided by the depth ratio instead of by its square root",
        "multiplier of the residual branches at each depth", _BRANCH, -1.0, -0.5, branch_matrices=1,
    ),
    Mistake(
        "single_branch_rate_not_divided", "depth", {"lr_hidden": 0.5},
        "branches of one matrix need a hidden learning rate divided by the square root of the depth ratio",
        "learning rate of the hidden group at each depth", _HIDDEN_RATE, 0.0, -0.5, branch_matrices=1,
    ),
    Mistake(
        "hidden_rate_divided_by_root_depth", "depth", {"lr_hidden": -0.5},
        "the hidden learning rate is divided by the square root of the depth ratio, which only branches of one matrix "
        "need: the blocks learn less and less",
        "learning rate of the hidden group at each depth", _HIDDEN_RATE, -0.5, 0.0, branch_matrices=2,
    ),
    Mistake(
        "hidden_rate_divided_by_depth", "depth", {"lr_hidden": -1.0},
        "the hidden learning rate is divided by the depth ratio on top of the branch multiplier",
        "learning rate of the hidden group at each depth", _HIDDEN_RATE, -1.0, 0.0, branch_matrices=2,
    ),
    Mistake(
        "sgd_hidden_rate_not_raised", "depth", {"lr_hidden": -1.0},
        "the hidden learning rate is not multiplied by the depth ratio, as SGD needs under the branch multiplier",
        "learning rate of the hidden group at each depth", _HIDDEN_RATE, 0.0, 1.0, hidden="sgd", branch_matrices=2,
    ),
    Mistake(
        "eps_not_scaled_with_depth", "depth", {"shrink": 1.0},
        "Adam's eps is not divided by the depth ratio, while the hidden gradients fall with the branch multiplier",
        "Adam's eps of the hidden group at each depth", {("eps", "hidden"): 1.0}, 0.0, -1.0, hidden="adam",
        has_strength=True,
    ),
    Mistake(
        "weights_grow_with_depth", "depth", {"weight_growth": 1.0},
        "hidden weights grow late in the run, the more the deeper the model: look at their norm and at weight decay, "
        "not at the learning rate",
        "weight decay and learning rate of the hidden group at each depth", _DECAY, 0.0, 0.0, has_strength=True,
    ),
)  # fmt: skip
