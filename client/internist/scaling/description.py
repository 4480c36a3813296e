"""What a run declared, read for the scaling check: the model's shape, what its series belong to, how it was set up."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from internist.scaling.errors import NotAFamily
from internist.scaling.members import METRICS_USED, Columns, Role, RunFacts, Shape
from internist.schema.wire import Facts, Module, Route


class Described(Protocol):
    """A series as a run declared it, with its facts."""

    @property
    def metric(self) -> str:
        """Name in the catalogue."""
        ...

    @property
    def subject(self) -> str:
        """Name of the module or parameter."""
        ...

    @property
    def index(self) -> int | None:
        """Attention head."""
        ...

    @property
    def facts(self) -> Facts:
        """What is known of it."""
        ...


@dataclass(frozen=True, slots=True)
class Description:
    """What the check needs of a run besides its values."""

    shape: Shape
    facts: RunFacts
    columns: Columns
    places: tuple[int, ...]
    """Of each column: its place among the series that were described."""


def describe(
    series: Sequence[Described],
    modules: Sequence[Module],
    routing: Sequence[Route] = (),
    *,
    parametrization: str = "standard",
) -> Description:
    """The description of a run, from the series, the outline and the routing table that it declared.

    Args:
        series: those with a metric of `METRICS_USED`; others are passed over.

    Raises:
        NotAFamily: the width cannot be read from the shapes.
    """
    shape = shape_of(series, modules)
    blocks = {module.name: place for place, module in enumerate(m for m in modules if m.role == "block")}
    has_head = any(module.role == "head" for module in modules)
    first = _first_matrix(series, modules)
    known: dict[tuple[str, str, int | None, int | None, str | None, str | None], Role | None] = {}
    metrics: list[str] = []
    roles: list[Role] = []
    places: list[int] = []
    indices: list[int] = []
    of_parameter: dict[str, Role] = {}
    is_biased = any(o.metric == "weight.rms" and o.facts.role == "head" and o.facts.view is None for o in series)
    for place, one in enumerate(series):
        facts, metric = one.facts, one.metric
        if metric not in _USED:
            continue
        if facts.module is not None and facts.module == first and facts.role not in ("embedding", "head"):
            role = _role(metric, one.subject, facts, shape.width, has_head=has_head, is_input=True)
        else:
            key = (metric, facts.role, facts.fan_in, facts.fan_out, facts.block, facts.view)
            if facts.view is None and metric in _OF_PARAMETERS:  # biases and gains are told apart by name
                role = _role(metric, one.subject, facts, shape.width, has_head=has_head)
            elif key in known:
                role = known[key]
            else:
                role = known[key] = _role(metric, one.subject, facts, shape.width, has_head=has_head)
        if role is None or (is_biased and role == "head" and metric == "update.own_mean"):
            continue  # a multiplier of the weight alone says nothing of a change in which the bias takes part
        if metric == "weight.rms":
            of_parameter[one.subject] = role
        metrics.append(metric)
        roles.append(role)
        places.append(place)
        indices.append(-1 if facts.block is None else blocks.get(facts.block, -1))
    columns = Columns(tuple(metrics), tuple(roles), tuple(indices))
    facts_of_run = _run_facts(of_parameter, series, modules, routing, parametrization)
    return Description(shape, facts_of_run, columns, tuple(places))


def shape_of(series: Iterable[Described], modules: Sequence[Module]) -> Shape:
    """The sizes of a model: the width of its residual stream is what its blocks give out, else what its embedding
    gives out, else the commonest input of its matrices.

    Raises:
        NotAFamily: there is neither.
    """
    stream: Counter[int] = Counter()
    embedded: Counter[int] = Counter()
    inputs: dict[str, tuple[int, int]] = {}
    vocabulary: int | None = None
    heads: dict[str, set[int]] = {}
    in_block: dict[str, set[str]] = {}
    for one in series:
        facts = one.facts
        if one.metric == "activation.rms":
            if facts.role == "block" and facts.fan_out:
                stream[facts.fan_out] += 1
            elif facts.role == "head" and facts.fan_out:
                vocabulary = facts.fan_out
        elif one.metric == "weight.rms":
            if facts.role == "embedding" and facts.fan_out:
                embedded[facts.fan_out] += 1
            elif facts.view is not None and facts.fan_in:
                inputs[one.subject] = facts.order, facts.fan_in
                if facts.block is not None:
                    in_block.setdefault(facts.block, set()).add(one.subject)
        elif one.metric == "attention.max_abs_logit" and one.index is not None:
            heads.setdefault(one.subject, set()).add(one.index)
    if stream:
        width = stream.most_common(1)[0][0]
    elif embedded:
        width = embedded.most_common(1)[0][0]
    else:
        later = [fan_in for _, fan_in in sorted(inputs.values())][1:]
        if not later:
            raise NotAFamily(
                "its width cannot be read: it has no residual blocks, no embedding, and no second matrix whose input "
                "would tell"
            )
        width = Counter(later).most_common(1)[0][0]
    depth = sum(module.role == "block" for module in modules)
    matrices = len(next(iter(in_block.values()))) if in_block else 0
    return Shape(width, depth, vocabulary, matrices, max((len(h) for h in heads.values()), default=None))


_USED = frozenset(METRICS_USED)
_OF_PARAMETERS = frozenset(
    ("gradient.rms", "update.abs_max", "update.head_norm", "update.operator_norm", "weight.operator_norm", "weight.rms")
)


def _role(
    metric: str, subject: str, facts: Facts, width: int, *, has_head: bool, is_input: bool = False
) -> Role | None:
    """What a series belongs to; None: the check does not use it."""
    if metric == "attention.max_abs_logit":
        return "attention"
    if metric == "block.contribution":
        return "residual"
    if metric in ("activation.rms", "update.feature_mean"):
        if facts.role == "block":
            return "residual"
        is_output = facts.role == "head" or (facts.role == "root" and not has_head)
        return "head" if is_output else None
    if metric in _OF_PARAMETERS and facts.view is None and facts.role != "embedding":
        return "bias" if subject.rpartition(".")[2].endswith("bias") else "gain"
    if facts.role in ("embedding", "head"):
        return "embedding" if facts.role == "embedding" else "head"
    if facts.role == "norm":
        return "gain"
    if is_input:
        return "embedding"
    if facts.block is None and facts.fan_in != width and facts.fan_out == width:
        return "embedding"
    return "hidden"


def _first_matrix(series: Iterable[Described], modules: Sequence[Module]) -> str | None:
    """The module of the first matrix of a model that has no embedding: it takes the data; None where there is an
    embedding, or where that matrix is in a block."""
    if any(module.role == "embedding" for module in modules):
        return None
    matrices = ((o.facts.order, o.facts) for o in series if o.metric == "weight.rms" and o.facts.view is not None)
    first = min(matrices, key=lambda pair: pair[0], default=None)
    return first[1].module if first is not None and first[1].block is None else None


def _run_facts(
    roles: Mapping[str, Role],
    series: Iterable[Described],
    modules: Sequence[Module],
    routing: Sequence[Route],
    parametrization: str,
) -> RunFacts:
    found: dict[str, dict[Role, list[float]]] = {key: {} for key in ("lr", "eps", "weight_decay", "init_rms")}
    algorithms: dict[Role, Counter[str]] = {}
    for route in routing:
        role = roles.get(route.parameter)
        if role is None:
            continue
        name = f"{route.algorithm} ({route.scale})" if route.scale and route.algorithm != "adamw" else route.algorithm
        algorithms.setdefault(role, Counter())[name] += 1
        for key, of_role in found.items():
            value = getattr(route, key)
            if value is not None:
                of_role.setdefault(role, []).append(value)
    scales = [o.facts.scale for o in series if o.metric == "attention.max_abs_logit" and o.facts.scale]
    return RunFacts(
        parametrization,
        {role: counted.most_common(1)[0][0] for role, counted in algorithms.items()},
        multipliers=_multipliers(modules),
        attention_scale=scales[0] if scales else None,
        **{key: {role: _mean(values) for role, values in of_role.items()} for key, of_role in found.items()},
    )


def _mean(values: Sequence[float]) -> float:
    """The geometric mean of what is positive; zero where nothing is."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 0.0


def _multipliers(modules: Sequence[Module]) -> dict[Role, float]:
    """Of the head, and of the first block: the smallest and the largest factor multiplied, so one of either sort."""
    head = [module.multiplier for module in modules if module.role == "head"]
    first = next((module.name for module in modules if module.role == "block"), None)
    branch = [m.multiplier for m in modules if m.block == first and m.block is not None]
    found: dict[Role, float] = {}
    if head and head[0] > 0:
        found["head"] = head[0]
    if branch and all(factor > 0 for factor in branch):
        found["residual"] = math.exp(max((math.log(f) for f in branch), key=abs))
    return found
