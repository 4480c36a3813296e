"""Calls inside compiled code: on sampled steps a second graph runs in the first one's place, which also computes what
each call says.

The graph is made by the model's own compiler with its own settings, from the same forward with a hook on every watched
module. The hooks are there only while it runs, and the user's graph is never traced with them. Everything that a
forward says leaves the graph as one tensor.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from internist.measures import activations as measure
from internist.model.axes import Axes
from internist.model.outline import Outline, WatchedModule
from internist.observe.calls import CallSeries
from internist.observe.faults import Faults
from internist.observe.own import Probe, has_rule, is_plain, probe_of
from internist.observe.seen import BLOCKS, INPUT, LOG_Z, OUTPUTS, WIDE_OUTPUT, Wanted
from internist.observe.tokens import OWN_TOKENS, at_positions, first_tensor, positions
from internist.record.recorder import Recorder
from internist.schema.wire import Series

log = logging.getLogger("internist")

Graph = Callable[..., tuple[Any, Tensor | None, tuple["_Said", ...]]]


class _Said(NamedTuple):
    """What a call's numbers are, in the order in which they lie in the tensor."""

    order: int
    metrics: tuple[str, ...]
    tokens: int
    entries: int
    width_in: int | None
    width_out: int
    is_normalized: bool | None
    """Whether its input is a normalisation layer's output; None: it has no input."""
    probe: tuple[int, ...] | None
    """Shape of what it received at its probe tokens, which lies behind its metrics."""


class InlineCalls:
    """A step's calls of a compiled model.

    Args:
        outline: of the model.
        series: makes series.
        wanted: which statistics are asked for.
        wants_own: whether what modules receive is kept for the change that their own update makes.
        faults: told why no graph can be made.
        kept: told of each module's call, and of what it received.
        ended: told that there are no calls from here on.
    """

    def __init__(
        self,
        outline: Outline,
        series: CallSeries,
        wanted: Wanted,
        *,
        wants_own: bool,
        faults: Faults,
        kept: Callable[[int, Probe | None], None],
        ended: Callable[[], None],
    ) -> None:
        self._outline, self._series, self._wanted, self._wants_own = outline, series, wanted, wants_own
        self._faults, self._kept, self._ended = faults, kept, ended
        self._axes: list[Axes] = []
        self._found: list[tuple[_Said, list[Tensor]]] = []
        """Of the forward that is being traced."""
        self._norms: list[Tensor] = []
        self._graphs: dict[int, Graph] = {}
        self._values: list[tuple[tuple[_Said, ...], Tensor]] = []
        self._marked = 0
        self._hooks = [
            (watched, self._hook(watched))
            for watched in outline.modules
            if not watched.excluded and not (watched.role == "root" and outline.head is not None)
        ]
        self.reason = ""
        """Why nothing is measured so; empty if it is."""

    @property
    def has_measured(self) -> bool:
        """Whether it has measured anything in this step."""
        return bool(self._values)

    def instead(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        """What makes a compiled module's call on a sampled step: its graph with statistics, or the call itself where
        there is none.

        Args:
            module: a wrapper of torch.compile, or a module that was compiled in place.
            call: what would make the call.
        """
        if self.reason:
            return call
        graph = self._graphs.get(id(module))
        if graph is None:
            compiler = _compiler(module, call)
            if compiler is None:
                return call
            whole = _whole(self._spoken())
            if whole is None:
                self._give_up(RuntimeError("this version of torch cannot be asked for one graph or none"))
                return call
            graph = self._graphs[id(module)] = compiler(whole)
        inner = _eager(module)

        def run(*args: Any, **kwargs: Any) -> Any:
            with self._hooked() as failures:
                output, values, said = graph(inner, *args, **kwargs)
            if failures:
                self._give_up(failures[0])
                return call(*args, **kwargs)
            try:
                self._take(values, said)
            except Exception as error:
                self._faults.note("monitor", "graph with statistics", error)
            return output

        return run

    def mark(self) -> None:
        """A forward begins: `roll_back` forgets what is measured from here on."""
        self._marked = len(self._values)

    def roll_back(self) -> None:
        """Forget what was measured since `mark`."""
        del self._values[self._marked :]

    def reset(self) -> None:
        """Forget the step's calls."""
        self._values.clear()

    def forget(self) -> None:
        """Keep no graph."""
        self.reset()
        self._graphs.clear()

    def drop(self, order: int) -> None:
        """Nothing is dropped: a graph measures all its modules or none."""

    def collect(self, recorder: Recorder, *, sampled: bool) -> None:  # noqa: ARG002
        """Hand the step's values to the recorder: they are those of the whole batch, whatever is replayed beside."""
        calls: dict[int, int] = {}
        for said, _ in self._values:
            for each in said:
                calls[each.order] = calls.get(each.order, 0) + 1
        for said, values in self._values:
            layout: list[Series | None] = []
            counts: list[int] = []
            places: list[Tensor] = []
            start = 0
            for each in said:
                stop = start + len(each.metrics)
                places.append(values[start:stop])
                start = stop + _size(each.probe)
                for metric in each.metrics:
                    quantile = metric == "activation.rms_q99" and calls[each.order] > 1
                    layout.append(self._series.of(each.order, metric, "upper" if quantile else "exact"))
                    counts.append(_count(metric, each))
            if places:
                recorder.add(layout, torch.cat(places), counts, in_parts=True)

    # ---- in the graph ----------------------------------------------------------------------------------------------

    def _spoken(self) -> Callable[..., Any]:
        """A module's forward that also returns what its calls say. Traced; the module is handed over, not held."""
        found, norms, axes = self._found, self._norms, self._axes

        def spoken(module: nn.Module, /, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None, tuple[_Said, ...]]:
            found.clear()
            norms.clear()
            axes.append(Axes())  # of this forward alone: what a graph has changed would not fit it the next time
            output = module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            said = tuple(each for each, _ in found)
            with torch.no_grad():
                parts = [part for _, own in found for part in own]
                values = torch.cat(parts) if parts else None
            found.clear()
            norms.clear()
            axes.clear()
            return output, values, said

        return spoken

    @contextmanager
    def _hooked(self) -> Iterator[list[BaseException]]:
        """With a hook on every watched module. What goes wrong is told, not raised: what is the user's own comes again
        when the model's own graph is called."""
        failures: list[BaseException] = []
        handles = [each.module.register_forward_hook(hook, with_kwargs=True) for each, hook in self._hooks]
        try:
            yield failures
        except Exception as error:
            failures.append(error)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, watched: WatchedModule) -> Callable[..., None]:
        order, is_block, is_norm = watched.order, watched.role == "block", watched.role == "norm"
        is_embedding = isinstance(watched.module, nn.Embedding)
        is_head = watched is self._outline.head
        keeps = self._wants_own and bool(watched.parameters) and _has_probe(watched.module)
        wanted, axes, found, norms = self._wanted, self._axes, self._found, self._norms

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            out = first_tensor((output,), {})
            if out is None or out.numel() == 0 or out.dim() == 0:
                return
            source = None if is_embedding else first_tensor(args, kwargs)
            if source is not None and (source.dim() == 0 or source.numel() == 0):
                source = None
            with torch.no_grad():
                axis = axes[-1].of(module, out)
                metrics, parts = _outputs(out.detach(), axis) if wanted.outputs else ((), [])
                width_in, is_normalized = None, None
                if source is not None:
                    in_axis = axes[-1].of(module, source)
                    width_in = source.shape[in_axis]
                    is_normalized = any(source is normed for normed in norms)
                    if wanted.inputs:
                        metrics = (*metrics, INPUT)
                        parts.append(measure.token_rms(source.detach(), channel_dim=in_axis).amax())
                    if is_block and wanted.blocks and source is not out and source.shape == out.shape:
                        metrics = (*metrics, *BLOCKS)
                        change, entered = out.detach().float() - source.detach().float(), source.detach().float()
                        parts += [change.square().mean(), entered.square().mean()]
                if is_head and wanted.log_z:
                    metrics = (*metrics, *LOG_Z)
                    log_zs = _tokens(out.detach(), axis).float().logsumexp(dim=-1)
                    parts += [log_zs.mean(), log_zs.amax()]
                flat = [torch.stack(parts)] if parts else []
                probe = _probe(module, source, args, axes[-1]) if keeps else None
                if probe is not None:
                    flat.append(probe.detach().float().reshape(-1))
                if is_norm:
                    norms.append(out)
                shape = None if probe is None else tuple(probe.shape)
                entries, width = out.numel(), out.shape[axis]
                found.append(
                    (_Said(order, metrics, entries // width, entries, width_in, width, is_normalized, shape), flat)
                )

        return hook

    # ---- after the graph -------------------------------------------------------------------------------------------

    def _take(self, values: Tensor | None, said: tuple[_Said, ...]) -> None:
        if values is None:
            return
        values = values.clone()  # a recorded graph writes its results over the last ones
        self._values.append((said, values))
        start = 0
        for each in said:
            self._series.widths[each.order] = each.width_in, each.width_out
            if each.is_normalized is not None:
                self._series.normalized.setdefault(each.order, each.is_normalized)
                self._series.light_inputs.setdefault(each.order, True)
            start += len(each.metrics)
            probe = None
            if each.probe is not None:
                tokens = values[start : start + _size(each.probe)].view(each.probe)
                module = self._outline.modules[each.order].module
                probe = Probe(tokens.long() if isinstance(module, nn.Embedding) else tokens)
            self._kept(each.order, probe)
            start += _size(each.probe)

    def _give_up(self, error: BaseException) -> None:
        self.reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        self._graphs.clear()
        self._found.clear()
        self._norms.clear()
        self._axes.clear()
        log.warning(
            'internist: compile="inline": no graph with statistics can be made (%s); a probe is replayed instead '
            "(training is not affected)",
            self.reason,
        )
        self._ended()


def _outputs(out: Tensor, axis: int) -> tuple[tuple[str, ...], list[Tensor]]:
    x = _tokens(out, axis)
    summary = measure.rms_summary(measure.token_rms(x))
    return OUTPUTS, [*summary.unbind(), measure.abs_max(x), torch.count_nonzero(x - x).float()]


def _tokens(out: Tensor, axis: int) -> Tensor:
    """(tokens, features) of an output, of very wide ones the probe tokens."""
    if out.shape[axis] > WIDE_OUTPUT:
        return at_positions(out, axis)
    return out.movedim(axis, -1).reshape(-1, out.shape[axis])


def _has_probe(module: nn.Module) -> bool:
    return has_rule(module) and (isinstance(module, nn.Embedding) or is_plain(module))


def _probe(module: nn.Module, source: Tensor | None, args: Any, axes: Axes) -> Tensor | None:
    if isinstance(module, nn.Embedding):
        ids = args[0] if args and isinstance(args[0], Tensor) else None
        if ids is None or module.num_embeddings > 2**24:  # float32 holds no larger number of a row
            return None
        return ids.reshape(-1)[positions(ids.numel(), ids.device, OWN_TOKENS)]
    return None if source is None else probe_of(module, source, axes.of(module, source))


def _size(shape: Sequence[int] | None) -> int:
    size = 0 if shape is None else 1
    for length in shape or ():
        size *= length
    return size


def _count(metric: str, said: _Said) -> int:
    if metric in ("activation.rms_max", "activation.rms_q99", "output.log_z_max"):
        return 1
    return said.tokens if metric == "output.log_z" else said.entries


def _eager(module: nn.Module) -> nn.Module:
    """The module whose forward a compiled module was compiled from."""
    if type(module).__name__ == "OptimizedModule":
        inner: nn.Module = module._orig_mod  # type: ignore[assignment]
        return inner
    return module


def _whole(forward: Callable[..., Any]) -> Callable[..., Any] | None:
    """The same, in one graph or none: pieces behind a break would be traced with hooks as the user's own code, of which
    a compiler keeps a few variants and runs it uncompiled from then on. None where torch cannot be asked for that."""
    required: Any = getattr(torch._dynamo, "error_on_graph_break", None)
    whole: Callable[..., Any] | None = None if required is None else required(True)(forward)
    return whole


def _compiler(module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any] | None:
    """The compiler of a module, with its settings; None where it is not found."""
    from torch._dynamo.eval_frame import _TorchDynamoContext

    context = vars(module).get("dynamo_ctx")
    if context is None:
        cells = getattr(call, "__closure__", None) or ()
        held = [cell.cell_contents for cell in cells]
        context = next((each for each in held if isinstance(each, _TorchDynamoContext)), None)
    return context if isinstance(context, _TorchDynamoContext) else None
