"""An attention layer that is clipped: its heads, the rows that make them, its largest logits, and the clip.

Shapes: H query heads.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from internist.model.heads import HeadRows, makes
from internist.optim.logits import Call
from internist.optim.projections import AttentionLayer, Fused, Projected, arrangements


@dataclass(slots=True)
class ClippedLayer:
    """What is known of one attention layer, and what its calls of this round gave."""

    layer: AttentionLayer
    heads: int = 0
    features: int = 0
    choices: list[tuple[HeadRows, ...]] = field(default_factory=list)
    """Arrangements that its rows may have."""
    chosen: int = -1
    """The one they have; -1 while it is not known."""
    output: Tensor | None = None
    """What its query projection gave in the call under way, while that is of interest."""
    seen: bool = False
    """Whether an attention call of it was ever seen."""
    called: bool = False
    """The same, in this round."""
    largest: Tensor | None = None
    """(H,) the round's largest exact logits."""
    bound: Tensor | None = None
    """(H,) the round's largest bounds, kept where exact logits may be missing."""
    armed: bool = True
    """Where the decision is not made at once: compute exact logits."""
    counts: Tensor | None = None
    """(H,) int64: how often each head was clipped."""
    gamma: Tensor | None = None
    """(H,) of the last step."""

    def keep(self, logits: Tensor, heads: Tensor | None) -> None:
        """Take exact logits, of these heads or of all, into the round's largest."""
        if heads is not None:
            logits = logits.new_full((self.heads,), -torch.inf).index_copy_(0, heads, logits)
        self.largest = logits if self.largest is None else torch.maximum(self.largest, logits)

    def know(self, heads: int, features: int) -> None:
        """The layer's heads are known: what its rows may be."""
        self.choices = list(arrangements(self.layer, heads, features))
        self.heads, self.features = heads, features
        loaded = self.counts
        if loaded is not None and len(loaded) != heads:
            raise ValueError(f"{self.layer.name!r} has {heads} heads, and the state loaded counts {len(loaded)}")
        device = self.layer.sources[0].tensor.device
        self.counts = torch.zeros(heads, dtype=torch.int64, device=device) if loaded is None else loaded.to(device)

    def settle(self, call: Call) -> None:
        """Find the arrangement that the queries received agree with."""
        layer, output = self.layer, self.output
        self.output = None
        if output is None:
            if len(self.choices) > 1:
                raise RuntimeError(
                    f"the rows of {layer.sources[0].name!r} cannot be told apart in compiled code or through "
                    f"`observe`: give projections={{{layer.name!r}: Fused(name, arrangement)}}"
                )
            self.chosen = 0
            return
        whole = HeadRows(0, 1, 0, self.heads, self.features, 1.0)
        queries = [choice[0] if isinstance(layer.projections, Fused) else whole for choice in self.choices]
        verdicts = [makes(rows, output, call.query) for rows in queries]
        if None in verdicts:
            return
        if True not in verdicts:
            raise ValueError(
                f"attention {layer.name!r}: the queries it computes with are not heads of "
                f"{layer.sources[0].name!r} in a known order (a norm or another map between them, or another "
                "arrangement): give its projections, or exclude it"
            )
        self.chosen = verdicts.index(True)

    def clip(self, tau: float, *, look: bool) -> None:
        """Shrink the rows of the heads above tau. `look`: first whether there are any, which waits for the device."""
        assert self.counts is not None
        if self.largest is None:
            self.gamma = torch.ones(self.heads, dtype=torch.float32, device=self.counts.device)
            return
        fires = (self.largest > tau) & self.largest.isfinite()
        self.gamma = torch.where(fires, tau / self.largest, 1.0)
        if look and not bool(fires.any()):
            return
        self.counts += fires
        for place, source in enumerate(self.layer.sources):
            rows = [one for one in self.choices[self.chosen] if one.projection == place]
            if rows:
                factor = self.gamma.new_ones(source.rows)
                for one in rows:
                    one.spread(self.gamma, factor)
                _scale_rows(source, factor)


def _scale_rows(source: Projected, factor: Tensor) -> None:
    """Multiply output feature i of a projection, weight and bias, by factor i."""
    weight, bias = source.tensor, source.offset
    _local(weight).mul_(
        _part(factor, weight, 1).unsqueeze(0) if source.transposed else _part(factor, weight, 0)[:, None]
    )
    if bias is not None:
        _local(bias).mul_(_part(factor, bias, 0))


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _part(factor: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """The factors of this rank's part of a sharded tensor along `dim`; all of them where it is not sharded."""
    if not hasattr(tensor, "to_local"):
        return factor
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    assert isinstance(tensor, DTensor)
    placements = [Shard(0) if isinstance(p, Shard) and p.dim == dim else Replicate() for p in tensor.placements]
    return distribute_tensor(factor, tensor.device_mesh, placements, src_data_rank=None).to_local()
