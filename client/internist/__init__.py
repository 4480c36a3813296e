"""Internist, a doctor for PyTorch training runs.

    import internist
    internist.watch(model, optimizer)

Public names load on first use, so that `internist.schema` can be imported where torch is absent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internist.errors import InternistError
    from internist.history.reading import read
    from internist.monitor.beginning import AlertLevel
    from internist.monitor.monitor import Monitor
    from internist.monitor.watching import alert, finish, init, log, unwatch, watch
    from internist.observe.attention import attention_logits
    from internist.optim.groups import split_parameters
    from internist.optim.muon import Muon
    from internist.optim.muon_clip import MuonClip
    from internist.optim.muon_plus_plus import MuonPlusPlus
    from internist.optim.qk_clip import QKClip

__version__ = "0.1.0"
__all__ = [
    "AlertLevel",
    "InternistError",
    "Monitor",
    "Muon",
    "MuonClip",
    "MuonPlusPlus",
    "QKClip",
    "alert",
    "attention_logits",
    "finish",
    "init",
    "log",
    "read",
    "split_parameters",
    "unwatch",
    "watch",
]

_HOMES = {
    "AlertLevel": "internist.monitor.beginning",
    "InternistError": "internist.errors",
    "Monitor": "internist.monitor.monitor",
    "Muon": "internist.optim.muon",
    "MuonClip": "internist.optim.muon_clip",
    "MuonPlusPlus": "internist.optim.muon_plus_plus",
    "QKClip": "internist.optim.qk_clip",
    "alert": "internist.monitor.watching",
    "attention_logits": "internist.observe.attention",
    "finish": "internist.monitor.watching",
    "init": "internist.monitor.watching",
    "log": "internist.monitor.watching",
    "read": "internist.history.reading",
    "split_parameters": "internist.optim.groups",
    "unwatch": "internist.monitor.watching",
    "watch": "internist.monitor.watching",
}
_ROOMS = ("mup", "optim")
"""Packages with public names of their own."""
_OF_A_RUN = ("config", "run", "summary")
"""What there is of a run that `init` began: it belongs to the run, so it is looked up anew each time."""
_OTHERS = {
    "start_run": "(): call internist.watch(model, optimizer)",
    "autolog": "(): call internist.watch(model, optimizer)",
    "define_metric": "(): internist.log(values, step=n, axis='tokens') names the axis of a scalar",
    "add_scalar": "(): call internist.log({name: value})",
    "log_metric": "(): call internist.log({name: value})",
    "login": "(): type `internist login SERVER`, or set INTERNIST_SERVER and INTERNIST_TOKEN",
    "save": "(): it keeps numbers, no files",
    "log_artifact": "(): it keeps numbers, no files",
    "Artifact": ": it keeps numbers, no files",
    "Table": ": it keeps numbers: internist.log({name: value})",
    "Image": ": it keeps numbers: internist.log({name: value})",
    "Histogram": ": it keeps numbers, and measures the model by itself: internist.watch(model, optimizer)",
}
"""Names that users of other tools look for, and what there is instead."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"internist.{name}")
    if name in _OF_A_RUN:
        return _of_the_run(name)
    if name in _OTHERS:
        raise AttributeError(f"internist has no {name}{_OTHERS[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'internist' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _of_the_run(name: str) -> Any:
    run = import_module("internist.monitor.watching").current_run()
    if name == "run":
        return run
    if run is None:
        raise AttributeError(
            f"internist.{name} is that of a run that internist.init() began, and there is none; without init(), pass"
            " config= to internist.watch and internist.log(name=value) a number"
        )
    return getattr(run, name)
