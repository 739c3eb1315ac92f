"""Pretraining at a site, without labels: one file per task."""
