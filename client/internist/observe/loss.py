"""The run's loss, where nobody logs it: from what the root returns, else from what `backward` is called on."""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from internist.model.patches import function, listen_to
from internist.model.plain import PLAIN

NODES = 512
"""Nodes of a loss's graph that are looked at for an output of the model."""
REMEMBERED = 3
"""Rounds for which a loss that was found counts as known."""


class LossPickup:
    """Gathers the losses of a round's micro-batches.

    A loss that the root returns counts. Else it is what `backward` is called on, where that is one number, its graph
    leads to an output of a training forward of this round, and it happens once in the round: of several micro-batches
    nobody but the user knows whether he has divided them. A loss that a gradient scaler has multiplied is taken as it
    was before.
    """

    def __init__(self) -> None:
        self._returned: list[Tensor] = []
        self._backwards: list[Tensor] = []
        self._outputs: set[int] = set()
        """Sequence numbers of the graph nodes that made the outputs of this round."""
        self._scaled: tuple[weakref.ref[Tensor], Tensor | None] | None = None
        self._rounds_without = REMEMBERED
        self.is_sampled = True
        """Whether a loss that lies on an accelerator is read in this round: that is a launch. One on the host is in
        every round."""
        self._passed_by = False
        """Whether one was not."""
        self._unread: list[Tensor] = []
        self.unread: Tensor | None = None
        """The loss of the last round, where it was not read: the user's own memory, which may change."""
        self._listening = listen_to(
            (
                (function(torch.autograd, "backward"), self._backward),
                (function(torch.amp.GradScaler, "scale"), self._scale),
            )
        )

    @property
    def found(self) -> bool:
        """Whether one of the last rounds had a loss."""
        return self._rounds_without < REMEMBERED

    def take(self, output: Any) -> None:
        """Look for a loss in what the root returned from a training forward."""
        loss = loss_of(output)
        if loss is not None:
            self._keep(self._returned, self._read(loss))
        else:
            self._outputs.update(
                node._sequence_nr() for tensor in _tensors(output) if (node := tensor.grad_fn) is not None
            )

    def mean(self) -> Tensor | None:
        """The loss of the round that is over, and begin anew; None where it is not known."""
        losses = self._returned or (self._backwards if len(self._backwards) == 1 else [])
        self._returned, self._backwards, self._scaled = [], [], None
        self._outputs.clear()
        passed_by, self._passed_by = self._passed_by, False
        self.unread = self._unread[0] if len(self._unread) == 1 and not losses else None
        self._unread = []
        self._rounds_without = 0 if losses or passed_by else self._rounds_without + 1
        if not losses:
            return None
        home = losses[0].device
        return losses[0] if len(losses) == 1 else torch.stack([loss.to(home) for loss in losses]).mean()

    def remove(self) -> None:
        """Listen no more."""
        for listening in self._listening:
            listening.remove()
        self._listening.clear()

    def _backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._outputs:
            return
        given = args[0] if args else kwargs.get("tensors")
        roots = list(given) if isinstance(given, tuple | list) else [given]
        if len(roots) != 1 or not _is_number(roots[0]) or not _leads_to(roots[0], self._outputs):
            return
        scaled, self._scaled = self._scaled, None
        was_scaled = scaled is not None and scaled[0]() is roots[0]
        self._keep(self._backwards, scaled[1] if was_scaled and scaled is not None else self._read(roots[0]))

    def _scale(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], None] | None:
        given = args[1] if len(args) > 1 else kwargs.get("outputs")
        if not self._outputs or not _is_number(given):
            return None
        before = self._read(given)

        def after(result: Any) -> None:
            if isinstance(result, Tensor):
                self._scaled = weakref.ref(result), before

        return after

    def _read(self, loss: Tensor) -> Tensor | None:
        if self.is_sampled or loss.device.type == "cpu":
            return _copied(loss)
        if type(loss) in PLAIN:
            self._unread.append(loss.detach())
        return None

    def _keep(self, losses: list[Tensor], loss: Tensor | None) -> None:
        if loss is None:
            self._passed_by = True
        else:
            losses.append(loss)


def _leads_to(loss: Tensor, outputs: set[int]) -> bool:
    """Whether one of these graph nodes is near a loss: outputs of a model are a few operators away from it."""
    waiting, seen = deque([loss.grad_fn]), 0
    while waiting and seen < NODES:
        node = waiting.popleft()
        if node is None:
            continue
        seen += 1
        if node._sequence_nr() in outputs:
            return True
        waiting.extend(following for following, _ in node.next_functions)
    return False


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a forward's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        yield from _tensors(vars(output))


def _copied(loss: Tensor) -> Tensor:
    """() float32 a copy without a graph, by one operator where it is a 0-d tensor."""
    with torch.no_grad():
        copy = loss.to(torch.float32, copy=True)
    return copy if copy.dim() == 0 else copy.reshape(())


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a root module returned from a training forward: what is called `loss`, else the only single
    number that wants a gradient: the output itself, or one of a tuple."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if _is_number(named):
        return named
    if isinstance(output, Tensor):
        return output if _is_loss(output) else None
    inside: Iterable[Any] = ()
    if isinstance(output, Mapping):
        inside = [value for key, value in output.items() if "loss" in str(key).lower()]
    elif isinstance(output, tuple | list):
        inside = output
    numbers = [each for each in inside if _is_loss(each)]
    return numbers[0] if len(numbers) == 1 else None


def wants_gradient(output: Any) -> bool:
    """Whether any tensor of a forward's output wants a gradient."""
    return any(tensor.requires_grad for tensor in _tensors(output))


def host_or_device(value: Tensor) -> float | Tensor:
    """A one-element tensor as a number if that needs no waiting, else a copy that stays on its device."""
    return float(value.detach().item()) if value.device.type == "cpu" else _copied(value)


def number_if_near(own: Tensor) -> float | Tensor:
    """A one-element tensor that nobody else has: as a number if that needs no waiting, else itself."""
    return float(own.item()) if own.device.type == "cpu" else own


def _is_number(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == 1 and not value.is_meta


def _is_loss(value: Any) -> bool:
    return _is_number(value) and value.requires_grad and value.dim() == 0 and not torch.is_inference(value)
