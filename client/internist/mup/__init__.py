"""Spectral muP: the width-depth rules as data, as a plan for a model, and as a table of numbers; and the check of them.

Public names load on first use, so that the rules and the command need no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internist.mup.check import check
    from internist.mup.plan import Plan, PlanRow
    from internist.mup.planner import plan
    from internist.mup.rules import OPTIMIZERS, RULES, Rule, rule
    from internist.mup.scale import ScaleTable, scale

__all__ = ["OPTIMIZERS", "RULES", "Plan", "PlanRow", "Rule", "ScaleTable", "check", "plan", "rule", "scale"]

_HOMES = {
    "OPTIMIZERS": "internist.mup.rules",
    "Plan": "internist.mup.plan",
    "PlanRow": "internist.mup.plan",
    "RULES": "internist.mup.rules",
    "Rule": "internist.mup.rules",
    "ScaleTable": "internist.mup.scale",
    "check": "internist.mup.check",
    "plan": "internist.mup.planner",
    "rule": "internist.mup.rules",
    "scale": "internist.mup.scale",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'internist.mup' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name == "numpy":
            raise ImportError(f"internist.mup.{name} needs NumPy: pip install 'internist[mup]'") from error
        raise


class _Package(ModuleType):
    """`mup.plan`, `mup.scale`, `mup.check` are the functions, though the files they are in have the same names."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):  # what importing a submodule does to its package
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
