"""What optimizers tell of themselves: which algorithm steps each parameter, and their diagnostics on sampled steps.

An optimizer is known by what it offers, never by its class: `param_groups`, and where it has them `describe()`,
`request_diagnostics()` and `diagnostics()`. What it tells is recorded as it is, without waiting for the device, and an
optimizer that fails at it is not asked again.
"""

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from internist.model.outline import Outline, WatchedParameter, hidden_matrices
from internist.model.views import facts_of
from internist.observe.faults import Faults
from internist.observe.optimizer_facts import parameter_groups
from internist.observe.routing import algorithm_of, is_matrix_algorithm
from internist.observe.sampling import HEAVY_EVERY, Due, Sampling
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook
from internist.schema.metrics import METRICS
from internist.schema.wire import Facts, Series

log = logging.getLogger("internist")

GAP_POLICIES = frozenset({"cap", "none"})
"""Gap policies under which nothing but the spectral gap keeps the operator norm of a weight."""
LEAST_GAP = 1e-6
"""A gap that is used up, or crossed, counts as this small: the share of it that a step uses stays a number."""
OPTIMIZER_METRICS = tuple(name for name in METRICS if name.startswith("optimizer."))
NAMED = 3
"""Names in a warning; the rest is counted."""


class OptimizerCapture:
    """Records what the optimizers that take part tell of the parameters they step."""

    def __init__(
        self, outline: Outline, *, book: SeriesBook, faults: Faults, sampling: Sampling, reports_routing: bool
    ) -> None:
        self._book, self._faults, self._sampling, self._reports_routing = book, faults, sampling, reports_routing
        self._outline = outline
        self._by_id: dict[int, WatchedParameter] = {}
        self._hidden = hidden_matrices(outline)
        self._algorithms: dict[int, str] = {}
        """By order: what steps each parameter, as last seen."""
        self._classes: dict[int, str] = {}
        self._told: set[tuple[int, str]] = set()
        self._has_warned = False
        self._left_out: set[int] = set()
        """Orders of parameters that were ever in no optimizer."""

    def request(self, optimizer: Any) -> None:
        """Before a model-heavy step: ask for the diagnostics of that step, which may cost as much as the step."""
        if not self._sampling.wants(*OPTIMIZER_METRICS):
            return
        for teller in self._tellers(optimizer):
            ask = getattr(teller, "request_diagnostics", None)
            if callable(ask):
                self._guarded(teller, ask)

    def pull(self, optimizer: Any, recorder: Recorder, due: Due) -> None:
        """After the step: record what the optimizer tells of it, and on heavy steps whom it steps."""
        if due.heavy:
            self._note(optimizer)
        if not self._sampling.wants(*OPTIMIZER_METRICS):
            return
        self._by_id = {id(p.tensor): p for p in self._outline.parameters if not p.excluded}
        for teller in self._tellers(optimizer):
            self._guarded(teller, partial(self._record, teller, optimizer, recorder))

    def finish(self, recorder: Recorder, due: Due, *, grouped: Collection[int]) -> None:
        """When the round is over: record which hidden matrices are not on the matrix optimizer, if there is one, and
        what was forgotten.

        Args:
            recorder: takes it.
            due: what the step measures.
            grouped: orders of parameters that are in some optimizer.
        """
        self._told.clear()
        if due.heavy and self._reports_routing and grouped:
            self._record_left_out(recorder, grouped)
        if not due.heavy or not self._reports_routing or not self._sampling.wants("optimizer.misrouted"):
            return
        if not any(map(is_matrix_algorithm, self._algorithms.values())):
            return
        astray = []
        for parameter in self._hidden:
            algorithm = self._algorithms.get(parameter.order)
            if algorithm is None or not parameter.tensor.requires_grad:
                continue
            is_astray = not is_matrix_algorithm(algorithm)
            series = self._series(parameter, "optimizer.misrouted", self._classes[parameter.order], rarely=True)
            if series is not None:
                recorder.add_host(series, float(is_astray))
            astray += [parameter] if is_astray else []
        if astray:
            self._warn(astray)

    # ---- private ---------------------------------------------------------------------------------------------------

    def _record_left_out(self, recorder: Recorder, grouped: Collection[int]) -> None:
        """Record which parameters want a gradient and are in no optimizer. Where most are, that is how it is meant, or
        the optimizer's tensors are others than the model's."""
        wanting = [p for p in self._outline.parameters if not p.excluded and p.tensor.requires_grad]
        forgotten = {p.order for p in wanting if p.order not in grouped}
        if 2 * len(forgotten) < len(wanting):
            self._left_out |= forgotten
        for parameter in self._outline.parameters if self._left_out else ():
            if parameter.order in self._left_out:
                series = self._series(parameter, "optimizer.left_out", "as grouped", rarely=True)
                recorder.add_host(series, float(parameter.order in forgotten))

    def _tellers(self, optimizer: Any) -> list[Any]:
        return [
            t
            for t in tellers(optimizer)
            if not self._faults.is_given_up("optimizer", f"{type(t).__name__}.diagnostics")
        ]

    def _guarded(self, teller: Any, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._faults.note("optimizer", f"{type(teller).__name__}.diagnostics", error, final=True)

    def _note(self, optimizer: Any) -> None:
        by_id = self._by_id = {id(p.tensor): p for p in self._outline.parameters if not p.excluded}
        for group in parameter_groups(optimizer):
            algorithm = algorithm_of(optimizer, group)
            for tensor in group["params"]:
                parameter = by_id.get(id(tensor))
                if parameter is not None:
                    self._algorithms[parameter.order] = algorithm
                    self._classes[parameter.order] = type(optimizer).__name__

    def _record(self, teller: Any, optimizer: Any, recorder: Recorder) -> None:
        groups = {id(tensor): group for group in parameter_groups(optimizer) for tensor in group["params"]}
        rarely = hasattr(teller, "request_diagnostics")
        by_device: dict[torch.device, tuple[list[Series | None], list[Tensor]]] = {}
        for tensor, metrics in teller.diagnostics().items():
            parameter = self._by_id.get(id(tensor))
            if parameter is None:
                continue
            group = groups.get(id(tensor), {})
            policy = group.get("policy")
            how = f"told by {type(teller).__name__}" + (f", policy {policy}" if isinstance(policy, str) else "")
            for metric, value in {**metrics, **_gap_use(metrics, group)}.items():
                series = self._series(parameter, metric, how, rarely=rarely)
                if series is None or (parameter.order, metric) in self._told:
                    continue
                self._told.add((parameter.order, metric))
                if isinstance(value, Tensor):
                    layout, values = by_device.setdefault(value.device, ([], []))
                    layout.append(series)
                    values.append(value if value.dtype == torch.float32 and value.dim() == 0 else _scalar(value))
                else:
                    recorder.add_host(series, float(value))
        for layout, values in by_device.values():
            recorder.add(layout, torch.stack(values).detach())

    def _series(self, parameter: WatchedParameter, metric: str, method: str, *, rarely: bool) -> Series | None:
        """The series of a metric of the catalogue; None for what is not in it, or not wanted."""
        if metric not in METRICS or not metric.startswith("optimizer."):
            return None

        def facts() -> Facts:
            cadence = self._sampling.every * (HEAVY_EVERY if rarely else 1)
            return facts_of(parameter, method=method, cadence=cadence)

        return self._book.series(metric, "parameter", parameter.name, facts)

    def _warn(self, astray: Sequence[WatchedParameter]) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        others = sorted({self._classes[p.order] for p in astray})
        matrix = sorted({self._classes[o] for o, name in self._algorithms.items() if is_matrix_algorithm(name)})
        names = [p.name for p in astray[:NAMED]] + ([f"{len(astray) - NAMED} more"] if len(astray) > NAMED else [])
        log.warning(
            "internist: %d of %d hidden matrices are stepped by %s, not as matrices, although %s takes part: %s; "
            "internist.optim.split_parameters makes groups in which they are",
            len(astray), len(self._hidden), " and ".join(others), " and ".join(matrix), ", ".join(names),
        )  # fmt: skip


def tellers(optimizer: Any) -> Iterator[Any]:
    """What offers diagnostics of an optimizer's step: itself, and objects that it calls after each step."""
    if callable(getattr(optimizer, "diagnostics", None)):
        yield optimizer
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", None)
    for hook in list(hooks.values()) if isinstance(hooks, Mapping) else []:
        plain = inspect.unwrap(hook)  # out of what keeps a compiler away from it
        owner = getattr(plain, "__self__", plain)
        if owner is not optimizer and callable(getattr(owner, "diagnostics", None)):
            yield owner


def _scalar(value: Tensor) -> Tensor:
    """() float32 of a tensor of one entry; of any other an error."""
    return value.reshape(()).float()


def _gap_use(metrics: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Tensor]:
    """Learning rate over gap, under the policies that rest on the gap."""
    gap, rate = metrics.get("optimizer.gap"), group.get("lr")
    if not isinstance(gap, Tensor) or group.get("policy") not in GAP_POLICIES or rate is None:
        return {}
    return {"optimizer.gap_use": rate / gap.detach().float().clamp(min=LEAST_GAP)}
