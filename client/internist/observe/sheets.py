"""Sheets: memory on an accelerator into which calls are measured, one launch each, and which is reduced as a whole.

A sheet holds what every token of some calls says, for calls of one number of tokens. It is allocated once and used
again at every sample, as large as the last one needed, within a budget; when it is full it is reduced on the way. What
is left of a call is a column of a page: one number a statistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from internist.measures.kernels.extent import extent
from internist.observe.seen import BLOCKS, INPUT, LOG_Z, OUTPUTS
from internist.observe.streams import Stream

SHEET_BYTES = 32 << 20
"""A sheet has no more rows than fit, but one at least."""
FIRST_ROWS = 16
"""Rows of a sheet before a sample has told how many are needed."""
UNUSED_SAMPLES = 3
"""A sheet that so many samples have not used is given back."""
PERCENT = 100
VIEWS_KEPT = 8
"""Numbers of rows in use for which views are kept: subjects may take turns."""
_RMS, _ABS_MAX, _NONFINITE, _ADDED, _STREAM = range(5)


class Kind(NamedTuple):
    """Which calls share a sheet."""

    stream: Stream
    tokens: int
    features: int
    """Of calls that are compared with their input; 0: of any call."""
    log_z: bool


@dataclass(slots=True, eq=False)
class Page:
    """What is left of the calls of a full sheet."""

    metrics: tuple[str, ...]
    values: Tensor
    """(metrics * rows,) float32, one metric after another."""
    rows: int
    number: int
    """Which of its sheet's pages of this step."""


@dataclass(slots=True)
class Row:
    """Where a call was measured."""

    sheet: "Sheet"
    page: int
    place: int


@dataclass(slots=True)
class _Views:
    """The rows in use, and where their numbers go: made once, because a view costs as much as a launch."""

    planes: tuple[Tensor, ...]
    pair: Tensor | None
    top: tuple[Tensor, Tensor, Tensor]
    """Largest tokens, their places, and the last of the largest."""


class Sheet:
    """Rows of (tokens,) float32, in planes: one a statistic of a token."""

    def __init__(self, kind: Kind, rows: int, wanted: frozenset[str]) -> None:
        self.kind = kind
        self.metrics = tuple(metric for metric in _metrics_of(kind) if metric in wanted)
        planes = 3 + (2 if kind.features else 0) + kind.log_z
        most = max(1, SHEET_BYTES // (4 * planes * kind.tokens))
        self.capacity = min(rows, most)
        self.is_full_grown = self.capacity == most
        with torch.inference_mode(mode=False):
            shape = planes, self.capacity, kind.tokens
            self._planes = torch.empty(shape, dtype=torch.float32, device=kind.stream.device)
        self._slots: list[Tensor] = []
        self._views: dict[int, _Views] = {}
        self._pages: list[dict[int, tuple[Page, dict[str, Tensor], Tensor | None]]] = []
        self._used = self._turned = 0
        self.unused = 0
        """Samples since it was last used."""

    @property
    def rows_used(self) -> int:
        """Rows that this step has used so far, on all pages."""
        return self._turned * self.capacity + self._used

    def take(self, x: Tensor, source: Tensor | None) -> tuple[Row, Page | None]:
        """Measure a tensor in the next row; and the page that had to be closed for it, if one had.

        Args:
            x: ([batch,] tokens, features).
            source: what x is compared with, where the sheet's kind says so.
        """
        closed = self.close() if self._used == self.capacity else None
        place = self._used
        while len(self._slots) <= place:
            self._slots.append(self._planes[:, len(self._slots)])
        extent(x, self._slots[place], source, self.kind.log_z)
        self._used += 1
        return Row(self, self._turned, place), closed

    def close(self) -> Page | None:
        """Reduce the rows in use to a page; None where there are none. The next one begins."""
        rows, self._used = self._used, 0
        if not rows:
            return None
        views = self._views.get(rows) or self._viewed(rows)
        page, lines, triple = self._page(rows)
        self._turned += 1
        _reduce(views, lines, triple, self.kind)
        return page

    def begin(self) -> None:
        """A step begins: its pages take the place of the last one's."""
        self._used = self._turned = 0

    def _viewed(self, rows: int) -> _Views:
        whole = self._planes if rows == self.capacity else self._planes[:, :rows]
        count = self.kind.tokens // PERCENT + 1
        device = self.kind.stream.device
        with torch.inference_mode(mode=False):
            values = torch.empty(rows, count, dtype=torch.float32, device=device)
            places = torch.empty(rows, count, dtype=torch.int64, device=device)
        pair = whole[_ADDED : _STREAM + 1] if self.kind.features else None
        if len(self._views) >= VIEWS_KEPT:
            self._views.clear()  # steps of ever other calls
        views = self._views[rows] = _Views(whole.unbind(), pair, (values, places, values[:, -1]))
        return views

    def _page(self, rows: int) -> tuple[Page, dict[str, Tensor], Tensor | None]:
        while len(self._pages) <= self._turned:
            self._pages.append({})
        kept = self._pages[self._turned]
        found = kept.get(rows)
        if found is None:
            if len(kept) >= VIEWS_KEPT:
                kept.clear()
            with torch.inference_mode(mode=False):
                values = torch.empty(len(self.metrics), rows, dtype=torch.float32, device=self.kind.stream.device)
            lines = dict(zip(self.metrics, values.unbind(), strict=True))
            of_blocks = [line for line, metric in enumerate(self.metrics) if metric in (*BLOCKS, INPUT)]
            blocks = values[of_blocks[0] : of_blocks[-1] + 1] if of_blocks else None
            found = kept[rows] = Page(self.metrics, values.view(-1), rows, self._turned), lines, blocks
        return found


@dataclass(slots=True)
class Sheets:
    """The sheets of a device."""

    wanted: frozenset[str]
    """Metrics that pages say."""
    _sheets: dict[Kind, Sheet] = field(default_factory=dict)
    _closed: list[tuple[Sheet, Page]] = field(default_factory=list)

    def take(self, x: Tensor, stream: Stream, source: Tensor | None = None, *, log_z: bool = False) -> Row:
        """Measure a tensor, ([batch,] tokens, features); with a source also against that."""
        features = x.shape[-1]
        kind = Kind(stream, x.numel() // features, 0 if source is None else features, log_z)
        sheet = self._sheets.get(kind)
        if sheet is None:
            sheet = self._sheets[kind] = Sheet(kind, FIRST_ROWS, self.wanted)
        row, closed = sheet.take(x, source)
        if closed is not None:
            self._closed.append((sheet, closed))
        return row

    def close(self) -> Sequence[tuple[Sheet, Page]]:
        """The step's pages, each with its sheet."""
        for sheet in self._sheets.values():
            page = sheet.close()
            if page is not None:
                self._closed.append((sheet, page))
        return self._closed

    def begin(self) -> None:
        """A step begins. Sheets become as large as the last one would have needed; those long unused are given back."""
        self._closed.clear()
        for kind, sheet in list(self._sheets.items()):
            used = sheet.rows_used
            sheet.unused = 0 if used else sheet.unused + 1
            if sheet.unused >= UNUSED_SAMPLES:
                del self._sheets[kind]
            elif used > sheet.capacity and not sheet.is_full_grown:
                self._sheets[kind] = Sheet(kind, used, self.wanted)
            else:
                sheet.begin()

    def forget(self) -> None:
        """Give all memory back."""
        self._closed.clear()
        self._sheets.clear()


def _metrics_of(kind: Kind) -> tuple[str, ...]:
    """What a page may say, in its order: what is divided by the number of features lies side by side."""
    return (*OUTPUTS, *((*BLOCKS, INPUT) if kind.features else ()), *(LOG_Z if kind.log_z else ()))


def _reduce(views: _Views, lines: dict[str, Tensor], of_blocks: Tensor | None, kind: Kind) -> None:
    """What `measures.activations` says of each row, for all rows at once. The rows are spent."""
    rms, abs_max, nonfinite = views.planes[:3]
    mean_square, largest, quantile, top, bad = (lines.get(metric) for metric in OUTPUTS)
    if largest is not None or quantile is not None:
        maximum = torch.amax(rms, 1) if largest is None else torch.amax(rms, 1, out=largest)
        if quantile is not None:
            values, places, last = views.top
            torch.topk(rms, values.shape[1], dim=1, out=(values, places))
            torch.minimum(maximum, last, out=quantile)  # a NaN is the maximum, and stays
    if mean_square is not None:
        torch.mean(rms.square_(), 1, out=mean_square)
    if top is not None:
        torch.amax(abs_max, 1, out=top)
    if bad is not None:
        torch.sum(nonfinite, 1, out=bad)
    if of_blocks is not None:
        _reduce_blocks(views, lines, of_blocks, kind.features)
    if kind.log_z:
        logs = views.planes[-1]
        if LOG_Z[0] in lines:
            torch.mean(logs, 1, out=lines[LOG_Z[0]])
        if LOG_Z[1] in lines:
            torch.amax(logs, 1, out=lines[LOG_Z[1]])


def _reduce_blocks(views: _Views, lines: dict[str, Tensor], of_blocks: Tensor, features: int) -> None:
    added, stream, entered = (lines.get(metric) for metric in (*BLOCKS, INPUT))
    if added is not None and stream is not None and views.pair is not None:
        torch.mean(views.pair, 2, out=of_blocks[:2] if of_blocks.shape[0] > 2 else of_blocks)
    elif added is not None or stream is not None:
        for line, plane in ((added, _ADDED), (stream, _STREAM)):
            if line is not None:
                torch.mean(views.planes[plane], 1, out=line)
    if entered is not None:
        torch.amax(views.planes[_STREAM], 1, out=entered)
    of_blocks.div_(features)
    if entered is not None:
        entered.sqrt_()
