"""Frozen backbones: architectures, weights, digests, and the model built from a RunConfig."""
