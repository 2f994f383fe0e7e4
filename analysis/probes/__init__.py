"""Probes: classifiers on activations, fitted over many sites at once and measured on held-out groups."""

from analysis.probes.evaluate import (
    Evaluation,
    Transfer,
    evaluate_probe,
    transfer_between,
    transfer_probes,
)
from analysis.probes.fit import ProbeFit, SiteResult, fit_probe
from analysis.probes.probe import Probe, load_probe

__all__ = [
    "Evaluation",
    "Probe",
    "ProbeFit",
    "SiteResult",
    "Transfer",
    "evaluate_probe",
    "fit_probe",
    "load_probe",
    "transfer_between",
    "transfer_probes",
]
