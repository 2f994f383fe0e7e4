"""Arithmetic on what was harvested and on weights: differences, probes, monitors, statistics, and sinks that score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.loader import ColumnLoader
    from analysis.monitors import Monitor, load_monitor
    from analysis.probes.fit import fit_probe
    from analysis.probes.probe import load_probe
    from analysis.sinks import (
        ExemplarSink,
        Moments,
        MomentsSink,
        ProbeSink,
        ProjectionSink,
        read_exemplars,
        read_moments,
    )
    from analysis.weights import WeightDelta, load_delta, weight_delta, weight_deltas

__all__ = [
    "ColumnLoader",
    "ExemplarSink",
    "Moments",
    "MomentsSink",
    "Monitor",
    "ProbeSink",
    "ProjectionSink",
    "WeightDelta",
    "fit_probe",
    "load_delta",
    "load_monitor",
    "load_probe",
    "read_exemplars",
    "read_moments",
    "weight_delta",
    "weight_deltas",
]

_HOMES = {
    "ColumnLoader": "analysis.loader",
    "Monitor": "analysis.monitors",
    "load_monitor": "analysis.monitors",
    "fit_probe": "analysis.probes.fit",
    "load_probe": "analysis.probes.probe",
    "ExemplarSink": "analysis.sinks",
    "Moments": "analysis.sinks",
    "MomentsSink": "analysis.sinks",
    "ProbeSink": "analysis.sinks",
    "ProjectionSink": "analysis.sinks",
    "read_exemplars": "analysis.sinks",
    "read_moments": "analysis.sinks",
    "WeightDelta": "analysis.weights",
    "load_delta": "analysis.weights",
    "weight_delta": "analysis.weights",
    "weight_deltas": "analysis.weights",
}


def __getattr__(name: str) -> Any:
    """Statistics need no torch: only those who ask for a name that does pay its import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
