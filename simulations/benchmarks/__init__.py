"""Measurements to repeat: each prints what it compared and the figures."""
