"""The outline of a model: which modules and parameters are watched, and how a parameter is a matrix."""

import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from internist.model.plain import PLAIN
from internist.model.roles import (
    block_names,
    block_of,
    head_name,
    is_attention,
    module_role,
    parameter_kind,
    plain_name,
)
from internist.model.shards import Shard, is_gathered, is_partial, is_sharded, local, shard_of
from internist.schema.wire import Module, Role

Rename = Callable[[str], str]
MEASURED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(slots=True, eq=False)
class WatchedModule:
    """A module whose calls are measured. The model is the user's: it is only weakly held."""

    name: str
    reference: "weakref.ref[nn.Module]"
    role: Role
    order: int
    """Its place in the outline."""
    block: str | None
    excluded: bool = False
    parameters: dict[str, "WatchedParameter"] = field(default_factory=dict)
    """By its name in this module: a tied one is called otherwise in its owner."""
    place: int = 0
    """Its place in the whole model, of which the outline may be one stage."""

    @property
    def module(self) -> nn.Module:
        """The module itself.

        Raises:
            ReferenceError: the model is gone.
        """
        module = self.reference()
        if module is None:
            raise ReferenceError(f"module {self.name} is gone")
        return module

    @property
    def is_sharded(self) -> bool:
        """Whether some of its own parameters are laid out over ranks.

        Raises:
            ReferenceError: one of them is gone.
        """
        return any(parameter.shard is not None for parameter in self.parameters.values())

    @property
    def is_at_rest(self) -> bool:
        """Whether the module shows its sharded parameters as they are stored: where they are gathered for a forward,
        it does not while it computes.

        Raises:
            ReferenceError: one of them is gone.
        """
        shown = self.module._parameters
        return any(shown.get(name) is p.tensor for name, p in self.parameters.items() if p.shard is not None)


@dataclass(slots=True, eq=False)
class WatchedParameter:
    """A parameter whose weight, gradient and update are measured. Tied parameters are one, with all their roles.

    The tensor is looked up in its module each time: it may have been replaced, and only the user keeps it alive.
    """

    name: str
    owner: WatchedModule
    attribute: str
    """Its name in the owner: `weight`, `bias`, ..."""
    order: int
    roles: set[str] = field(default_factory=set)
    """`matrix`, `embedding`, `head`, `vector`; empty: none of these fits, see `unsupported`."""
    view: str = ""
    aliases: list[str] = field(default_factory=list)
    holders: list[WatchedModule] = field(default_factory=list)
    """The modules that compute with it: its owner, then those that it is tied to."""
    unsupported: str = ""
    """Why nothing of it can be measured; empty if something can."""
    viewless: str = ""
    """Why it is no matrix, so that it has no spectrum; empty if it may have one."""
    excluded: bool = False
    turn: int = 0
    """Which turn is its: matrices are measured in rotation, those of one residual branch at the same time."""
    _resting: "weakref.ref[nn.Parameter] | None" = None
    """The sharded parameter, of which a module shows the whole while it computes,"""
    _shard: Shard | None = None
    """and what is known of it."""

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter as its module has it now.

        Raises:
            ReferenceError: the module is gone, or has no parameter of this name any more.
        """
        found = self.present()
        if found is None:
            raise ReferenceError(f"parameter {self.name} is gone")
        return found

    @property
    def local(self) -> Tensor:
        """What this rank holds of the parameter: of one that is not sharded all. Entries only; its gradient is the
        parameter's.

        Raises:
            ReferenceError: as `tensor`.
        """
        tensor = self.tensor
        return tensor if self._resting is None else local(tensor)

    @property
    def shard(self) -> Shard | None:
        """How what this rank holds lies in the whole; None for a parameter that is not sharded.

        Raises:
            ReferenceError: as `tensor`.
        """
        if self._resting is None or not is_sharded(tensor := self.tensor):
            return None
        if self._shard is None:
            self._shard = shard_of(tensor)
        return self._shard

    def present(self) -> nn.Parameter | None:
        """The parameter as its module has it now; None where the module has none of this name any more. Of one that is
        sharded always that, also while the module shows the whole.

        Raises:
            ReferenceError: the module is gone.
        """
        parameters = self.owner.module._parameters
        if not isinstance(parameters, dict):  # a traced module's can only be listed
            parameters = dict(parameters.items())
        found = parameters.get(self.attribute)
        resting = None if self._resting is None else self._resting()
        if found is None or found is resting:
            return found
        if resting is not None and is_gathered(found, resting):
            return resting
        if type(found) not in PLAIN and is_sharded(found):
            self._resting, self._shard = weakref.ref(found), None
        return found


@dataclass(slots=True)
class Outline:
    """Everything that is watched, in registration order."""

    reference: "weakref.ref[nn.Module]"
    modules: list[WatchedModule]
    parameters: list[WatchedParameter]
    head: WatchedModule | None
    signature: tuple[object, ...]
    """`signature_of` the model when it was read."""
    resting: "dict[tuple[int, str], weakref.ref[nn.Parameter]]" = field(default_factory=dict)
    """Sharded parameters by the identity of their module and their name in it."""

    @property
    def is_current(self) -> bool:
        """Whether the model would be read as it was.

        Raises:
            ReferenceError: it is gone.
        """
        return signature_of(self.root, self.resting) == self.signature

    @property
    def root(self) -> nn.Module:
        """The watched model.

        Raises:
            ReferenceError: it is gone.
        """
        root = self.reference()
        if root is None:
            raise ReferenceError("the watched model is gone")
        return root

    def describe(self) -> tuple[Module, ...]:
        """The outline as it travels."""
        return tuple(
            Module(
                m.name,
                type(m.module).__name__,
                m.role,
                m.block,
                sum(p.tensor.numel() for p in m.parameters.values()),
                multiplier(m.module),
            )
            for m in self.modules
        )


def outline(
    root: nn.Module,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    output: str | None = None,
    rename: Rename | Mapping[str, str] | None = None,
    first_place: int = 0,
) -> Outline:
    """Read a model's module tree.

    Args:
        root: the model.
        include: regular expressions of names, of which one must be found in a module's; none: all are watched.
        exclude: such of which none may be found.
        output: the name of the module that gives the model's output, where it is not seen from the tree.
        rename: what modules are called.
        first_place: the modules of earlier stages of a pipeline.

    Raises:
        ValueError: an expression is no valid regular expression, or `output` names no module.
    """
    keep, drop = _compile("include", include), _compile("exclude", exclude)
    translate = _renamer(rename)
    blocks = block_names(root)
    tree = [(plain_name(raw), module) for raw, module in root.named_modules()]
    head = head_name(root, tree, blocks, output)

    modules: list[WatchedModule] = []
    parameters: dict[int, WatchedParameter] = {}
    seen: set[int] = set()
    for name, module in tree:
        if id(module) in seen or type(module).__name__ == "OptimizedModule":
            continue
        seen.add(id(module))
        block = block_of(name, blocks)
        role = module_role(name, module, blocks, head, is_root=module is root)
        own = list(module.named_parameters(recurse=False))
        if not own and role in ("other", "container") and not _worth_watching(name, module, block):
            continue
        shown = translate(name) or "model"
        excluded = (bool(keep) and not any(r.search(shown) for r in keep)) or any(r.search(shown) for r in drop)
        watched = WatchedModule(
            shown, weakref.ref(module), role, len(modules), translate(block) if block is not None else None, excluded
        )
        watched.place = first_place + watched.order
        modules.append(watched)
        for attribute, tensor in own:
            full = f"{shown}.{attribute}" if name else attribute
            known = parameters.get(id(tensor))
            if known is None:
                known = parameters[id(tensor)] = WatchedParameter(
                    full, watched, attribute, len(parameters), excluded=excluded
                )
            else:
                known.aliases.append(full)
            known.holders.append(watched)
            watched.parameters[attribute] = known
            _classify(known, watched, attribute)
    turns: dict[str, int] = {}
    for parameter in parameters.values():
        if "matrix" in parameter.roles or parameter.view == "unknown":
            parameter.turn = turns.setdefault(_turn_of(parameter), len(turns))
    head_module = next((m for m in modules if m.role == "head"), None)
    resting = {
        (id(module), attribute): weakref.ref(tensor)
        for module in root.modules()
        for attribute, tensor in module._parameters.items()
        if tensor is not None and is_sharded(tensor)
    }
    return Outline(weakref.ref(root), modules, list(parameters.values()), head_module, signature_of(root), resting)


def signature_of(
    root: nn.Module, resting: "Mapping[tuple[int, str], weakref.ref[nn.Parameter]] | None" = None
) -> tuple[object, ...]:
    """What an outline depends on: which modules there are, by identity, and of what kind the parameters in them are.

    Two equal signatures mean the same outline. A parameter that is replaced by one of the same kind in its old place
    changes nothing that the outline says.

    Args:
        root: the model.
        resting: sharded parameters: a module that shows the whole of one has not changed.
    """
    known = resting or {}
    parts: list[object] = []
    tied: dict[int, int] = {}
    for module in root.modules():
        parts.append(id(module))
        for name, tensor in module._parameters.items():
            if tensor is not None:
                if known and (id(module), name) in known:
                    stored = known[id(module), name]()
                    if stored is not None and is_gathered(tensor, stored):
                        tensor = stored
                place = tied.setdefault(id(tensor), len(tied))
                parts += (name, tensor.shape, tensor.dtype, tensor.is_meta, type(tensor), place)
    return tuple(parts)


def _turn_of(parameter: WatchedParameter) -> str:
    """What has its turn as one: what lies directly in a block, or in one child of it; outside blocks each by itself."""
    block, owner = parameter.owner.block, parameter.owner.name
    if block is None or not owner.startswith(block):
        return parameter.name
    below = owner[len(block) + 1 :].split(".")
    return f"{block}.{below[0]}" if len(below) > 1 or parameter.owner.role not in ("linear", "convolution") else block


def multiplier(module: nn.Module) -> float:
    """What the module's forward hooks multiply its output by, as far as they say so by a number named `factor`."""
    told = [getattr(hook, "factor", None) for hook in module._forward_hooks.values()]
    product = math.prod(float(f) for f in told if isinstance(f, int | float) and not isinstance(f, bool))
    return product if math.isfinite(product) else 1.0


def _compile(what: str, expressions: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(expression) for expression in expressions]
    except re.error as error:
        raise ValueError(f"{what}={list(expressions)!r}: not a valid regular expression: {error}") from error


def _renamer(rename: Rename | Mapping[str, str] | None) -> Rename:
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        table = dict(rename)
        return lambda name: table.get(name, name)
    return lambda name: str(rename(name))


def _worth_watching(name: str, module: nn.Module, block: str | None) -> bool:
    """Modules without parameters of their own are watched where they are branches of a block or attention."""
    if block is None or not any(True for _ in module.children()):
        return False
    return name.rpartition(".")[0] == block or is_attention(module)


def _classify(parameter: WatchedParameter, module: WatchedModule, attribute: str) -> None:
    tensor, owner = parameter.tensor, module.module
    parameter.unsupported = obstacle(tensor)
    if parameter.unsupported:
        return
    kind, view = parameter_kind(owner, module.role, attribute, tensor.shape)
    if kind == "unknown":
        parameter.view = "unknown"
    elif kind != "none":
        parameter.roles.add(kind)
        parameter.view = (parameter.view or view) if kind == "head" else (view or parameter.view)
    elif isinstance(owner, nn.modules.conv._ConvNd) and owner.transposed:
        parameter.viewless = "a grouped transposed convolution has no stated matrix view"
    elif not parameter.roles:
        parameter.viewless = f"no matrix view is known for shape {tuple(tensor.shape)} of {type(owner).__name__}"


def obstacle(tensor: Tensor) -> str:
    """Why nothing of a parameter can be measured; empty if it can."""
    if isinstance(tensor, nn.UninitializedParameter):
        return "it is not initialised yet"
    if is_sharded(tensor):
        if is_partial(tensor):
            return "a sum over ranks that has not been taken (a partial DTensor)"
        held = obstacle(local(tensor)) if local(tensor).numel() else ""
        return held if tensor.numel() else "it has no entries"
    kind = type(tensor.data)
    if kind not in PLAIN:
        return f"a {kind.__name__}: only plain tensors are measured"
    if tensor.layout != torch.strided:
        return f"its layout is {tensor.layout}, not strided"
    if tensor.dtype not in MEASURED_DTYPES:
        return f"no arithmetic to measure {str(tensor.dtype).removeprefix('torch.')} by"
    if tensor.is_meta:
        return "it lies on the meta device: it has no entries yet"
    return "" if tensor.numel() else "it has no entries"


def hidden_matrices(outline: Outline) -> list[WatchedParameter]:
    """The matrices that an optimizer for matrices is made for: those of residual blocks, or all where there is no
    block."""
    matrices = [p for p in outline.parameters if p.roles == {"matrix"} and not p.excluded and not p.unsupported]
    inside = [p for p in matrices if p.owner.block is not None]
    return inside or matrices
