"""Low-rank updates: the aggregation error of averaged factors, and the exact residual."""
