"""Pretraining of the embedded backbone, on procedural radiographs and their reports."""
