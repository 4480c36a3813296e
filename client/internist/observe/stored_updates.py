"""What an optimizer step did to parameters as they are stored becomes series."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from internist.measures import many, weights
from internist.model.outline import WatchedParameter
from internist.observe.parameter_series import ParameterSeries
from internist.record.recorder import Recorder

Wants = Callable[..., bool]
"""Whether any of these metrics is measured."""
Numbers = tuple[tuple[str, ...], Sequence[WatchedParameter], Tensor, Sequence[int] | None]
"""Metrics, parameters, values metric by metric, and the entries a value of each parameter stands for; None: one."""


class StoredUpdates:
    """Records weights and updates: on the CPU as their statistics are worked out, part by part; elsewhere all at once,
    in few launches."""

    def __init__(self, series: ParameterSeries, wants: Wants) -> None:
        self._series, self._wants = series, wants

    def record(self, chosen: Sequence[WatchedParameter], statistics: Tensor, recorder: Recorder) -> None:
        """Record (3, n) statistics of parameters, as `updates.stored_` gives them."""
        kept = [i for i, p in enumerate(chosen) if self._series.is_reported(p)]
        if not kept:
            return
        if len(kept) < len(chosen):
            chosen, statistics = [chosen[i] for i in kept], statistics[:, kept]
        counts = [p.local.numel() for p in chosen]
        weight, update, unchanged = statistics.unbind()
        for metric, values in (("weight.rms", weight), ("update.rms", update), ("update.unchanged", unchanged)):
            recorder.add(self._series.layout(chosen, metric), values, counts)
        self._relative(chosen, weight, update, counts, recorder)

    def record_by_role(
        self, chosen: Sequence[WatchedParameter], after: Sequence[Tensor], deltas: Sequence[Tensor], recorder: Recorder
    ) -> None:
        """Record the entries of vectors and the rows of embeddings and heads."""
        vectors = [i for i, p in enumerate(chosen) if "vector" in p.roles and self._series.is_reported(p)]
        if vectors:
            for metric, tensors in (("weight.abs_max", after), ("update.abs_max", deltas)):
                values = weights.vector_abs_max([tensors[i] for i in vectors])
                recorder.add(self._series.layout([chosen[i] for i in vectors], metric), values)
        for p, tensor, delta in zip(chosen, after, deltas, strict=True):
            if self._series.is_reported(p):
                self._record_rows(p, {"weight": tensor, "update": delta}, recorder)

    def record_at_once(
        self,
        chosen: Sequence[WatchedParameter],
        after: Sequence[Tensor],
        deltas: Sequence[Tensor] | None,
        recorder: Recorder,
    ) -> None:
        """Record all that is wanted of parameters on one device, and of their changes, in few launches.

        Args:
            deltas: float32; None: of the weights alone.
        """
        kept = [i for i, p in enumerate(chosen) if self._series.is_reported(p)]
        chosen, after = [chosen[i] for i in kept], [after[i] for i in kept]
        sides = {"weight": after} | ({"update": [deltas[i] for i in kept]} if deltas is not None else {})
        if not chosen:
            return
        counts = [tensor.numel() for tensor in after]
        found: list[Numbers] = []
        squared, squares = self._squares(sides)
        if squares is not None:
            found.append((squared, chosen, squares, counts))
        if "update" in sides and self._wants("update.unchanged"):
            found.append((("update.unchanged",), chosen, many.unchanged(sides["update"]), counts))
        found += self._vectors(chosen, sides)
        found += self._row_norms(chosen, sides)
        for i, p in enumerate(chosen):
            if not _has_whole_rows(p):
                self._record_rows(p, {kind: tensors[i] for kind, tensors in sides.items()}, recorder)
        if found:
            key = tuple((metrics, *(p.order for p in subjects)) for metrics, subjects, _, _ in found)
            layout = self._series.listed(
                key,
                lambda: [self._series.of(p, m) for metrics, subjects, _, _ in found for m in metrics for p in subjects],
            )
            entries = [
                n for metrics, subjects, _, own in found for n in (*(own or (1,) * len(subjects)),) * len(metrics)
            ]
            values = [numbers for _, _, numbers, _ in found]
            recorder.add(layout, values[0] if len(values) == 1 else torch.cat(values), entries)
        if squares is not None and len(squared) == 2 and self._wants("update.relative_rms"):
            weight, update = squares.chunk(2)
            self._relative(chosen, weight, update, counts, recorder)

    def _relative(
        self,
        chosen: Sequence[WatchedParameter],
        weight: Tensor,
        update: Tensor,
        counts: Sequence[int],
        recorder: Recorder,
    ) -> None:
        # a weight of zero has no relative update; an update from it is reported by update.rms
        pieces = [i for i, p in enumerate(chosen) if p.shard is not None]
        if not pieces:
            layout = self._series.layout(chosen, "update.relative_rms")
            recorder.add(layout, update / weight, counts, measured=weight != 0)
            return
        # no mean of the ratios of pieces is the ratio of the whole: both sides travel
        parts, entries = [chosen[i] for i in pieces], [counts[i] for i in pieces]
        layout = self._series.layout(parts, "update.relative_rms", "update.base")
        recorder.add(layout, torch.cat((update[pieces], weight[pieces])), entries * 2)
        whole = [i for i in range(len(chosen)) if i not in set(pieces)]
        if whole:
            rest = [chosen[i] for i in whole]
            self._relative(rest, weight[whole], update[whole], [counts[i] for i in whole], recorder)

    def _record_rows(self, p: WatchedParameter, sides: Mapping[str, Tensor], recorder: Recorder) -> None:
        """Record the largest row norms of an embedding or a head, and of its change. Of rows that are cut, what pieces
        say of the whole from below and from above."""
        for role, statistic, name, power in (
            ("embedding", weights.row_rms_max, "row_rms_max", 0.5),
            ("head", weights.head_norm, "head_norm", -0.5),
        ):
            if role not in p.roles:
                continue
            for kind, tensor in sides.items():
                metric, value = f"{kind}.{name}", statistic(_rows(p, tensor))
                if _has_whole_rows(p):
                    recorder.add([self._series.of(p, metric)], value)
                else:
                    value = value * _share_of_width(p) ** power
                    recorder.add(self._series.pair(p, metric), torch.stack((value, value.square())))

    def _squares(self, sides: dict[str, list[Tensor]]) -> tuple[tuple[str, ...], Tensor | None]:
        """The metrics of the sides that are wanted, and mean squares of their tensors, side by side."""
        kinds = [kind for kind in sides if self._wants(f"{kind}.rms", "update.relative_rms")]
        if not kinds:
            return (), None
        squares = weights.mean_squares([tensor for kind in kinds for tensor in sides[kind]])
        return tuple(f"{kind}.rms" for kind in kinds), squares

    def _vectors(self, chosen: Sequence[WatchedParameter], sides: dict[str, list[Tensor]]) -> list[Numbers]:
        places = [i for i, p in enumerate(chosen) if "vector" in p.roles]
        kinds = [kind for kind in sides if self._wants(f"{kind}.abs_max")]
        if not places or not kinds:
            return []
        maxima = weights.vector_abs_max([sides[kind][i] for kind in kinds for i in places])
        return [(tuple(f"{kind}.abs_max" for kind in kinds), [chosen[i] for i in places], maxima, None)]

    def _row_norms(self, chosen: Sequence[WatchedParameter], sides: dict[str, list[Tensor]]) -> list[Numbers]:
        """Of embeddings the largest row RMS, of heads that times the width: one largest row norm, scaled."""
        rows: list[tuple[str, int, float]] = []
        for i, p in enumerate(chosen):
            for role, name, power in (("embedding", "row_rms_max", -0.5), ("head", "head_norm", 0.5)):
                if role in p.roles and _has_whole_rows(p):
                    rows.append((name, i, _rows(p, sides["weight"][i]).shape[1] ** power))
        wanted = [(kind, *row) for kind in sides for row in rows if self._wants(f"{kind}.{row[0]}")]
        if not wanted:
            return []
        matrices = [_rows(chosen[i], sides[kind][i]) for kind, _, i, _ in wanted]
        values = many.row_norm_maxima(matrices, [scale for *_, scale in wanted]).chunk(len(wanted))
        return [
            ((f"{kind}.{name}",), [chosen[i]], value, None)
            for (kind, name, i, _), value in zip(wanted, values, strict=True)
        ]


def _rows(p: WatchedParameter, value: Tensor) -> Tensor:
    return value.t() if p.view == "transposed" else value


def _has_whole_rows(p: WatchedParameter) -> bool:
    """Whether each row that this rank holds of a matrix is whole."""
    shard = p.shard
    return shard is None or (0 if p.view == "transposed" else 1) not in shard.cut


def _share_of_width(p: WatchedParameter) -> float:
    """The share of a row that this rank holds."""
    column = 0 if p.view == "transposed" else 1
    return p.local.shape[column] / p.tensor.shape[column]
