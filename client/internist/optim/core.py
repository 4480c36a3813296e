"""The core that every matrix optimizer here shares: momentum, direction, scale, decay, write.

Each step, for each bucket of equal-shaped matrices:

    _direction        momentum <- mu momentum + (1 - mu) gradient; N = (1 - mu) gradient + mu momentum
    _project          what a subclass does to N before Newton-Schulz
    newton_schulz     D = U f(S) V' of N, by the group's coefficient set
    _finish           what a subclass does to D
    _write            W <- (1 - lr weight_decay) W - lr alpha D

A subclass overrides `_project`, `_finish` and `_write`. Who computes which bucket is the exchange's matter: it is
given the groups and calls `_direction`, `_orthogonalized` (the middle three) and `_write` (see `Exchange`). On the
CPU a bucket is a few matrices that stay in the cache; on other devices it is a stack (`stack`) of all that are of one
shape in a group, as far as memory allows, and what needs no shape is done for all stacks of a group at once (`_begin`).

The momentum is torch.optim.Muon's moving average: the direction is the same as that of the sum `mu M + G`, which is
1 / (1 - mu) times as long, and its checkpoints load here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from internist.optim import passes, stack, switches
from internist.optim.adamw import step_adamw
from internist.optim.bucket import STACK_BYTES, Bucket, Group, fits, learning_rate
from internist.optim.coefficients import coefficients, norm_band, orthogonality_residual
from internist.optim.group_checks import check_decay, check_group
from internist.optim.matrices import matrix_views
from internist.optim.newton_schulz import newton_schulz
from internist.optim.parallel import step_each
from internist.optim.promise import update_promise
from internist.optim.scaling import scale
from internist.optim.whole import Side, Viewer, Views

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from internist.optim.shared_rounds import Held

__all__ = ["Alone", "Bucket", "Exchange", "Group", "MatrixOptimizer", "fits", "is_shared", "learning_rate"]

LIKE_PARAMETER = {"momentum_buffer", "exp_avg", "exp_avg_sq"}
"""What of a parameter's state has its shape."""


class Exchange(Protocol):
    """Who orthogonalises what. With one process: everyone their own (`Alone`); else owners (`distributed.Ranks`)."""

    def run(self, optimizer: "MatrixOptimizer", groups: Sequence[Group]) -> None:
        """Step the matrices of the groups: `_direction` and `_write` everywhere, `_orthogonalized` on whole ones."""


class Alone:
    """One process: bucket after bucket, so that only one bucket's temporaries live at a time, or one per thread."""

    def run(self, optimizer: "MatrixOptimizer", groups: Sequence[Group]) -> None:
        """Step each bucket to its end before the next."""

        def step(bucket: Bucket) -> None:
            optimizer._write(bucket, optimizer._orthogonalized(bucket, optimizer._direction(bucket)))

        # what is noted of one parameter may come from two buckets
        threads = 1 if optimizer._wants_diagnostics else torch.get_num_threads()
        step_each(optimizer._buckets(groups), step, threads=threads)


class MatrixOptimizer(torch.optim.Optimizer):
    """Steps matrices by their orthogonalised momentum, and groups with `algorithm="adamw"` by AdamW."""

    exchange: Exchange = Alone()

    traceable = True
    """Whether a compiler may trace the step of the matrices; else a compiled `step` calls it as it is."""

    writes_whole = False
    """Whether `_orthogonalized` or `_write` looks at the weight: then the owner of a matrix needs all of it, and what
    it puts into the parameter's state (but "step" and "momentum_buffer") is copied to all ranks."""

    stack_bytes = STACK_BYTES
    """Bytes of weights that are stepped as one stack at most."""

    def __init__(self, params: Any, defaults: Group, *, process_group: "ProcessGroup | None" = None) -> None:
        self._process_group = process_group
        self._wants_diagnostics = False
        self._diagnostics: dict[Tensor, dict[str, Tensor]] = {}
        self._views: Views | None = None
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # of a copy or a pickle, which hold groups and state alone
        made: dict[str, Any] = {"_process_group": None, "_wants_diagnostics": False, "_diagnostics": {}, "_views": None}
        self.__dict__.update({name: value for name, value in made.items() if name not in self.__dict__})

    # -- groups

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch's optimizers do; its own keys win over the constructor's.

        Raises:
            ValueError: a value out of range, a key near a known one, a parameter already here, or one that is no
                matrix in a group whose algorithm is not "adamw".
            TypeError: a parameter that is complex or not floating.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        if isinstance(self.exchange, Alone) and (self._process_group or any(map(is_shared, group["params"]))):
            from internist.optim.distributed import Ranks

            self.exchange = Ranks(self._process_group)

    def _check_group(self, group: Group) -> None:
        """Refuse bad values. A subclass checks its own keys and calls this one first."""
        check_group(group, self.defaults)

    # -- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a gradient is sparse.
            ValueError: a schedule made weight decay take more than all of a weight. Nothing is stepped then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._diagnostics = {}
        for group in self.param_groups:
            self._check_schedule(group)
        matrices = [group for group in self.param_groups if group["algorithm"] != "adamw"]
        if self.traceable:
            self.exchange.run(self, matrices)
        else:
            _run_untraced(self, matrices)
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                step_adamw(list(self._with_gradient(group)), self.state, group)
        self._wants_diagnostics = False
        return loss

    def _check_schedule(self, group: Group) -> None:
        """Refuse rates that schedules led to and that would turn weights over. A subclass adds its own."""
        check_decay(group)

    def _buckets(self, groups: Iterable[Group]) -> Iterator[Bucket]:
        """The buckets of this step, of parameters with a gradient, in the order of groups and parameters."""
        for group in groups:
            stepped = list(self._with_gradient(group))
            counts = [self._state_of(parameter, group)["step"] for parameter in stepped]
            if counts:
                torch._foreach_add_(counts, 1.0)
            buckets = self._cut(stepped, group)
            self._begin([bucket for bucket in buckets if bucket.stacked])
            yield from buckets

    def _cut(self, stepped: Sequence[Tensor], group: Group) -> list[Bucket]:
        """The buckets of parameters of one group, in their order."""
        buckets: list[Bucket] = []
        open_buckets: dict[Any, Bucket] = {}
        is_plain = group["layout"] == "out_in" and group["row_blocks"] is None
        for parameter in stepped:
            gradient, momentum = parameter.grad, self.state[parameter]["momentum_buffer"]
            assert gradient is not None
            stacked = self._stacks(parameter.device)
            if stacked and is_plain and parameter.ndim == 2:  # views are operators too
                pieces = [(parameter, gradient, momentum)]
            else:
                views = (matrix_views(tensor, parameter, group) for tensor in (parameter, gradient, momentum))
                pieces = list(zip(*views, strict=True))
            offset = 0
            for weight, grad, buffer in pieces:
                key = (weight.shape[-2:], weight.ndim, weight.dtype, grad.dtype, weight.device)
                bucket = open_buckets.get(key)
                if bucket is None or not fits(bucket, weight, stack_bytes=self.stack_bytes):
                    bucket = open_buckets[key] = Bucket(group, [], [], [], [], [], stacked)
                    buckets.append(bucket)
                bucket.params.append(parameter)
                bucket.weights.append(weight)
                bucket.gradients.append(grad)
                bucket.momenta.append(buffer)
                bucket.offsets.append(offset)
                offset += weight.shape[0]
        return buckets

    def _stacks(self, device: torch.device) -> bool:
        """Whether matrices of a device are stepped as stacks: everywhere but on a CPU."""
        return device.type != "cpu"

    def _begin(self, buckets: Sequence[Bucket]) -> None:
        """Do at once, for the stacks of one group, what needs neither shapes nor memory: momenta, and decay."""
        if not buckets:
            return
        stack.accumulate(buckets)
        group = buckets[0].group
        if not (self.writes_whole or group.get("cautious")):  # else weights are looked at before they are written to
            stack.decay(buckets, 1.0 - learning_rate(group) * group["weight_decay"])

    def _with_gradient(self, group: Group) -> Iterator[Tensor]:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise TypeError(f"sparse gradients are not supported, got one of shape {tuple(parameter.shape)}")
            yield parameter

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:  # noqa: ARG002
        """A matrix parameter's state, made when it is first stepped. A subclass adds its own to what this returns."""
        state: dict[str, Any] = self.state[parameter]
        if "step" not in state:  # torch.optim.Muon counts none
            state["step"] = torch.zeros((), dtype=torch.float32)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _forget(self) -> None:
        """Drop what the host remembers of the state: matrices have new owners, who have not seen it change."""

    def _accumulate(self, bucket: Bucket) -> None:
        """Update the momenta alone, as `_direction` does: for matrices whose direction another rank makes."""
        if bucket.stacked:
            stack.accumulate([bucket])
            return
        sign = -1.0 if bucket.group["maximize"] else 1.0
        for gradient, momentum in zip(bucket.gradients, bucket.momenta, strict=True):
            signed = (gradient if sign > 0 else -gradient).to(momentum.dtype)
            passes.accumulate(signed, momentum, mu=bucket.group["momentum"])

    def _direction(self, bucket: Bucket) -> Tensor:
        """Update the momenta and return the directions, (matrices, fan_out, fan_in) in the arithmetic's dtype.

        They lie in memory of their own. Entry by entry: also called with shards, of any shape.
        """
        if bucket.stacked:
            if not bucket.accumulated:
                stack.accumulate([bucket])
            return stack.direction(bucket)
        group = bucket.group
        gradients, momenta, mu = bucket.gradients, bucket.momenta, group["momentum"]
        if group["maximize"]:
            gradients = [-gradient for gradient in gradients]
        # a checkpoint's momentum may be wider than the gradient
        gradients = [gradient.to(momentum.dtype) for gradient, momentum in zip(gradients, momenta, strict=True)]
        direction = torch.empty(sum(bucket.counts), *momenta[0].shape[1:], dtype=bucket.dtype)
        for piece in zip(gradients, momenta, bucket.pieces(direction), strict=True):
            passes.advance(*piece, mu=mu, nesterov=group["nesterov"])
        return direction

    def _orthogonalized(self, bucket: Bucket, direction: Tensor) -> Tensor:
        """D of the directions, same shape: project, Newton-Schulz, finish."""
        known = coefficients(bucket.group["coefficients"])
        projected = self._project(bucket, direction)
        d = newton_schulz(projected, known.of_length(bucket.group["steps"]), known.shrink, batched=bucket.stacked)
        return self._finish(bucket, d)

    def _project(self, bucket: Bucket, direction: Tensor) -> Tensor:  # noqa: ARG002
        """Before Newton-Schulz: (matrices, fan_out, fan_in) to the same. May change `direction` in place."""
        return direction

    def _finish(self, bucket: Bucket, d: Tensor) -> Tensor:  # noqa: ARG002
        """After Newton-Schulz: (matrices, fan_out, fan_in) to the same. May change `d` in place."""
        return d

    def _write(self, bucket: Bucket, d: Tensor) -> None:
        """W <- (1 - lr weight_decay) W - lr alpha D, for every piece. Entry by entry, unless `writes_whole`."""
        weight_decay, alpha = bucket.group["weight_decay"], self._scale(bucket)
        lr = learning_rate(bucket.group)
        if bucket.group.get("cautious"):
            switches.decay_cautiously(bucket, d, lr * weight_decay)
            weight_decay, bucket.decayed = 0.0, True
        if bucket.stacked:
            if not bucket.decayed:
                stack.decay([bucket], 1.0 - lr * weight_decay)
            stack.subtract(bucket, d, lr * alpha)
        else:
            for weight, part in zip(bucket.weights, bucket.pieces(d), strict=True):
                if isinstance(lr, Tensor):
                    rate = lr.to(weight.device, weight.dtype)
                    weight.mul_(1.0 - rate * weight_decay).addcmul_(part.to(weight.dtype), rate, value=-alpha)
                else:
                    passes.write(weight, part, keep=1.0 - lr * weight_decay, length=lr * alpha)
        if self._wants_diagnostics:
            self._diagnose(bucket, d)

    def _change_of(self, bucket: Bucket) -> float | Tensor | None:
        """What D is multiplied by to be all that `_write` changes; None where weights decide of that as well."""
        if bucket.group["weight_decay"] or bucket.weights[0].dtype.itemsize < torch.float32.itemsize:
            return None
        return -learning_rate(bucket.group) * self._scale(bucket)

    def _needs_whole(self, bucket: Bucket, *, shares: bool) -> bool:  # noqa: ARG002
        """Whether this step, already counted, of a sharded parameter needs the whole weight on its owner, where
        `writes_whole`; `shares`: ranks may find norms together. The same on all ranks."""
        return True

    def _may_show(self, bucket: Bucket, *, shares: bool) -> bool:  # noqa: ARG002
        """Whether a step of a sharded parameter takes the same numbers on an owner that sees the whole weight, so that
        who looks on changes nothing. The same on all ranks."""
        return True

    def _end_parts(self, parts: "Sequence[Held]", add_up: Callable[[Tensor], None]) -> None:
        """After `_write_part`, of the parameters of which ranks may find norms together. The same on all ranks."""

    def _write_part(self, bucket: Bucket, d: Tensor) -> None:
        """`_write` of what a rank holds of a sharded parameter whose owner did not write it."""
        self._write(bucket, d)

    @property
    def _looks_on(self) -> bool:
        """Whether somebody wants to know of the next step what only whole weights tell."""
        return self._wants_diagnostics or self._views is not None

    def _scale(self, bucket: Bucket) -> float:
        """alpha of the bucket's shape."""
        return scale(bucket.group["scale"], bucket.fan_out, bucket.fan_in, tau=bucket.group.get("tau", 1.0))

    # -- checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; torch.optim.Muon's will do, with its group keys added to ours.

        Every tensor keeps the dtype it was saved in, where torch would turn it into its parameter's.

        Raises:
            ValueError: the groups hold other numbers of parameters, or a state is of another shape than its parameter.
        """
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, own, strict=False):
            for key in LIKE_PARAMETER & state_dict["state"].get(index, {}).keys():
                shape = state_dict["state"][index][key].shape
                if shape != parameter.shape:
                    what = f"{tuple(shape)} for a parameter of {tuple(parameter.shape)}"
                    raise ValueError(f"the saved {key!r} is of another shape: {what}")
        before = self.param_groups
        super().load_state_dict(state_dict)
        for group, known in zip(self.param_groups, before, strict=True):
            group.update({key: value for key, value in known.items() if key not in group})
        for index, parameter in zip(saved, own, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[parameter][key].dtype:
                    self.state[parameter][key] = value.detach().clone().to(self.state[parameter][key].device)

    # -- what it knows

    def request_diagnostics(self) -> None:
        """Ask the next step to note down what costs a little to know."""
        self._wants_diagnostics = True

    def diagnostics(self) -> dict[Tensor, dict[str, Tensor]]:
        """What the last step noted: parameter -> metric -> 0-d tensor. Empty if it was not asked to."""
        return self._diagnostics

    def request_whole(self, parameters: Iterable[Tensor], viewer: Viewer) -> None:
        """Ask the next step to show matrices of which ranks hold pieces, on the rank that has them whole: a parameter's
        owner. Costs a copy of each such weight; where the owner would not have one at this step, it is sent there.

        Args:
            parameters: others than sharded matrices are never shown.
            viewer: called in the middle of the step. It must not raise, change or keep what it sees.
        """
        self._views = Views(parameters, viewer)

    def shown_whole(self) -> dict[Tensor, frozenset[Side]]:
        """What of the parameters that were asked for the last step showed, here or on another rank: weight and update,
        or the update alone. None that was written to since. Forgotten once it is told."""
        views, self._views = self._views, None
        return {} if views is None else views.shown()

    def _diagnose(self, bucket: Bucket, d: Tensor) -> None:
        """Note what is known of a bucket after its write. A subclass notes its own and calls this one."""
        group = bucket.group
        rate = torch.as_tensor(group["lr"] * self._scale(bucket), dtype=torch.float32, device=bucket.device)
        image = norm_band(group["coefficients"], group["steps"], side=min(bucket.fan_out, bucket.fan_in))
        count = d.shape[0]
        self._note(bucket, "optimizer.effective_lr", rate.expand(count))
        if group.get("normuon") is not None:  # its rows are of other lengths than a set makes them
            return
        self._note(bucket, "optimizer.update_norm_low", (rate * image.low).expand(count), worst=torch.minimum)
        self._note(bucket, "optimizer.update_norm_high", (rate * image.high).expand(count))
        self._note(bucket, "optimizer.orthogonality", orthogonality_residual(d))

    def _note(
        self,
        bucket: Bucket,
        metric: str,
        values: Tensor,
        *,
        worst: Callable[[Tensor, Tensor], Tensor] = torch.maximum,
    ) -> None:
        """Note one value per matrix, (matrices,); a parameter of several keeps the worst. NaN is the worst of all."""
        for parameter, value in zip(bucket.params, torch.split(values, bucket.counts), strict=True):
            noted = self._diagnostics.setdefault(parameter, {})
            value = value.amin() if worst is torch.minimum else value.amax()
            noted[metric] = worst(noted[metric], value) if metric in noted else value

    def describe(self) -> list[dict[str, Any]]:
        """One row per parameter: how it is stepped. JSON-able."""
        rows = []
        for index, group in enumerate(self.param_groups):
            names = group.get("param_names") or [None] * len(group["params"])
            for name, parameter in zip(names, group["params"], strict=True):
                row = {
                    "parameter": name,
                    "shape": list(parameter.shape),
                    "role": group.get("role"),
                    "algorithm": group["algorithm"],
                    "group": group.get("name", index),
                }
                if group["algorithm"] != "adamw":
                    row |= {"scale": group["scale"], "coefficients": group["coefficients"]}
                    row["policy"] = group.get("policy")
                    row |= update_promise(parameter, group)
                rows.append(row)
        return rows


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run_untraced(optimizer: MatrixOptimizer, groups: Sequence[Group]) -> None:
    optimizer.exchange.run(optimizer, groups)


def is_shared(parameter: Tensor) -> bool:
    """Whether it is a DTensor, told without importing what makes them."""
    return hasattr(parameter, "placements")
