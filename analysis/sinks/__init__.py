"""Sinks that accumulate and score while prompts are harvested, and the readers that merge what units gave."""

from analysis.sinks.exemplar_sink import ExemplarSink
from analysis.sinks.exemplars import Exemplar, Exemplars, read_exemplars
from analysis.sinks.extremes_sink import ExtremesSink
from analysis.sinks.moments import Moments, read_moments
from analysis.sinks.moments_sink import MomentsSink, second_moments_bytes
from analysis.sinks.probe_sink import ProbeSink
from analysis.sinks.projection_sink import ProjectionSink

__all__ = [
    "Exemplar",
    "ExemplarSink",
    "Exemplars",
    "ExtremesSink",
    "Moments",
    "MomentsSink",
    "ProbeSink",
    "ProjectionSink",
    "read_exemplars",
    "read_moments",
    "second_moments_bytes",
]
