"""Differences between the weights of models: singular triples, directions and what is only rounding."""

from analysis.weights.delta import WeightDelta, load_delta, weight_delta
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta

__all__ = ["MatrixDelta", "VectorDelta", "WeightDelta", "load_delta", "weight_delta"]
