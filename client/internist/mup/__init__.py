"""Spectral muP: the width-depth rules as data, as a plan for a model, and as a table of numbers; and the check of them.

Public names load on first use, so that the rules and the command need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internist.mup.checking import check
    from internist.mup.planner import plan
    from internist.mup.planning import Plan, PlanRow
    from internist.mup.rules import OPTIMIZERS, RULES, Rule, rule
    from internist.mup.scale_table import ScaleTable, scale

__all__ = ["OPTIMIZERS", "RULES", "Plan", "PlanRow", "Rule", "ScaleTable", "check", "plan", "rule", "scale"]

_HOMES = {
    "OPTIMIZERS": "internist.mup.rules",
    "Plan": "internist.mup.planning",
    "PlanRow": "internist.mup.planning",
    "RULES": "internist.mup.rules",
    "Rule": "internist.mup.rules",
    "ScaleTable": "internist.mup.scale_table",
    "check": "internist.mup.checking",
    "plan": "internist.mup.planner",
    "rule": "internist.mup.rules",
    "scale": "internist.mup.scale_table",
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
