"""Internist, a doctor for PyTorch training runs.

    import internist
    internist.watch(model, optimizer)

Public names load on first use, so that `internist.schema` can be imported where torch is absent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internist.errors import InternistError
    from internist.monitor.monitor import Monitor
    from internist.monitor.watching import alert, finish, log, unwatch, watch
    from internist.optim.groups import split_parameters
    from internist.optim.muon import Muon
    from internist.optim.muon_clip import MuonClip
    from internist.optim.muon_plus_plus import MuonPlusPlus
    from internist.optim.qk_clip import QKClip

__version__ = "0.1.0"
__all__ = [
    "InternistError",
    "Monitor",
    "Muon",
    "MuonClip",
    "MuonPlusPlus",
    "QKClip",
    "alert",
    "finish",
    "log",
    "split_parameters",
    "unwatch",
    "watch",
]

_HOMES = {
    "InternistError": "internist.errors",
    "Monitor": "internist.monitor.monitor",
    "Muon": "internist.optim.muon",
    "MuonClip": "internist.optim.muon_clip",
    "MuonPlusPlus": "internist.optim.muon_plus_plus",
    "QKClip": "internist.optim.qk_clip",
    "alert": "internist.monitor.watching",
    "finish": "internist.monitor.watching",
    "log": "internist.monitor.watching",
    "split_parameters": "internist.optim.groups",
    "unwatch": "internist.monitor.watching",
    "watch": "internist.monitor.watching",
}
_ROOMS = ("mup", "optim")
"""Packages with public names of their own."""
_OTHERS = {
    "init": "call internist.watch(model, optimizer)",
    "start_run": "call internist.watch(model, optimizer)",
    "autolog": "call internist.watch(model, optimizer)",
    "config": "pass config= to internist.watch",
    "run": "internist.watch returns the monitor of the run",
    "summary": "internist.log(name=value) keeps every value of a scalar",
    "define_metric": "internist.log(values, step=n, axis='tokens') names the axis of a scalar",
    "add_scalar": "call internist.log({name: value})",
    "log_metric": "call internist.log({name: value})",
    "login": "set INTERNIST_SERVER and INTERNIST_TOKEN, or pass server= and token= to internist.watch",
    "save": "it keeps numbers, no files",
    "log_artifact": "it keeps numbers, no files",
    "Artifact": "it keeps numbers, no files",
    "Table": "it keeps numbers: internist.log({name: value})",
    "Image": "it keeps numbers: internist.log({name: value})",
    "Histogram": "it keeps numbers, and measures the model by itself: internist.watch(model, optimizer)",
}
"""Names that users of other tools look for, and what there is instead."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"internist.{name}")
    if name in _OTHERS:
        raise AttributeError(f"internist has no {name}: {_OTHERS[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'internist' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
