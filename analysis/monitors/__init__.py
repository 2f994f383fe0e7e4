"""Monitors: directions with calibrated thresholds, and the sinks that score prompts while they are harvested."""

from analysis.monitors.calibrate import calibrate
from analysis.monitors.monitor import Monitor, Scores, common_prefix, load_monitor, watched
from analysis.monitors.sink import ExtremesSink, MonitorSink, TokenScoreSink

__all__ = [
    "ExtremesSink",
    "Monitor",
    "MonitorSink",
    "Scores",
    "TokenScoreSink",
    "calibrate",
    "common_prefix",
    "load_monitor",
    "watched",
]
