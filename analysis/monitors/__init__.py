"""Monitors: directions with calibrated thresholds, and the sinks that score prompts while they are harvested."""

from analysis.monitors.calibrate import Calibrator, calibrate
from analysis.monitors.monitor import Monitor, Scores, common_prefix, load_monitor, watched
from analysis.monitors.reference import ReferenceSink
from analysis.monitors.sink import MonitorSink
from analysis.monitors.state import CalibrationState
from analysis.sinks.extremes_sink import ExtremesSink
from analysis.sinks.scoring import Reference, Scorer

__all__ = [
    "CalibrationState",
    "Calibrator",
    "ExtremesSink",
    "Monitor",
    "MonitorSink",
    "Reference",
    "ReferenceSink",
    "Scorer",
    "Scores",
    "calibrate",
    "common_prefix",
    "load_monitor",
    "watched",
]
