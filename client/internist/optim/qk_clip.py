"""QK-Clip: after a step, query and key weights shrink so that no head's attention logit stays above a threshold.

Shapes: H query heads of one attention layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from warnings import warn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internist.model.roles import unwrap
from internist.optim.clipped_layer import ClippedLayer
from internist.optim.logits import Call, LogitCapture, exact_logits, logit_bounds
from internist.optim.projections import AttentionLayer, Projections, attention_layers

ARMED_ABOVE = 0.5
"""On accelerators a layer's exact logits are computed while its bound of two steps ago was above this times tau."""


class QKClip:
    """Keeps every head's largest attention logit at most tau, as a hook after the steps of any torch optimizer.

    Per head, S = max over the round's batches, queries and visible keys of scale q.k, and gamma = min(1, tau / S):

        MHA         W_q, W_k (and biases)              *= sqrt(gamma)
        GQA         W_q (and bias)                     *= gamma; the shared keys are left alone
        MLA         content rows of W_q and W_k        *= sqrt(gamma); rotary rows of W_q *= gamma; the shared rotary
                                                          key is left alone

    GQA's rule and the biases are derived for this project.

    S is of the forward before the step, so the same batch gives tau after the clip up to what the step itself changed.
    What an additive mask or bias adds is not part of S. A logit that is not finite clips nothing. Heads that are not
    clipped keep their bits.

    Which rows make which head is read from the module tree and checked once against what attention receives; a layer
    that cannot be read is refused by name. Layers with a norm on queries or keys are left alone: their logits do not
    scale with the projections (`describe` lists them).

    Cost: a bound max|q| max|k| of every head in every training forward; exact logits, in pieces, of the heads whose
    bound is above tau. On a CPU that decision is made at once. On accelerators it would stop the host, so there all
    heads of a layer are computed while its bound of two steps ago was above tau / 2, and a head whose bound passes
    tau in a layer without exact logits is not clipped in that step but counted (`unmeasured`): its bound has more than
    doubled within two steps.

    Gradient accumulation takes the largest logit of all micro-batches; a recomputed forward (activation checkpointing)
    and evaluation do not count. Only `scaled_dot_product_attention` is seen: other attention calls `observe`.

    A model may be compiled if that happens after this is made, `fullgraph` included. In compiled code the rows of a
    fused projection cannot be checked and must be given, and a checkpoint around attention falls back to eager (with
    `fullgraph`, torch refuses it): compile what is inside the checkpoint instead.

    Source: Kimi Team 2025, arXiv:2507.20534, section 2.1 (QK-Clip, MHA and MLA; tau = 100).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        tau: float = 100.0,
        projections: Mapping[str, Projections] | None = None,
        exclude: Sequence[str] = (),
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Install the hooks.

        Args:
            model: before it is compiled; wrappers are looked through.
            optimizer: its steps are followed by a clip; it must step the query and key weights.
            tau: the largest logit allowed, after scaling and before the softmax.
            projections: regular expression that an attention module's whole name matches, to `Separate`, `Fused` or
                `Latent`; needed where names or rows cannot be read.
            exclude: regular expressions of attention modules to leave alone.
            process_group: ranks that hold the same weights and agree on the largest logits, in one all-reduce per step
                that all of them join. None: the default group if one is initialised; give the data-parallel one if
                others split the model.

        Raises:
            TypeError: model or optimizer is no such thing.
            ValueError: tau is not positive and finite, an attention layer cannot be read, the optimizer does not step
                a weight that would be clipped, or the model is in `nn.DataParallel`.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        inner = getattr(optimizer, "optimizer", None)
        optimizer = inner if isinstance(inner, torch.optim.Optimizer) else optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"expected optimizer to be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not 0.0 < tau < float("inf"):
            raise ValueError(f"expected tau to be positive and finite, got {tau}")
        if isinstance(model, nn.DataParallel):
            raise ValueError("nn.DataParallel's replicas cannot be watched: use DistributedDataParallel")
        self.tau = float(tau)
        self.steps = 0
        """Steps that a clip has followed."""
        self._process_group = process_group
        self._agreed = False
        root = unwrap(model)
        found = attention_layers(root, projections or {}, exclude)
        self._skipped = [layer for layer in found if layer.skipped]
        self._watched = [ClippedLayer(layer) for layer in found if not layer.skipped]
        self._by_name = {watched.layer.name: watched for watched in self._watched}
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for watched in self._watched:
            for source in watched.layer.sources:
                if id(source.tensor) not in stepped or not source.tensor.requires_grad:
                    raise ValueError(f"the optimizer does not step {source.name!r}: exclude {watched.layer.name!r}")
        self._at_once: bool | None = None
        """Whether the host may look at a bound: on a CPU. None: no attention was seen yet."""
        self._unmeasured: Tensor | None = None
        self._flags: list[tuple[list[ClippedLayer], Tensor, Any]] = []
        self._warned = False
        self._capture = LogitCapture(
            root,
            [(w.layer.module, _query_module(w.layer)) for w in self._watched],
            observe=self._observe,
            project=self._project,
            wants=lambda index: self._watched[index].chosen < 0,
            left=self._left,
        )
        untraced: Any = torch.compiler.disable  # a compiled step would trace the hook
        self._handle = optimizer.register_step_post_hook(untraced(self._after_step))

    def remove(self) -> None:
        """Take every hook away; the counts stay readable."""
        self._capture.remove()
        self._handle.remove()

    @torch.no_grad()
    def observe(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Tell of an attention call that is not `scaled_dot_product_attention`, with its arguments.

        Args:
            name: the attention module's.
            query: (..., H, T, D); also key, mask, is_causal, scale, enable_gqa as that function takes them.

        Raises:
            ValueError: no clipped layer has this name.
        """
        if name not in self._by_name:
            raise ValueError(f"no clipped attention layer is named {name!r}; there are {', '.join(self._by_name)}")
        index = self._watched.index(self._by_name[name])
        detached = None if mask is None else mask.detach()
        self._capture.note(index, Call(query.detach(), key.detach(), detached, is_causal, scale, enable_gqa))

    def counts(self) -> dict[str, Tensor]:
        """Layer name to (H,) int64: how often each head was clipped. Layers never called are missing."""
        return {w.layer.name: w.counts.clone() for w in self._watched if w.counts is not None}

    @property
    def unmeasured(self) -> int:
        """Heads, over all steps, whose bound passed tau while no exact logit was computed; always 0 on a CPU. Waits for
        the device."""
        return 0 if self._unmeasured is None else int(self._unmeasured)

    def diagnostics(self) -> dict[Tensor, dict[str, Tensor]]:
        """Of the last step: query and key weight -> `optimizer.clip_gamma`, the smallest gamma of its heads, and
        `optimizer.clip_heads`, how many were clipped."""
        told: dict[Tensor, dict[str, Tensor]] = {}
        for watched in self._watched:
            if watched.gamma is None:
                continue
            values = {
                "optimizer.clip_gamma": watched.gamma.amin(),
                "optimizer.clip_heads": (watched.gamma < 1.0).sum().float(),
            }
            for place in {rows.projection for rows in watched.choices[watched.chosen]}:
                told[watched.layer.sources[place].tensor] = dict(values)
        return told

    def describe(self) -> list[dict[str, Any]]:
        """One row per attention layer, JSON-able: its projections, how many heads it has (0: not called yet), and why
        it is left alone, if it is."""
        rows = [(w.layer, w.heads) for w in self._watched] + [(layer, 0) for layer in self._skipped]
        return [
            {
                "layer": layer.name,
                "kind": type(layer.projections).__name__.lower(),
                "weights": [source.name for source in layer.sources],
                "heads": heads,
                "skipped": layer.skipped,
            }
            for layer, heads in rows
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: steps, and the counts by layer."""
        return {"steps": self.steps, "counts": self.counts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's counts.

        Raises:
            ValueError: it names a layer that is not here, or has another number of heads.
        """
        for name, counts in state["counts"].items():
            watched = self._by_name.get(name)
            if watched is None:
                raise ValueError(f"the state has counts of {name!r}; there are {', '.join(self._by_name)}")
            if watched.heads and len(counts) != watched.heads:
                raise ValueError(f"{name!r} has {watched.heads} heads, and the state counts {len(counts)}")
        self.steps = int(state["steps"])
        for name, counts in state["counts"].items():
            watched = self._by_name[name]
            watched.counts = counts.detach().clone().to(watched.layer.sources[0].tensor.device)

    # -- in the forward

    def _project(self, index: int, output: Tensor) -> None:
        self._watched[index].output = output

    def _left(self, index: int) -> None:
        watched = self._watched[index]
        watched.output = None
        if not watched.seen:
            raise RuntimeError(
                f"attention {watched.layer.name!r} ({type(watched.layer.module).__name__}) did not call "
                "scaled_dot_product_attention, so its logits are not seen: have it do so (nn.MultiheadAttention does "
                "with need_weights=False), call QKClip.observe from it, or exclude it"
            )

    def _observe(self, index: int, call: Call) -> None:
        watched = self._watched[index]
        if call.query.numel() == 0 or call.key.numel() == 0:
            watched.seen = watched.called = True
            return
        if not watched.heads:
            watched.know(call.heads, call.features)
        elif call.heads != watched.heads:
            raise ValueError(f"attention {watched.layer.name!r} had {watched.heads} heads, and now {call.heads}")
        if watched.chosen < 0:
            watched.settle(call)
        watched.seen = watched.called = True
        if self._at_once is None:
            self._at_once = call.query.device.type == "cpu"
        bounds = logit_bounds(call)
        if self._at_once:
            over = (bounds > self.tau).nonzero().flatten()
            if len(over):
                watched.keep(exact_logits(call, over), over)
        else:
            watched.bound = bounds if watched.bound is None else torch.maximum(watched.bound, bounds)
            if watched.armed:
                watched.keep(exact_logits(call), None)

    # -- after the step

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if not self._warned and not any(watched.called for watched in self._watched):
            self._warned = True
            warn("QK-Clip saw no attention before this step: was the model compiled before it was made?", stacklevel=2)
        group = _group(self._process_group)
        if group is not None:
            self._agree(group)
        self.steps += 1
        for watched in self._watched:
            watched.gamma = None
            if watched.chosen >= 0 and (watched.called or watched.largest is not None):
                watched.clip(self.tau, look=self._at_once is True)
            watched.largest, watched.called = None, False
        if not self._at_once:
            self._arm()

    def _agree(self, group: dist.ProcessGroup) -> None:
        """Take the largest logits over ranks. Ranks that saw no attention learn its heads from those that did."""
        device = self._watched[0].layer.sources[0].tensor.device
        if not self._agreed:
            mine = [[w.heads, w.features, w.chosen + 1] for w in self._watched]
            facts = torch.tensor(mine, dtype=torch.int64, device=device)
            dist.all_reduce(facts, dist.ReduceOp.MAX, group=group)
            theirs = facts.tolist()
            for watched, (heads, features, chosen) in zip(self._watched, theirs, strict=True):
                if heads and not watched.heads:
                    watched.know(heads, features)
                watched.chosen = chosen - 1
            self._agreed = all(chosen for _, _, chosen in theirs)
        known = [w for w in self._watched if w.heads]
        if not known:
            return
        none = [torch.full((w.heads,), -torch.inf, dtype=torch.float32, device=device) for w in known]
        flat = torch.cat([w.largest if w.largest is not None else empty for w, empty in zip(known, none, strict=True)])
        flat = torch.where(flat.isnan(), torch.inf, flat)  # what MAX makes of NaN differs between backends
        dist.all_reduce(flat, dist.ReduceOp.MAX, group=group)
        for watched, largest in zip(known, torch.split(flat, [w.heads for w in known]), strict=True):
            watched.largest = largest

    def _arm(self) -> None:
        """Count what was not measured, and decide by the bounds of the step before last what the next forward computes:
        they have arrived, so nothing waits for the device."""
        bounded = [(w, w.bound) for w in self._watched if w.bound is not None]
        if not bounded:
            return
        unmeasured = [(bound > self.tau).sum() for w, bound in bounded if not w.armed]
        if unmeasured:
            total = torch.stack(unmeasured).sum()
            self._unmeasured = total if self._unmeasured is None else self._unmeasured + total
        peaks = torch.stack([bound.amax() for _, bound in bounded])
        self._flags.append(([w for w, _ in bounded], *_to_host(peaks)))
        if len(self._flags) > 1:
            layers, values, event = self._flags.pop(0)
            if event is not None:
                event.synchronize()
            for watched, peak in zip(layers, values.tolist(), strict=True):
                watched.armed = not peak <= ARMED_ABOVE * self.tau  # NaN arms
        for watched, _ in bounded:
            watched.bound = None


def _query_module(layer: AttentionLayer) -> nn.Module | None:
    """The module whose output is the queries; none where the attention module itself holds the weight."""
    module = layer.sources[0].module
    return None if module is layer.module else module


def _group(given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The ranks to agree with; None when alone."""
    if given is None and dist.is_available() and dist.is_initialized():
        given = dist.group.WORLD
    return given if given is not None and dist.get_world_size(given) > 1 else None


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """A copy on its way to the host, and the event that says it has arrived."""
    if values.device.type == "cpu":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.get_device_module(values.device).Event()
    event.record()
    return host, event
