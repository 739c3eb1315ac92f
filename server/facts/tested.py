"""What came of it: macro AUROC and gain of the models that hospitals would use, on their test studies."""

from __future__ import annotations

from server.facts.view import LedgerView


class Tested:
    """Macro AUROC and gains, read again only when there is another evaluation."""

    ARMS = ("federated", "personalised")

    def __init__(self) -> None:
        self.macro: dict[str, dict[str, float]] = {}
        """Arm -> site -> macro AUROC, where it is defined."""
        self.gains: dict[str, dict[str, tuple[float, float, float]]] = {}
        """Arm -> site -> macro gain over the site's local model, with its interval, where there is one."""
        self._mark: object = None

    def update(self, view: LedgerView) -> None:
        """Read the evaluations of these arms, if there are others than at the last look."""
        mark = view.measured()
        if mark == self._mark:
            return
        self._mark = mark
        for arm in self.ARMS:
            sites = view.evaluations("test", arm).get(arm, {})
            self.macro[arm] = {
                site: float(told["macro-auroc"]) for site, told in sites.items() if "macro-auroc" in told
            }
            gains = {site: told.get("gain.macro") for site, told in sites.items()}
            self.gains[arm] = {
                site: (float(gain[0]), float(gain[1]), float(gain[2]))
                for site, gain in gains.items()
                if isinstance(gain, list) and len(gain) == 3
            }
