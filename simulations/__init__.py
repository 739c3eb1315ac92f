"""Synthetic sites, experiments and benchmarks: everything a federation needs but patients."""
