"""The width-depth rules as data: what each optimizer's hyperparameters are multiplied by when a model grows.

A rule is a row of powers. For a parameter whose fan-in grew by r_in, whose fan-out grew by r_out, and whose model has
r_L times as many residual blocks, a quantity is multiplied by

    r_in^fan_in · r_out^fan_out · max(r_in, r_out)^longest · r_L^depth

In a family that grows evenly (every width by r_n; vocabulary, classes and inputs fixed) this is r_n^a · r_L^b, and
`Powers.width` gives the a of a role: those are the exponents that tables of muP print.

What the rows are derived from (arXiv:2603.00541, conditions 3.1, B.1 and B.2, as read in detailed notes on the paper):
with ‖A‖_R = √(fan_in / fan_out) ‖A‖₂, multiplier α of a residual branch of k transformations and L blocks,

    weights   α_in ‖W_in‖_R, α_out ‖W_out‖_R, ‖W‖_R of hidden matrices = Θ(1)
    updates   α_in ‖ΔW_in‖_R = α_out ‖ΔW_out‖_R = Θ(1);   α ‖ΔW‖_R = Θ(1 / L)
    branches  k ≥ 2: α = Θ(1 / L), ‖ΔW‖_R = Θ(1);         k = 1: α = Θ(1 / √L), so ‖ΔW‖_R = Θ(1 / √L)

with α_in = 1, α_out = 1 / r_n, and what an update's norm is under each optimizer: AdamW, Lion, Sophia have aligned
entries of size lr, ‖ΔW‖₂ = lr √(fan_in fan_out); the Muon family ‖ΔW‖₂ = lr times its scale; SGD lr times the gradient,
whose entries are Θ(α / fan_out) in a branch, Θ(1 / fan_out) at the input and Θ(α_out) at the output. Adam's eps follows
the same gradients; weight decay is what keeps lr · weight_decay. Tags: `S` read in the source, `2nd` read in notes on
it, `M` recalled, `D` derived for this project.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, get_args

Role = Literal["input", "hidden", "output", "gain", "bias"]
Parametrization = Literal["mup", "standard", "ntk", "u_mup"]
Branch = Literal[0, 1, 2]
"""Transformations of the residual branch that a parameter is in: 0 outside of branches, 1, or 2 for two and more."""

ROLES: tuple[Role, ...] = get_args(Role)
PARAMETRIZATIONS: tuple[Parametrization, ...] = get_args(Parametrization)
FEATURE_LEARNING: tuple[Parametrization, ...] = ("mup", "u_mup")
"""Those whose features learn alike at every size, so that attention's logits and residual branches count."""
BRANCHES: tuple[Branch, ...] = get_args(Branch)


@dataclass(frozen=True, slots=True)
class Ratios:
    """How much larger a parameter and its model are than in the base model; all positive."""

    fan_in: float = 1.0
    fan_out: float = 1.0
    longest: float = 1.0
    """Of max(fan_in, fan_out)."""
    depth: float = 1.0
    """r_L, of the number of residual blocks."""


@dataclass(frozen=True, slots=True)
class Powers:
    """A factor as powers of `Ratios`. All zero: the quantity does not change with size."""

    fan_in: float = 0.0
    fan_out: float = 0.0
    longest: float = 0.0
    depth: float = 0.0

    def at(self, ratios: Ratios) -> float:
        """The factor for one parameter."""
        powers: dict[float, float] = {}
        for ratio, power in (
            (ratios.fan_in, self.fan_in),
            (ratios.fan_out, self.fan_out),
            (ratios.longest, self.longest),
            (ratios.depth, self.depth),
        ):
            powers[ratio] = powers.get(ratio, 0.0) + power  # of equal ratios one power: what cancels is exactly one
        return math.prod(math.pow(ratio, power) for ratio, power in powers.items())

    def width(self, role: Role) -> float:
        """The power of r_n in a family that grows evenly: inputs have a fixed fan-in, outputs a fixed fan-out."""
        grows_in, grows_out = role in ("hidden", "output"), role != "output"
        return self.fan_in * grows_in + self.fan_out * grows_out + self.longest

    def __add__(self, other: "Powers") -> "Powers":
        return Powers(
            self.fan_in + other.fan_in,
            self.fan_out + other.fan_out,
            self.longest + other.longest,
            self.depth + other.depth,
        )

    def __mul__(self, times: float) -> "Powers":
        # + 0.0: no negative zeros
        powers = (self.fan_in, self.fan_out, self.longest, self.depth)
        return Powers(*(power * times + 0.0 for power in powers))

    def __neg__(self) -> "Powers":
        return self * -1.0


SAME = Powers()


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: how the hyperparameters of one role scale under one optimizer."""

    optimizer: str
    role: Role
    branch: Branch
    lr: Powers
    weight_decay: Powers | None
    """None: not decayed."""
    eps: Powers | None
    """None: the optimizer has no eps, or it is not known how it scales: it is left as it is."""
    init_variance: Powers | None
    """None: not drawn; gains start at one and biases at zero."""
    multiplier: Powers
    """Of the branch's output for what is in a branch, of the head's output for its weight."""
    source: str
    tag: str
    parametrization: Parametrization = "mup"


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What the rules need to know of an optimizer, and what its parameter groups say."""

    name: str
    algorithm: str
    """Of the groups of hidden matrices."""
    input_lr: Powers
    hidden_lr: Powers
    output_lr: Powers
    source: str
    tag: str
    vector_lr: Powers = SAME
    deep: float = 0.0
    """Power of r_L of the learning rate in branches of two and more transformations, where α is 1 / r_L."""
    single: float = -0.5
    """The same in branches of one, where α is 1 / √r_L."""
    has_eps: bool = False
    follows_gradient: bool = False
    """Whether the step is proportional to the gradient's size: SGD's is, all others are normalised."""
    scale: str | None = None
    """Name of the scale rule in `internist.optim` of a member of the Muon family."""
    torch_scale: str | None = None
    """The same for torch.optim.Muon's `adjust_lr_fn`, where it has it."""

    @property
    def is_matrix_optimizer(self) -> bool:
        """Whether only hidden matrices are its own, and everything else is AdamW's."""
        return self.algorithm in ("muon", "shampoo", "soap")


_NOTES = "arXiv:2603.00541, table of Muon and Muon-Kimi rows, as read in detailed notes on the paper"
_DERIVED = "derived for this project from the conditions of arXiv:2603.00541"
_HALF = 0.5

_OPTIMIZERS = (
    Optimizer(
        "sgd", "sgd", Powers(fan_out=1), Powers(fan_in=-1, fan_out=1), Powers(fan_in=1),
        f"{_DERIVED}; the powers of width are those of Yang et al. 2021, arXiv:2203.03466", "D",
        vector_lr=Powers(fan_out=1), deep=1.0, single=0.0, follows_gradient=True,
    ),
    Optimizer(
        "adamw", "adamw", SAME, Powers(fan_in=-1), SAME,
        f"{_DERIVED}; for k ≥ 2 they are what the CompleteP branch of EleutherAI/nanoGPT-mup does with exponent 1",
        "D; the code S", has_eps=True,
    ),
    Optimizer("lion", "lion", SAME, Powers(fan_in=-1), SAME, f"{_DERIVED}: entries of size lr, as AdamW's", "D"),
    Optimizer(
        "sophia", "sophia", SAME, Powers(fan_in=-1), SAME,
        f"{_DERIVED}: as AdamW's where the step is clipped to entries of size lr; gamma and eps are not scaled", "D",
    ),
    Optimizer(
        "muon", "muon", Powers(fan_out=_HALF), Powers(fan_in=-_HALF, fan_out=_HALF), Powers(fan_in=_HALF),
        f"{_NOTES}: the step's spectral norm is lr", "2nd; k = 1 D", scale="none",
    ),
    Optimizer(
        "muon_jordan", "muon", Powers(fan_out=_HALF, longest=-_HALF), Powers(fan_out=_HALF, longest=-_HALF),
        Powers(fan_in=1, longest=-_HALF),
        f"{_DERIVED}: Muon with the factor √max(1, fan_out / fan_in)", "D", scale="original", torch_scale="original",
    ),
    Optimizer(
        "muon_kimi", "muon", Powers(fan_out=_HALF, longest=-_HALF),
        Powers(fan_in=-_HALF, fan_out=_HALF, longest=-_HALF), Powers(fan_in=_HALF, longest=-_HALF),
        f"{_NOTES}: Muon with the factor 0.2 √max(fan_out, fan_in); weight decay {_DERIVED}",
        "lr 2nd; weight decay, k = 1 D", scale="match_rms_adamw", torch_scale="match_rms_adamw",
    ),
    Optimizer(
        "muon_mup", "muon", SAME, SAME, Powers(fan_in=1),
        f"{_DERIVED}: Muon with the factor √(fan_out / fan_in)", "D", scale="spectral_mup",
    ),
    Optimizer(
        "sso", "muon", SAME, SAME, Powers(fan_in=1),
        f"{_DERIVED}: the Spectral Sphere Optimizer's steps (arXiv:2601.08393) have norm lr √(fan_out / fan_in)", "D",
        scale="spectral_mup",
    ),
    Optimizer(
        "muon_plus_plus", "muon", SAME, SAME, Powers(fan_in=1),
        f"{_DERIVED}: Muon++'s steps have norm lr √(fan_out / fan_in)", "D", scale="spectral_mup",
    ),
    Optimizer(
        "shampoo", "shampoo", Powers(fan_out=_HALF), Powers(fan_in=-_HALF, fan_out=_HALF), Powers(fan_in=_HALF),
        f"{_DERIVED}: one step of full Shampoo is msign of the gradient, as Muon's; its damping is not scaled", "D",
    ),
    Optimizer(
        "soap", "soap", SAME, Powers(fan_in=-1), SAME,
        f"{_DERIVED}, and open: AdamW's rule, the smaller. With an exact eigenbasis a step is msign of the gradient, "
        "and the hidden rate would not scale; with noise off the diagonal it is AdamW's. Its eps is not scaled",
        "D, open",
    ),
)  # fmt: skip

OPTIMIZERS: dict[str, Optimizer] = {row.name: row for row in _OPTIMIZERS}
"""The optimizers by name."""


def optimizer_named(name: str) -> Optimizer:
    """What is known of an optimizer.

    Raises:
        ValueError: there are no rules for that name.
    """
    if name not in OPTIMIZERS:
        near = get_close_matches(str(name).lower().replace("-", "_"), OPTIMIZERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no rules for optimizer {name!r}; {hint}There are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def rule(optimizer: str, role: Role, *, branch: Branch = 0, parametrization: Parametrization = "mup") -> Rule:
    """The rule of one role.

    Gains and biases of a matrix optimizer are stepped by AdamW, and have its rule.

    Args:
        optimizer: a name in `OPTIMIZERS`.
        role: input is embeddings and first layers, output the head.
        branch: of what is in a residual branch 1 or 2 (two and more transformations); 0 outside. Inputs and outputs
            have only 0.
        parametrization: the rules of muP, or of u-muP, or those of the standard or NTK parametrisation for comparison.

    Raises:
        ValueError: there is no such rule.
    """
    optimizer_named(optimizer)
    for what, value, known in (("role", role, ROLES), ("parametrization", parametrization, PARAMETRIZATIONS)):
        if value not in known:
            raise ValueError(f"expected a {what} of {', '.join(known)}, got {value!r}")
    found = _TABLE.get((parametrization, optimizer, role, branch))
    if found is None:
        expected = ", ".join(str(b) for b in BRANCHES if (parametrization, optimizer, role, b) in _TABLE)
        raise ValueError(f"expected a branch of {expected} transformations for role {role!r}, got {branch!r}")
    return found


def folded(row: Rule) -> Rule:
    """The same rule with the multiplier folded into the weight: multiplier 1, and the same function and steps.

    With W' = αW a normalised step is α lr, SGD's α² lr, the variance α² and Adam's eps 1 / α times what they were.
    """
    alpha = row.multiplier
    lr = row.lr + alpha * (2.0 if OPTIMIZERS[row.optimizer].follows_gradient else 1.0)
    return replace(
        row,
        lr=lr,
        weight_decay=None if row.weight_decay is None else row.weight_decay + row.lr + -lr,
        eps=None if row.eps is None else row.eps + -alpha,
        init_variance=None if row.init_variance is None else row.init_variance + alpha * 2.0,
        multiplier=SAME,
        source=f"{row.source}; the multiplier folded into the weight (derived for this project)",
    )


def router_rule(optimizer: str, *, branch: Branch, parametrization: Parametrization = "mup") -> Rule:
    """The rule of a router, an output within a branch: as many experts at every width, and no multiplier of its own.

    Derived for this project: its logits go into the branch, so its gradient is the branch's α times Θ(1).
    """
    output = folded(rule(optimizer, "output", parametrization=parametrization))
    hidden = rule(optimizer, "hidden", branch=branch, parametrization=parametrization)
    lr = output.lr + Powers(depth=hidden.lr.depth)
    return replace(
        output,
        branch=branch,
        lr=lr,
        weight_decay=None if output.weight_decay is None else output.weight_decay + output.lr + -lr,
        eps=output.eps + Powers(depth=hidden.eps.depth) if output.eps and hidden.eps else None,
        multiplier=hidden.multiplier,
        source="derived for this project: the output's rule, its multiplier folded into the weight",
        tag="D",
    )


def _rows() -> Iterator[tuple[tuple[Parametrization, str, Role, Branch], Rule]]:
    for optimizer in _OPTIMIZERS:
        for role in ROLES:
            for branch in BRANCHES[: 1 if role in ("input", "output") else None]:
                for parametrization, make in zip(PARAMETRIZATIONS, (_mup, _standard, _ntk, _u_mup), strict=True):
                    yield (parametrization, optimizer.name, role, branch), make(optimizer, role, branch)


def _mup(optimizer: Optimizer, role: Role, branch: Branch) -> Rule:
    is_vector = role in ("gain", "bias")
    stepped = OPTIMIZERS["adamw"] if is_vector and optimizer.is_matrix_optimizer else optimizer
    alpha = Powers(depth={0: 0.0, 1: -0.5, 2: -1.0}[branch])
    by_depth = Powers(depth={0: 0.0, 1: stepped.single, 2: stepped.deep}[branch])
    lr = {
        "input": stepped.input_lr,
        "hidden": stepped.hidden_lr,
        "output": stepped.output_lr,
        "gain": stepped.vector_lr,
        "bias": stepped.vector_lr,
    }[role] + by_depth
    gradient = Powers(fan_in=-1) if role == "output" else Powers(fan_out=-1) + alpha
    variance = {"input": SAME, "hidden": Powers(fan_in=-1), "output": SAME}.get(role)
    return Rule(
        stepped.name,
        role,
        branch,
        lr=lr,
        weight_decay=None if is_vector else -lr,
        eps=gradient if stepped.has_eps else None,
        init_variance=variance,
        multiplier=Powers(fan_in=-1) if role == "output" else alpha,
        source=stepped.source,
        tag=stepped.tag,
    )


def _standard(optimizer: Optimizer, role: Role, branch: Branch) -> Rule:
    """Every rate the same at every size, and variance 1 / fan_in: what is done where nothing is done."""
    row = _mup(optimizer, role, branch)
    return replace(
        row,
        lr=SAME,
        weight_decay=None if row.weight_decay is None else SAME,
        eps=None if row.eps is None else SAME,
        init_variance=Powers(fan_in=-1) if role in ("hidden", "output") else row.init_variance,
        multiplier=SAME,
        source="the standard parametrisation (its initialisation: LeCun et al. 1998)",
        tag="M",
        parametrization="standard",
    )


def _ntk(optimizer: Optimizer, role: Role, branch: Branch) -> Rule:
    """Matrices of unit variance times 1 / √fan_in, every rate the same; written here with that multiplier folded in."""
    row = replace(_standard(optimizer, role, branch), parametrization="ntk")
    if role in ("hidden", "output"):
        row = folded(replace(row, multiplier=Powers(fan_in=-0.5), init_variance=SAME))
    source = "Jacot et al. 2018, arXiv:1806.07572; the multiplier folded into the weight (derived for this project)"
    return replace(row, source=source, tag="M; its folding D")


def _u_mup(optimizer: Optimizer, role: Role, branch: Branch) -> Rule:
    """Weights of unit variance behind 1 / √fan_in, the head's behind 1 / fan_in, each with its rate; written here with
    the hidden multiplier folded into the weight, which leaves muP's powers of width but for the input's rate, times
    1 / √fan_out. Residual branches, however deep, are multiplied by 1 / √r_L and learn at a rate of that.

    The unit scale of activations and gradients itself is constants, which a base has already.
    """
    row = _mup(optimizer, role, 1 if branch else 0)
    lr = row.lr + Powers(fan_out=-0.5) if role == "input" else row.lr
    is_adams = row.optimizer in ("adamw", "lion", "sophia")
    return replace(
        row,
        branch=branch,
        lr=lr,
        weight_decay=None if row.weight_decay is None else -lr,
        source="Blake et al. 2024, arXiv:2407.17465; the rates of Adam as in its authors' library, unit_scaling.optim"
        + ("" if is_adams else "; what is not Adam's of arXiv:2603.00541's rule for branches of one transformation")
        + "; the multiplier folded into the weight (derived for this project)",
        tag="S, of the code; its folding D" if row.optimizer == "adamw" else "D",
        parametrization="u_mup",
    )


_TABLE = dict(_rows())

RULES: tuple[Rule, ...] = tuple(dict.fromkeys(_TABLE.values()))
"""Every rule once."""
