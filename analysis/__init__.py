"""Arithmetic on what was harvested and on weights: differences, probes, monitors, statistics."""

from analysis.monitors import Monitor, load_monitor
from analysis.probes.fit import fit_probe
from analysis.probes.probe import load_probe
from analysis.weights import WeightDelta, load_delta, weight_delta

__all__ = ["Monitor", "WeightDelta", "fit_probe", "load_delta", "load_monitor", "load_probe", "weight_delta"]
