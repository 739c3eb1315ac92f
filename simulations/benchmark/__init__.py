"""A grid of simulated federations, run once each, compared with intervals, told in a page."""
