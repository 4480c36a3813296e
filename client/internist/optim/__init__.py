"""Optimizers that keep the spectral conditions: Muon, Muon++ and what goes with them.

Public names load on first use, so that `import internist.optim` costs nothing that is not used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from internist.optim.coefficients import COEFFICIENTS, orthogonalize
    from internist.optim.conversion import convert_state
    from internist.optim.groups import split_parameters
    from internist.optim.muon import Muon
    from internist.optim.muon_clip import MuonClip
    from internist.optim.muon_plus_plus import MuonPlusPlus
    from internist.optim.muon_sphere import MuonSphere
    from internist.optim.projections import Fused, Latent, Separate
    from internist.optim.qk_clip import QKClip
    from internist.optim.scaling import SCALES

__all__ = [
    "COEFFICIENTS",
    "SCALES",
    "Fused",
    "Latent",
    "Muon",
    "MuonClip",
    "MuonPlusPlus",
    "MuonSphere",
    "QKClip",
    "Separate",
    "convert_state",
    "orthogonalize",
    "split_parameters",
]

_HOMES = {
    "COEFFICIENTS": "internist.optim.coefficients",
    "convert_state": "internist.optim.conversion",
    "Fused": "internist.optim.projections",
    "Latent": "internist.optim.projections",
    "Separate": "internist.optim.projections",
    "Muon": "internist.optim.muon",
    "MuonClip": "internist.optim.muon_clip",
    "MuonPlusPlus": "internist.optim.muon_plus_plus",
    "MuonSphere": "internist.optim.muon_sphere",
    "QKClip": "internist.optim.qk_clip",
    "SCALES": "internist.optim.scaling",
    "orthogonalize": "internist.optim.coefficients",
    "split_parameters": "internist.optim.groups",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'internist.optim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
