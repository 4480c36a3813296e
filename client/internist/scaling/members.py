"""Members of a family: what the scaling check knows of one trained model, wherever it was collected.

How a collector makes one:

1. Take the series a run declared whose metric is in `METRICS_USED`; nothing else is read.
2. `description.describe(series, modules, routing)` says the model's shape, its facts, and of the series that count
   what they belong to (`Columns`, and their places in what was given).
3. Bring the values of those series at the steps that `summary.needed_steps` chooses into one float32 matrix (steps x
   series). Absent is NaN. A value that was *measured* as NaN or infinite is given as infinity.
4. `summary.summarise(columns, steps, values, start_step)` gives `Member.values`.
5. `report.report(members)` judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from internist.schema.scaling import ScalingRole, ScalingWindow

Role = ScalingRole
Window = ScalingWindow
Key = tuple[str, Role, Window]
"""A quantity of one member: metric, role, window."""

METRICS_USED: tuple[str, ...] = (
    "activation.rms",
    "attention.max_abs_logit",
    "block.contribution",
    "gradient.rms",
    "update.abs_max",
    "update.feature_mean",
    "update.head_norm",
    "update.operator_norm",
    "update.own_mean",
    "weight.operator_norm",
    "weight.rms",
)
"""What a collector has to read."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the series of one member are: tuples of equal length, in the order of the matrix of values."""

    metric: tuple[str, ...]
    role: tuple[Role, ...]
    block: tuple[int, ...]
    """Index of the residual block in forward order; -1 outside."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model, as its shapes tell."""

    width: int
    """Features of the residual stream; of the hidden layers where there is none."""
    depth: int
    """Number of residual blocks; 0 where there are none."""
    vocabulary: int | None
    """Outputs of the head."""
    block_matrices: int
    """Matrices in the first block."""
    heads: int | None
    """Attention heads of a layer; None where no attention was measured."""

    @property
    def head_width(self) -> float | None:
        """Features of an attention head."""
        return self.width / self.heads if self.heads else None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What one run recorded of how it was set up. Geometric means over the parameters of a role, of what is positive,
    and zero where all is; a role is missing where nothing was recorded."""

    parametrization: str = "standard"
    algorithms: Mapping[Role, str] = field(default_factory=dict)
    """What steps the parameters of a role: `adamw`, `muon (match_rms_adamw)`, ..."""
    lr: Mapping[Role, float] = field(default_factory=dict)
    eps: Mapping[Role, float] = field(default_factory=dict)
    weight_decay: Mapping[Role, float] = field(default_factory=dict)
    init_rms: Mapping[Role, float] = field(default_factory=dict)
    """RMS of the entries when the run began."""
    multipliers: Mapping[Role, float] = field(default_factory=dict)
    """Of the head: the product of its hooks' factors. Of `residual`: of the hooks in the first block. Recorded only
    where a hook of the module says its factor; 1 says there is none."""
    attention_scale: float | None = None
    """What attention logits are multiplied by."""


@dataclass(frozen=True, slots=True)
class Member:
    """One trained model."""

    name: str
    shape: Shape
    seed: int | None
    values: Mapping[Key, float]
    """Geometric means over the role's series and the window's steps. Of the residual stream: `activation.rms` and
    `update.feature_mean` of the last block, `block.contribution` of the first. 0 where all was zero; infinite where
    something was not finite."""
    facts: RunFacts = field(default_factory=RunFacts)
    run: str = ""
    """Id of its run; empty where it never was one."""

    @property
    def width(self) -> int:
        """Features of the residual stream."""
        return self.shape.width

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return self.shape.depth

    @property
    def optimizer(self) -> str:
        """The algorithm that steps the hidden matrices; empty where the run named no optimizer."""
        return self.facts.algorithms.get("hidden", "")


def sizes(members: Sequence[Member]) -> tuple[tuple[int, int], ...]:
    """The different (width, depth) of members, ascending."""
    return tuple(sorted({(member.width, member.depth) for member in members}))
