"""Metrics as pure functions on arrays: discrimination, calibration, bootstrap, summary."""

from common.metrics.calibration import ReliabilityBin
from common.metrics.summary import (
    Difference,
    FindingMetrics,
    SiteMetrics,
    compare_scores,
    evaluate_scores,
)

__all__ = [
    "Difference",
    "FindingMetrics",
    "ReliabilityBin",
    "SiteMetrics",
    "compare_scores",
    "evaluate_scores",
]
