"""Monitors: directions with calibrated thresholds, and the sinks that score prompts while they are harvested."""

from analysis.monitors.calibrate import calibrate
from analysis.monitors.monitor import Monitor, Scores, common_prefix, load_monitor, watched
from analysis.monitors.sink import ExtremesSink, MonitorSink

__all__ = [
    "ExtremesSink",
    "Monitor",
    "MonitorSink",
    "Scores",
    "calibrate",
    "common_prefix",
    "load_monitor",
    "watched",
]
