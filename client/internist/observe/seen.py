"""A call that is to be measured, and what of it: the same for calls on the host and on an accelerator."""

from dataclasses import dataclass, replace

from torch import Tensor

from internist.model.outline import WatchedModule
from internist.observe.pieces import Piece
from internist.observe.sampling import Sampling

WIDE_OUTPUT = 16_384
"""Modules with more output features than this are measured on the probe tokens only."""
OUTPUTS = (
    "activation.rms",
    "activation.rms_max",
    "activation.rms_q99",
    "activation.abs_max",
    "activation.nonfinite",
)
INPUT = "activation.input_rms_max"
BLOCKS = ("block.contribution", "block.stream")
LOG_Z = ("output.log_z", "output.log_z_max")
RANGES = (
    "activation.underflow",
    "activation.narrow_underflow",
    "activation.saturation",
    "activation.narrow_saturation",
)
DEPENDENCY = ("activation.spread", "activation.spread_mean", "activation.lipschitz")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which statistics of calls anybody asked for."""

    outputs: bool
    inputs: bool
    blocks: bool
    log_z: bool
    dependency: bool
    ranges: bool

    @classmethod
    def of(cls, sampling: Sampling) -> "Wanted":
        """What a run is asked to measure."""
        wants = sampling.wants
        return cls(
            outputs=wants(*OUTPUTS),
            inputs=wants(INPUT),
            blocks=wants(*BLOCKS),
            log_z=wants(*LOG_Z),
            dependency=wants(*DEPENDENCY),
            ranges=wants(*RANGES),
        )

    def dependency_alone(self) -> "Wanted":
        """What a replay measures beside a forward that has told the rest: what is known of probe tokens."""
        return replace(self, outputs=False, inputs=False, blocks=False, log_z=False)

    @property
    def any(self) -> bool:
        """Whether anything is."""
        return self.outputs or self.inputs or self.blocks or self.log_z or self.dependency or self.ranges

    def measures(self, watched: WatchedModule, *, is_head: bool) -> bool:
        """Whether any of it is of this module."""
        if self.outputs or self.inputs or self.dependency or self.ranges:
            return True
        return (self.blocks and watched.role == "block") or (self.log_z and is_head)


@dataclass(slots=True)
class Seen:
    """A call that has just ended. Not frozen: that would cost twice as much, and there are many."""

    watched: WatchedModule
    out: Tensor
    axis: int
    """The feature dimension of the output."""
    source: Tensor | None
    """The input, where it is an activation."""
    in_axis: int
    is_residual: bool
    """Of a block that adds to its input, which is unchanged."""
    is_head: bool
    heavy: bool
    """Also the model-heavy class."""
    piece: Piece | None = None
    """Which part of the output's features this rank has; None: all."""
    in_piece: Piece | None = None
    """The same of the input."""

    @property
    def has_probe(self) -> bool:
        """Whether its output has several tokens, and is no table's."""
        return self.heavy and self.watched.role != "embedding" and self.out.numel() > self.out.shape[self.axis]

    @property
    def is_paired(self) -> bool:
        """Whether each token of the output belongs to one of the input."""
        source, out = self.source, self.out
        return source is not None and (
            source.numel() // source.shape[self.in_axis] == out.numel() // out.shape[self.axis]
        )
