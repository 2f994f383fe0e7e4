"""Differences between the weights of models: singular triples, directions and what is only rounding."""

from analysis.weights.delta import WeightDelta, load_delta, read_delta
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.run import weight_delta, weight_deltas, write_deltas
from analysis.weights.work import Comparison, Plan, plan_deltas

__all__ = [
    "Comparison",
    "MatrixDelta",
    "Plan",
    "VectorDelta",
    "WeightDelta",
    "load_delta",
    "plan_deltas",
    "read_delta",
    "weight_delta",
    "weight_deltas",
    "write_deltas",
]
