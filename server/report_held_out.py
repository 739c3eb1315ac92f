"""Leave-one-site-out in a report: what a site gets from a model that none of its studies went into."""

from __future__ import annotations

from collections.abc import Mapping

from common.metrics.summary import SiteMetrics

HELD_OUT = "held-out"
"""Arm: at each site, the model that all the others trained together."""
ALL_BUT = "all-but:"
"""Begins the arm of the model that one site was left out of, at the sites that trained it; the left-out
site's name follows."""


def left_out_models(
    results: Mapping[str, Mapping[str, SiteMetrics]],
) -> dict[str, dict[str, SiteMetrics]]:
    """Return left-out site -> site -> what the model of the others scores there, the left-out site too."""
    return {
        site: {**results.get(f"{ALL_BUT}{site}", {}), site: metrics}
        for site, metrics in sorted(results.get(HELD_OUT, {}).items())
    }
