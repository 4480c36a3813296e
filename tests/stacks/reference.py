"""What a run's values must be: float64, by plain hooks of torch, in the twin that is not watched."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module")
"""Parts of a qualified name that a wrapper puts in it."""

Values = dict[tuple[str, str, int | None], dict[int, float]]


def plain(name: str) -> str:
    """A qualified name without wrappers' parts; the root's is `model`, as the client shows it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or "model"


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in what a module returned."""
    if isinstance(value, Tensor):
        return value
    members: Iterable[Any] = value.values() if hasattr(value, "values") else value if isinstance(value, tuple) else ()
    return next((found for member in members if (found := first_tensor(member)) is not None), None)


class Reference:
    """Activations, gradients, updates, weights and attention logits of a model, by metric, subject and step.

    A round ends when the first module is called after an optimizer of the model has stepped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = 0
        self.called: set[str] = set()
        """Modules that were called in training and gave a floating-point tensor."""
        self.stepped: set[str] = set()
        """Parameters that had a gradient when an optimizer stepped."""
        self._stepped_since_forward = False
        self._squares: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._values: Values = defaultdict(dict)
        self._before: dict[int, Tensor] = {}
        self._stack: list[str] = []
        self._logits = _LogitsMode(self)
        self._handles: list[Any] = []
        self._followed: set[int] = set()
        self._follow_all()
        self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        self._logits.__enter__()

    def close(self) -> None:
        """Remove every hook."""
        self._logits.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    @property
    def values(self) -> Values:
        """Everything recorded, as the client's reader gives it."""
        found: Values = {key: dict(steps) for key, steps in self._values.items()}
        for (name, step), (squares, count) in self._squares.items():
            found.setdefault(("activation.rms", name, None), {})[step] = math.sqrt(squares / count)
        return found

    # ---- hooks -----------------------------------------------------------------------------------------------------

    def _follow_all(self) -> None:
        """Put hooks on modules that have none yet; those of a copy of the model are not its own and say nothing."""
        for raw, module in self.model.named_modules():
            if id(module) in self._followed:
                continue
            self._followed.add(id(module))
            name = plain(raw)
            self._handles += [
                module.register_forward_pre_hook(lambda m, _, own=module, name=name: self._enter(name, m is own)),
                module.register_forward_hook(
                    lambda m, _, out, own=module, name=name: self._leave(name, out, m is own), always_call=True
                ),
            ]

    def _enter(self, name: str, mine: bool) -> None:
        if not mine:
            return
        if not self._stack:
            self._follow_all()
        self._stack.append(name)
        if torch.is_grad_enabled() and self._stepped_since_forward:
            self._stepped_since_forward = False
            self.step += 1

    def _leave(self, name: str, output: Any, mine: bool) -> None:
        if not mine or not self._stack:
            return
        self._stack.pop()
        out = first_tensor(output)
        recomputed = torch._C._current_graph_task_id() != -1
        if out is None or recomputed or not torch.is_grad_enabled() or not out.is_floating_point() or not out.numel():
            return
        self.called.add(name)
        sums = self._squares[name, self.step]
        sums[0] += out.detach().double().square().sum().item()
        sums[1] += out.numel()

    def _named(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [(plain(name), p) for name, p in self.model.named_parameters() if id(p) in mine]

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        for name, parameter in self._named(optimizer):
            self._before[id(parameter)] = parameter.detach().double().clone()
            self._gradient(name, parameter)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        owned = self._named(optimizer)
        self._stepped_since_forward = self._stepped_since_forward or bool(owned)
        for name, parameter in owned:
            after = parameter.detach().double()
            self._gradient(name, parameter)  # again: a closure has made others
            self._values["weight.rms", name, None][self.step] = rms(after)
            if id(parameter) in self._before:
                self._values["update.rms", name, None][self.step] = rms(after - self._before.pop(id(parameter)))
            if after.dim() == 2:
                norm = torch.linalg.matrix_norm(after, 2).item()
                self._values["weight.spectral_norm", name, None][self.step] = norm
            if after.dim() == 3:  # a stack of experts
                for expert, norm in enumerate(torch.linalg.matrix_norm(after, 2).tolist()):
                    self._values["weight.spectral_norm", name, expert][self.step] = norm

    def _gradient(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            self.stepped.add(name)
            self._values["gradient.rms", name, None][self.step] = rms(parameter.grad.to_dense())

    def saw_logits(self, logits_BNTS: Tensor) -> None:
        """Logits that enter a softmax, in the module that is under way."""
        if not self._stack or not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        hidden = logits_BNTS <= torch.finfo(logits_BNTS.dtype).min / 2  # as masks write what is not seen
        visible = logits_BNTS.detach().double().masked_fill(hidden, -math.inf)
        for head, largest in enumerate(visible.amax((0, 2, 3)).tolist()):
            steps = self._values["attention.max_logit", self._stack[-1], head]
            steps[self.step] = max(largest, steps.get(self.step, -math.inf))


class _LogitsMode(TorchFunctionMode):
    """Sees every softmax over a tensor of four dimensions, and materialises the logits of fused attention."""

    SOFTMAXES = (functional.softmax, torch.softmax, Tensor.softmax)

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in self.SOFTMAXES and args and args[0].dim() == 4:
            self._reference.saw_logits(args[0])
        if function is functional.scaled_dot_product_attention:
            self._reference.saw_logits(fused_logits(*args, **kwargs))
        return function(*args, **kwargs)


def fused_logits(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What enters the softmax of `scaled_dot_product_attention`, in float64."""
    query, key = query.detach().double(), key.detach().double()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is None:
        return logits
    if attn_mask.dtype == torch.bool:
        return logits.masked_fill(~attn_mask, -math.inf)
    return logits + attn_mask.detach().double().masked_fill(
        attn_mask <= torch.finfo(attn_mask.dtype).min / 2, -math.inf
    )


def rms(x: Tensor) -> float:
    """RMS of all entries, in float64."""
    return x.detach().double().square().mean().sqrt().item()
