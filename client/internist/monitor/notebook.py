"""Notebooks: which cell runs, and whether a later one has taken a monitor's place."""

import linecache
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

from internist.model.roles import unwrap


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in a notebook a model was watched.

    Attributes:
        cell: the cell, by the notebook's id for it or else by its text.
        execution: which execution of a cell it was, counted by the kernel.
        names: the notebook's variables that held the model.
        root: the model.
    """

    cell: str
    execution: int
    names: frozenset[str]
    root: "weakref.ref[nn.Module]"


def is_interactive() -> bool:
    """Whether a person types what is executed: errors then end a cell or a line, not the run."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or shell() is not None


def shell() -> Any | None:
    """The running IPython shell, which notebooks execute their cells in; None elsewhere. IPython is never imported."""
    module = sys.modules.get("IPython")
    get_ipython = getattr(module, "get_ipython", None)
    return get_ipython() if callable(get_ipython) else None


def origin(root: nn.Module) -> Origin | None:
    """Where in a notebook the present call comes from; None outside of notebooks."""
    ipython = shell()
    namespace = getattr(ipython, "user_ns", None)
    if ipython is None or not isinstance(namespace, dict):
        return None
    return Origin(
        cell=_cell(ipython, namespace),
        execution=int(getattr(ipython, "execution_count", 0)),
        names=_names(root, namespace),
        root=weakref.ref(root),
    )


def is_superseded(earlier: Origin, later: Origin) -> bool:
    """Whether what was watched earlier has ended: its cell is executed again, or every variable that held its model
    holds something else now. Two models that a notebook trains at once are both kept."""
    if later.cell == earlier.cell and later.execution != earlier.execution:
        return True
    root, namespace = earlier.root(), getattr(shell(), "user_ns", {})
    return root is None or (bool(earlier.names) and not earlier.names & _names(root, namespace))


def _names(root: nn.Module, namespace: Mapping[str, Any]) -> frozenset[str]:
    """Variables that hold a model, wrapped or not. Those that begin with `_` are IPython's history."""
    return frozenset(
        name
        for name, value in list(namespace.items())
        if not name.startswith("_") and isinstance(value, nn.Module) and unwrap(value) is root
    )


def _cell(ipython: Any, namespace: Mapping[str, Any]) -> str:
    """The cell that is executed, by the notebook's id where the front end says it, else by its text."""
    header = getattr(ipython, "parent_header", None)
    metadata = header.get("metadata") if isinstance(header, Mapping) else None
    cell_id = metadata.get("cellId") if isinstance(metadata, Mapping) else None
    if cell_id:
        return f"id {cell_id}"
    file = ""
    frame: FrameType | None = sys._getframe()
    while frame is not None:  # the outermost frame of the notebook's own code
        if frame.f_globals is namespace:
            file = frame.f_code.co_filename
        frame = frame.f_back
    return "".join(linecache.getlines(file)) or file
