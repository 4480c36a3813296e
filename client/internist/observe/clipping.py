"""The gradient norm before and after clipping, of the watched model alone, from the functions of torch that clip by
it."""

import logging
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad

from internist.model.patches import After, Listener, Prepare, function, listen_to
from internist.model.plain import PLAIN

_LOG = logging.getLogger("internist")


@dataclass(slots=True)
class _Clip:
    """One clip of a round: the parameters it was over, their norm before, and what it may be at most after."""

    parameters: set[int]
    norm: Tensor
    limit: float
    """NaN: not known, as where a part of them was clipped again."""

    def after(self) -> float:
        """The norm that clipping has left, as torch does it; NaN where it is not known. The norm must lie on the
        host."""
        norm = float(self.norm)
        return norm * min(1.0, self.limit / (norm + _ADDED))


_ADDED = 1e-6
"""What torch adds to a norm before it divides by it."""


class ClippingCapture:
    """Listens to `clip_grad_norm_`, and to `clip_grads_with_norm_` where the norm comes from `get_total_norm`, and
    hands on a round's norm before clipping.

    A clip of parameters that the monitor does not own is another model's. Several clips over disjoint parts of the
    model are one norm, the root of the sum of their squares; of parameters that are clipped again the first counts. A
    round is not measured, and that is said once, where a clip was over our parameters and others, over some that were
    clipped before and some that were not, by another norm than the 2-norm, or by a norm of sharded gradients.
    """

    def __init__(self, owns: Callable[[Tensor], bool]) -> None:
        self._owns = owns
        self._clips: list[_Clip] = []
        self._reason = ""
        self._said: set[str] = set()
        self._is_clipping = False
        self.unread: Tensor | None = None
        """The norm of the last round, where it was not measured: the user's own memory, which may change."""
        self.after: float | None = None
        """The norm of the last round after clipping, where it lies on the host and is known."""
        self._norm_type: float | None = None
        """Of the last norm that was computed apart from clipping in this round."""
        listeners: tuple[tuple[str, Prepare | None, Listener], ...] = (
            ("clip_grad_norm_", _with_list, self._clip_grad_norm),
            ("_clip_grads_with_norm_", _with_list, self._clip_grads_with_norm),
            ("_get_total_norm", None, self._get_total_norm),
        )
        self._listening = listen_to(
            (function(clip_grad, name, prepare=prepare), listener)
            for name, prepare, listener in listeners
            if hasattr(clip_grad, name)
        )

    def take(self, *, measured: bool = True) -> Tensor | None:
        """The round's norm before clipping, () float32; None where nothing was clipped, its norm is not known, or it is
        not measured now and does not lie on the host: then it is `unread`. The next round begins."""
        clips, reason = self._clips, self._reason
        measured = measured or all(clip.norm.device.type == "cpu" for clip in clips)
        self._clips, self._reason, self._norm_type = [], "", None
        self.after = _after(clips) if clips and not reason else None
        self.unread = clips[0].norm.detach() if len(clips) == 1 and not reason and not measured else None
        if reason or not clips or not measured:
            return None
        norms = [clip.norm.detach().float().reshape(()) for clip in clips]
        return norms[0].clone() if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def remove(self) -> None:
        """Put the functions back."""
        for listening in self._listening:
            listening.remove()
        self._listening.clear()

    # ---- private ---------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:
        given = _CLIP_GRAD_NORM.bind(*args, **kwargs).arguments
        parameters = _parameters(given["parameters"])
        self._is_clipping = True

        def after(total_norm: Any) -> None:
            self._is_clipping = False
            if total_norm is not None:
                self._note(parameters, total_norm, float(given.get("norm_type", 2.0)), given["max_norm"])

        return after

    def _get_total_norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:
        if not self._is_clipping:
            self._norm_type = float(_GET_TOTAL_NORM.bind(*args, **kwargs).arguments.get("norm_type", 2.0))
        return None

    def _clip_grads_with_norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> After | None:
        """The second half of `clip_grad_norm_`, also called by those who compute the norm apart."""
        if not self._is_clipping:
            given = _CLIP_WITH_NORM.bind(*args, **kwargs).arguments
            self._note(_parameters(given["parameters"]), given["total_norm"], self._norm_type, given["max_norm"])
        return None

    def _note(self, parameters: list[Tensor], norm: Any, norm_type: float | None, limit: Any) -> None:
        with_gradient = [p for p in parameters if p.grad is not None]
        ours = {id(p) for p in with_gradient if self._owns(p)}
        if not ours:
            return
        if len(ours) < len({id(p) for p in with_gradient}):
            self._give_up("parameters of the model were clipped together with others")
            return
        if norm_type != 2.0:
            by = "a norm of unknown kind" if norm_type is None else f"their {norm_type:g}-norm"
            self._give_up(f"gradients were clipped by {by}, and the 2-norm is recorded")
            return
        if type(norm) not in PLAIN:
            self._give_up(f"the norm is a {type(norm).__name__}, each rank's part of one")
            return
        before = set().union(*(clip.parameters for clip in self._clips))
        allowed = float(limit) if isinstance(limit, int | float) else math.nan
        if ours <= before:  # clipped already: what it was before is known
            for clip in self._clips:
                if clip.parameters & ours:
                    clip.limit = min(clip.limit, allowed) if clip.parameters == ours else math.nan
            return
        if ours & before:
            self._give_up("gradients were clipped over parts of the model that overlap")
            return
        self._clips.append(_Clip(ours, norm, allowed))

    def _give_up(self, reason: str) -> None:
        self._reason = reason
        if reason not in self._said:
            self._said.add(reason)
            _LOG.warning("internist: gradient.norm_before_clip is not measured: %s", reason)


def _after(clips: list[_Clip]) -> float | None:
    """The norm of all that these clips have left; None where it does not lie on the host or is not known."""
    if any(clip.norm.device.type != "cpu" or math.isnan(clip.limit) for clip in clips):
        return None
    return math.hypot(*(clip.after() for clip in clips))


def _parameters(given: Any) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def _with_list(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with the parameters as a list, where they could be read only once. An empty generator stays
    one: torch warns of it."""
    given = args[0] if args else kwargs.get("parameters")
    if (
        given is None
        or isinstance(given, Tensor | list | tuple | set | frozenset | dict)
        or not hasattr(given, "__iter__")
    ):
        return args, kwargs
    read: Any = list(given)
    if not read and isinstance(given, types.GeneratorType):
        read = (parameter for parameter in list[Tensor]())
    return ((read, *args[1:]), kwargs) if args else (args, {**kwargs, "parameters": read})


def _signature(name: str) -> Signature:
    return signature(getattr(clip_grad, name, clip_grad.clip_grad_norm_))


_CLIP_GRAD_NORM = _signature("clip_grad_norm_")
_CLIP_WITH_NORM = _signature("_clip_grads_with_norm_")
_GET_TOTAL_NORM = _signature("_get_total_norm")
