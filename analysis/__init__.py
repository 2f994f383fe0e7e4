"""Arithmetic on what was harvested and on weights: differences, probes, monitors, statistics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.monitors import Monitor, load_monitor
    from analysis.probes.fit import fit_probe
    from analysis.probes.probe import load_probe
    from analysis.weights import WeightDelta, load_delta, weight_delta

__all__ = ["Monitor", "WeightDelta", "fit_probe", "load_delta", "load_monitor", "load_probe", "weight_delta"]

_HOMES = {
    "Monitor": "analysis.monitors",
    "load_monitor": "analysis.monitors",
    "fit_probe": "analysis.probes.fit",
    "load_probe": "analysis.probes.probe",
    "WeightDelta": "analysis.weights",
    "load_delta": "analysis.weights",
    "weight_delta": "analysis.weights",
}


def __getattr__(name: str) -> Any:
    """Statistics need no torch: only those who ask for a name that does pay its import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
