"""Statistics that hold for clustered rows and after a search; pure functions of arrays."""

from analysis.statistics.bootstrap import bootstrap_auroc, bootstrap_mean
from analysis.statistics.cascade import Costs, cascade_frontier
from analysis.statistics.comparison import auroc_gain
from analysis.statistics.conformal import conformal_threshold, groups_needed
from analysis.statistics.interval import Interval
from analysis.statistics.matched import matched_auroc
from analysis.statistics.multiplicity import benjamini_hochberg, benjamini_yekutieli, holm
from analysis.statistics.operating_point import OperatingPoint, measure_flags, recall_at_fpr
from analysis.statistics.permutation import max_statistic_p, shuffled_labels
from analysis.statistics.proportion import clopper_pearson, wilson
from analysis.statistics.ranking import auroc, delong
from analysis.statistics.turns import recall_of_transcripts, turn_curve

__all__ = [
    "Costs",
    "Interval",
    "OperatingPoint",
    "auroc",
    "auroc_gain",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "bootstrap_auroc",
    "bootstrap_mean",
    "cascade_frontier",
    "clopper_pearson",
    "conformal_threshold",
    "delong",
    "groups_needed",
    "holm",
    "matched_auroc",
    "max_statistic_p",
    "measure_flags",
    "recall_at_fpr",
    "recall_of_transcripts",
    "shuffled_labels",
    "turn_curve",
    "wilson",
]
