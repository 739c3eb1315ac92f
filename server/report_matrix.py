"""The report's part on every model at every site: which site would be served by whose model."""

from __future__ import annotations

from server.report_run import Interval, Name, Part, Share


class MatrixFigure(Part):
    """What one model scores on one finding of one site."""

    auroc: Share | None
    """AUROC of the finding; `null`: undefined or suppressed."""
    interval: Interval | None
    """95 % patient-bootstrap interval of `auroc`."""


class MatrixCell(Part):
    """What one model scores at one site."""

    auroc: Share | None
    """Macro AUROC over the findings defined at this site."""
    interval: Interval | None
    """95 % patient-bootstrap interval of `auroc`."""
    findings: dict[Name, MatrixFigure]
    """Finding to the model's score."""


class MatrixRow(Part):
    """One model, measured on the test studies of the sites."""

    model: Name
    """`local:SITE` is what SITE trained alone, `all-but:SITE` what the others trained without it;
    `federated` and `pooled` are the arms of that name."""
    trained_at: Name | None
    """Site that trained it alone; `null` where several did."""
    sites: dict[Name, MatrixCell]
    """Site to the model's score there; a site that did not measure it is absent."""
