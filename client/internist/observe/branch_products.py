"""The spectral conditions under width and depth, of every residual branch: products of norms that the step has measured
already, worked out on the host from the frame's own numbers, so that nothing is asked of the device for them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from internist.measures.products import branch_product, first_order, largest, second_order
from internist.model.branches import Matrix, branches_of
from internist.model.chains import Chain, Link, Logits, chains_of
from internist.model.outline import Outline, WatchedModule, WatchedParameter, multiplier
from internist.model.roles import is_router, plain_name
from internist.model.views import UNORIENTED, facts_of, fans
from internist.observe.sampling import Sampling
from internist.observe.speaker import Speaker
from internist.record.series_book import SeriesBook
from internist.schema.metrics import METRICS, PIECEWISE, Bound
from internist.schema.wire import Facts, Series

PRODUCTS = tuple(m for m, known in METRICS.items() if known.made_of and known.family in ("branch", "attention"))
"""What is worked out here."""
PLAIN_SUM = 0.5, 2.0
"""A block that adds between these times what its branches' outputs are together, adds them as they are: outputs that
point the same way or against each other make the rest. Outside it multiplies them itself."""

SAME = 1e-5
"""Relative difference of two mean squares of one tensor."""

Point = tuple[Series, float]
_WEIGHT, _UPDATE = "weight.operator_norm", "update.operator_norm"
_Scale = tuple[float, int]
"""What the products of queries and keys are multiplied by, and the number of heads."""


@dataclass(frozen=True, slots=True)
class _Norm:
    value: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class _Read:
    """One reading of the module tree."""

    chains: tuple[Chain, ...]
    logits: tuple[Logits, ...]
    parameters: dict[str, WatchedParameter]
    """By plain name, as everything here."""
    modules: dict[str, WatchedModule]
    unclear: frozenset[str]
    """Blocks in which a norm may stand between a branch and the stream."""
    depth: int


class BranchProducts:
    """Knows the branches of a model, and works out their products from a frame's values.

    Args:
        scales: by name of an attention module, what its logits are multiplied by and how many heads it has.
    """

    def __init__(
        self,
        outline: Outline,
        scales: Mapping[str, _Scale],
        *,
        book: SeriesBook,
        sampling: Sampling,
        speaker: Speaker,
    ) -> None:
        self._outline, self._scales = outline, scales
        self._book, self._sampling, self._speaker = book, sampling, speaker
        self._read: _Read | None = None
        self._key: tuple[tuple[int, str], ...] = ()

    def derive(
        self,
    ) -> "Callable[[Sequence[Series], Sequence[float], Sequence[int]], list[tuple[Series, float, int]]] | None":
        """What works out the products of the step under way from its values, on any thread and without the model; None
        where none is wanted or there is no branch."""
        if not self._sampling.wants(*PRODUCTS):
            return None
        matrices = [p for p in self._outline.parameters if "matrix" in p.roles and p.owner.block is not None]
        key = tuple((p.order, p.view) for p in matrices)
        if self._read is None or key != self._key:
            self._read, self._key = _read(self._outline, [p for p in matrices if UNORIENTED not in p.view]), key
        read = self._read
        if not read.chains:
            return None
        names = {chain.branch.module for chain in read.chains}
        factors = {name: multiplier(read.modules[name].module) for name in names if name in read.modules}
        scales = dict(self._scales)
        return lambda series, values, counts: [  # noqa: ARG005  # norms of whole matrices
            (*point, 1) for point in self._products(read, factors, scales, _Values(*_whole(series, values)))
        ]

    # ---- private ---------------------------------------------------------------------------------------------------

    def _products(
        self, read: _Read, factors: Mapping[str, float], scales: Mapping[str, _Scale], values: "_Values"
    ) -> Iterator[Point]:
        added = {block: _added(block, read, values) for block in {chain.branch.block for chain in read.chains}}
        for chain in read.chains:
            name = chain.branch.module
            if name in factors:
                own = added[chain.branch.block]
                alpha = factors[name] * (1.0 if own is None else own)
                for expert in values.experts(read.parameters[chain.stages[-1][0].matrix].name):
                    yield from self._of_chain(chain, read, values, expert, alpha=alpha, is_seen=own is not None)
        for logits in read.logits:
            yield from self._of_logits(logits, read, scales, values)

    def _of_chain(
        self, chain: Chain, read: _Read, values: "_Values", expert: int | None, *, alpha: float, is_seen: bool
    ) -> Iterator[Point]:
        """The products of one chain, or of one expert of a stack; upper bounds where a smaller alpha may be at work
        than was seen."""
        known = [[_norm(_WEIGHT, link, read, values, expert) for link in stage] for stage in chain.stages]
        weights = [_stage(stage) for stage in known]
        whole = [each for each in weights if each is not None]
        if len(whole) < len(weights):
            return
        norms, watched = [each.value for each in whole], read.modules[chain.branch.module]
        index = chain.expert if expert is None else expert
        bound = _bound([each.bound for each in whole], is_seen=is_seen)
        depth = read.depth
        yield from self._point("branch.product", watched, index, bound, branch_product(norms, alpha=alpha, depth=depth))
        changes = [[_norm(_UPDATE, link, read, values, expert) for link in stage] for stage in chain.stages]
        for at, (stage, own) in enumerate(zip(chain.stages, changes, strict=True)):
            for link, change in zip(stage, own, strict=True):
                if change is not None:
                    others = [each.bound for i, each in enumerate(whole) if i != at]
                    moved = first_order(norms, at, change.value, alpha=alpha, depth=depth)
                    own_bound = _bound([*others, change.bound], is_seen=is_seen)
                    yield from self._first(read.parameters[link.matrix], expert, own_bound, moved)
        updates = [_stage(stage) for stage in changes]
        all_updates = [each for each in updates if each is not None]
        if len(all_updates) == len(updates):
            both = second_order(norms, [each.value for each in all_updates], alpha=alpha, depth=depth)
            if both is not None:
                bounds = [each.bound for each in (*whole, *all_updates)]
                yield from self._point("branch.second_order", watched, index, _bound(bounds, is_seen=is_seen), both)

    def _of_logits(
        self, logits: Logits, read: _Read, scales: Mapping[str, _Scale], values: "_Values"
    ) -> Iterator[Point]:
        """Queries times keys: scale * d of a head stands for alpha, and nothing adds up over the depth."""
        found = _attending(read.parameters[logits.query.matrix].owner, scales)
        watched = next((m for m in self._outline.modules if m.name == found), None)
        sides = [_norm(_WEIGHT, link, read, values, None) for link in (logits.query, logits.key)]
        weights = [each for each in sides if each is not None]
        if found is None or watched is None or len(weights) < 2:
            return
        scale, heads = scales[found]
        alpha, norms = abs(scale) * logits.query_features / heads, [each.value for each in weights]
        bound = _bound([each.bound for each in weights])
        yield from self._point("attention.qk_product", watched, None, bound, alpha * math.prod(norms))
        moved = [_norm(_UPDATE, link, read, values, None) for link in (logits.query, logits.key)]
        updates = [each for each in moved if each is not None]
        if len(updates) == 2:
            changes = [each.value for each in updates]
            bound = _bound([each.bound for each in (*weights, *updates)])
            first = largest((alpha * changes[0] * norms[1], alpha * norms[0] * changes[1]))
            yield from self._point("attention.qk_first_order", watched, None, bound, first)
            yield from self._point("attention.qk_second_order", watched, None, bound, alpha * math.prod(changes))

    def _point(
        self, metric: str, watched: WatchedModule, index: int | None, bound: Bound, value: float
    ) -> Iterator[Point]:
        def facts() -> Facts:
            return Facts(
                role=watched.role,
                block=watched.block,
                module=watched.name,
                order=watched.order,
                cadence=self._sampling.cadence(metric),
                placement="disjoint" if watched.name in self._speaker.apart else "replicated",
            )

        series = self._book.series(metric, "module", watched.name, facts, index=index, bound=bound)
        if series is not None:
            yield series, value

    def _first(self, p: WatchedParameter, expert: int | None, bound: Bound, value: float) -> Iterator[Point]:
        metric = "branch.first_order"

        def facts() -> Facts:
            placement = "disjoint" if p.owner.name in self._speaker.apart else "replicated"
            return facts_of(p, cadence=self._sampling.cadence(metric), placement=placement)

        series = self._book.series(metric, "parameter", p.name, facts, index=expert, bound=bound)
        if series is not None:
            yield series, value


class _Values:
    """A frame's values by metric and subject."""

    def __init__(self, series: Sequence[Series], values: Sequence[float]) -> None:
        wanted = frozenset(part for metric in PRODUCTS for part in METRICS[metric].made_of)
        self._found: dict[tuple[str, str, int | None], _Norm] = {}
        self._experts: dict[str, list[int | None]] = {}
        for one, value in zip(series, values, strict=True):
            if one.metric in wanted:
                self._found[one.metric, one.subject, one.index] = _Norm(value, one.bound)
                if one.metric == _WEIGHT:
                    self._experts.setdefault(one.subject, []).append(one.index)

    def get(self, metric: str, subject: str, index: int | None = None) -> _Norm | None:
        """A value with its bound, where the frame has it."""
        return self._found.get((metric, subject, index))

    def experts(self, parameter: str) -> list[int | None]:
        """The experts of which a parameter holds a matrix each; None for one that holds one matrix."""
        return self._experts.get(parameter, [])


def _read(outline: Outline, matrices: Sequence[WatchedParameter]) -> _Read:
    """Read the branches of a model."""
    root = outline.root
    plain = {id(module): plain_name(raw) for raw, module in root.named_modules()}
    watched = {plain[id(m.module)]: m for m in outline.modules if id(m.module) in plain}
    blocks = [name for name, m in watched.items() if m.role == "block"]
    parameters, described = {}, []
    for p in matrices:
        owner = plain.get(id(p.owner.module), "")
        name = f"{owner}.{p.attribute}" if owner else p.attribute
        fan_out, fan_in = fans(p)
        router = is_router(owner.rpartition(".")[2], fan_out, fan_in)
        parameters[name] = p
        described.append(Matrix(name, fan_out, fan_in, p.owner.module, router, "experts" in p.view))
    branches, unclear = branches_of(root, blocks, described)
    modules: dict[str, nn.Module] = {plain_name(raw): module for raw, module in root.named_modules()}
    inside: dict[str, dict[str, Matrix]] = {}
    for matrix in described:
        block = next(name for name in _names_up(matrix.name) if name in watched and watched[name].role == "block")
        inside.setdefault(block, {})[matrix.name] = matrix
    chains: list[Chain] = []
    logits: list[Logits] = []
    for branch in branches:
        own, pair = chains_of(branch, inside[branch.block], modules)
        chains += own
        logits += [pair] if pair is not None else []
    return _Read(tuple(chains), tuple(logits), parameters, watched, frozenset(unclear), len(blocks))


def _names_up(name: str) -> Iterator[str]:
    """The names of all that holds a parameter, innermost first."""
    while name := name.rpartition(".")[0]:
        yield name


def _norm(metric: str, link: Link, read: _Read, values: _Values, expert: int | None) -> _Norm | None:
    """The norm of a link's map; of some rows of a matrix what it is at most."""
    p = read.parameters[link.matrix]
    found = values.get(metric, p.name, expert)
    if found is None or link.rows is None:
        return found
    return _Norm(found.value * math.sqrt(fans(p)[0] / link.rows), "upper")


def _stage(norms: Sequence[_Norm | None]) -> _Norm | None:
    """The norm of a stage; None where not all that lies side by side was measured."""
    known = [each for each in norms if each is not None]
    if len(known) < len(norms):
        return None
    return _Norm(largest(each.value for each in known), _bound([each.bound for each in known]))


def _bound(bounds: Sequence[Bound], *, is_seen: bool = True) -> Bound:
    """What a product of such values is to the true one."""
    if not is_seen or "upper" in bounds:
        return "upper"
    return "lower" if "lower" in bounds else "exact"


def _added(block: str, read: _Read, values: _Values) -> float | None:
    """What the block's own code multiplies its branches' outputs by, from what it adds to its stream; one where that
    is about what they are, None where it cannot be seen: a norm may follow, or the block is the branch itself."""
    names = dict.fromkeys(chain.branch.module for chain in read.chains if chain.branch.block == block)
    watched = [read.modules[name] for name in names if name in read.modules]
    outputs = [values.get("activation.rms", each.name) for each in watched]
    squares = [each.value for each in outputs if each is not None]
    added, whole = (values.get(m, read.modules[block].name) for m in ("block.contribution", "activation.rms"))
    if added is None or whole is None or len(squares) < len(names) or block in read.unclear:
        return None
    if len(squares) == 1 and math.isclose(squares[0], whole.value, rel_tol=SAME):
        return None
    together = sum(squares)  # they travel as mean squares
    factor = math.sqrt(added.value / together) if together > 0 and added.value >= 0 else 1.0
    low, high = PLAIN_SUM
    return 1.0 if low <= factor <= high or not math.isfinite(factor) or factor == 0 else factor


def _attending(owner: WatchedModule, scales: Mapping[str, _Scale]) -> str | None:
    """The attention module whose logits are made of a matrix, among those whose scale is known."""
    return next((name for name in (owner.name, *_names_up(owner.name)) if name in scales), None)


def _whole(series: Sequence[Series], values: Sequence[float]) -> tuple[list[Series], list[float]]:
    """What is known of whole matrices: no product of pieces' norms bounds that of the whole."""
    kept = [i for i, one in enumerate(series) if one.facts.placement not in PIECEWISE]
    return [series[i] for i in kept], [values[i] for i in kept]
