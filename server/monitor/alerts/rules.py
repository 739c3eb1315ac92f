"""The rules: pure functions from what is known of a run to the alerts that hold now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import median

from server.facts.records import SiteRow
from server.monitor.alerts.alert import Alert
from server.monitor.alerts.run_facts import RunFacts
from server.monitor.alerts.settings import AlertSettings, Ending, Severity
from server.monitor.wording import figure, span
from server.report_words import counted, size

SMALLEST_RISE = 0.05
"""A loss near 0 multiplies easily; a smaller rise than this is no divergence."""
SMALLEST_GAIN = 0.001
"""Sites report AUROC with three decimals."""
LEAST_NORMS = 3
"""Earlier norms without which there is nothing to compare with."""
STANDSTILL = 120.0
"""Seconds for which nobody works on a run before that is told: a resume takes a while."""
CONNECTED = 60.0
"""Seconds since its last sign of life for which a site counts as connected."""
THIN = 30.0
"""Seconds for which too few sites are connected before that is told."""
_ANSWERED = frozenset({"returned", "rejected"})


def check(facts: RunFacts, settings: AlertSettings, now: float) -> list[Alert]:
    """Return every alert that holds of a run at ``now``, in the order of the rules."""
    rules = _WHILE_LIVE if facts.live else (_ended,)
    return list(chain.from_iterable(rule(facts, settings, now) for rule in rules))


Rule = Callable[[RunFacts, AlertSettings, float], Iterator[Alert]]


def _ended(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """A run has finished, failed or was stopped; or nobody works on it though it is not over."""
    state, rounds = facts.standing.state, _progress(facts)
    since = facts.standing.since if facts.standing.since is not None else now
    told: dict[str, tuple[Ending, Severity, str]] = {
        "finished": ("finished", "info", f"the run has finished, {rounds}"),
        "failed": ("failed", "critical", f"the run has failed, {rounds}; its committed rounds are kept"),
        "stopped": ("stopped", "info", f"the run was stopped, {rounds}"),
        "idle": ("failed", "critical", f"nobody works on the run, {rounds}; it can be resumed"),
    }
    ending, severity, sentence = told[state]
    if ending in settings.run_ended:
        rule = "run-idle" if state == "idle" else f"run-{ending}"
        patience = STANDSTILL if state == "idle" else 0.0
        yield Alert(facts.key, rule, "", severity, sentence, since, patience)


def _silent(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """A site of a live run has not been heard of for ``site_silent`` seconds."""
    if not settings.site_silent:
        return
    for row in facts.sites:
        heard = row.heard if row.heard is not None else facts.started
        if row.contact == "unknown" or heard is None or now - heard <= settings.site_silent:
            continue
        never = "" if row.heard is not None else " since the run began"
        text = f"{row.name} has not been heard of for {span(now - heard)}{never}"
        yield Alert(facts.key, "site-silent", row.name, "warning", text, heard)


def _rejected(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """A site's newest update was not admitted; or a site could not take part, and has not since."""
    for row in facts.sites if settings.update_rejected else ():
        if row.doing == "refused":
            text = f"{row.name} cannot take part{_why(row, None)}"
            yield Alert(facts.key, "site-refused", row.name, "warning", text, now)
        answers = [(number, how) for number, how in enumerate(row.participation, 1) if how in _ANSWERED]
        if answers and answers[-1][1] == "rejected":
            number = answers[-1][0]
            text = f"the update of {row.name} in round {number} was not admitted{_why(row, number)}"
            yield Alert(facts.key, "update-rejected", row.name, "warning", text, now)


def _why(row: SiteRow, number: int | None) -> str:
    for rejection in reversed(row.rejections):
        if rejection.round == number:
            reason = " ".join(rejection.reason.split())[:160]
            return f": {reason} ({rejection.code})" if reason else f" ({rejection.code})"
    return ""


def _abandoned(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """The newest round had fewer admissible updates than the quorum and changed nothing."""
    if not settings.round_abandoned or not facts.abandoned:
        return
    newest, oldest = facts.abandoned[0], facts.abandoned[-1]
    if newest == oldest:
        text = f"round {newest} was abandoned: too few admissible updates; the adapter stays as it was"
    else:
        text = f"rounds {oldest} to {newest} were abandoned: too few admissible updates, no progress"
    yield Alert(facts.key, "round-abandoned", "", "warning", text, now)


def _thin(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """Fewer sites than the quorum are connected, so the next round would be abandoned."""
    known = [row for row in facts.sites if row.contact != "unknown"]
    if not settings.quorum_at_risk or not known or len(known) < len(facts.sites):
        return
    if facts.standing.state not in ("local", "training"):
        return
    there = [row.name for row in known if row.heard is not None and now - row.heard <= CONNECTED]
    if len(there) < facts.quorum:
        absent = ", ".join(sorted({row.name for row in known} - {*there})[:8])
        text = f"{counted(len(there), 'site')} connected, a round needs {facts.quorum}; not there: {absent}"
        yield Alert(facts.key, "quorum-at-risk", "", "critical", text, now, THIN)


def _diverging_loss(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """Mean training loss stays above ``loss_factor`` times its best for ``divergence_rounds`` rounds."""
    values, k = _mean(facts.loss.mean) if facts.loss else [], settings.divergence_rounds
    if not settings.loss_factor or len(values) <= k:
        return
    best, newest = min(values[:-k]), values[-k:]
    limit = max(settings.loss_factor * best, best + SMALLEST_RISE)
    if all(value > limit for value in newest):
        text = (
            f"the mean training loss is {figure(newest[-1])}; its best was {figure(best)}, "
            f"and it has been far above for {counted(k, 'round')} or more"
        )
        yield Alert(facts.key, "divergence-loss", "", "critical", text, now)


def _falling_auroc(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """Mean validation AUROC is more than ``auroc_drop`` below its best for ``divergence_rounds`` rounds."""
    values, k = _mean(facts.auroc.mean) if facts.auroc else [], settings.divergence_rounds
    if not settings.auroc_drop or len(values) <= k:
        return
    best, newest = max(values[:-k]), values[-k:]
    if all(value < best - settings.auroc_drop for value in newest):
        text = (
            f"the mean validation AUROC is {figure(newest[-1])}; its best was {figure(best)}, "
            f"and it has been far below for {counted(k, 'round')} or more"
        )
        yield Alert(facts.key, "divergence-auroc", "", "warning", text, now)


def _large_norm(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """A site's newest update is ``norm_factor`` times larger than updates were in earlier rounds."""
    newest = max((points[-1][0] for points in facts.norms.values() if points), default=0)
    earlier = [v for points in facts.norms.values() for number, v in points if number < newest]
    if not settings.norm_factor or len(earlier) < LEAST_NORMS:
        return
    usual = median(earlier)
    for site, points in sorted(facts.norms.items()):
        if points and points[-1][0] == newest and points[-1][1] > settings.norm_factor * usual > 0:
            text = (
                f"the update of {site} in round {newest} has norm {figure(points[-1][1])}; "
                f"usual is {figure(usual)}"
            )
            yield Alert(facts.key, "divergence-norm", site, "warning", text, now)


def _lora_error(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """Averaging the LoRA factors loses more than ``lora_error`` of the mean update, round after round."""
    values, k = [value for _, value in facts.lora_error], settings.divergence_rounds
    if settings.lora_error and len(values) >= k and all(v > settings.lora_error for v in values[-k:]):
        text = (
            f"averaging the LoRA factors loses {100 * values[-1]:.0f} % of the mean update; "
            "an exact rule (lora.aggregation) loses nothing"
        )
        yield Alert(facts.key, "divergence-lora-error", "", "warning", text, now)


def _privacy(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """A site has spent ``budget_share`` of ``budget_epsilon``."""
    for site, points in sorted(facts.epsilon.items()) if settings.budget_epsilon else ():
        if points and points[-1][1] >= settings.budget_share * settings.budget_epsilon:
            whose = f"{site} has" if site else "the run has"
            text = f"{whose} spent epsilon {figure(points[-1][1])} of {figure(settings.budget_epsilon)}"
            yield Alert(facts.key, "budget-epsilon", site, "warning", text, now)


def _bytes(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """The run has sent ``budget_share`` of ``budget_bytes``, both ways together."""
    if settings.budget_bytes and facts.traffic >= settings.budget_share * settings.budget_bytes:
        text = f"the run has sent {size(facts.traffic)} of {size(settings.budget_bytes)}, {_progress(facts)}"
        yield Alert(facts.key, "budget-bytes", "", "warning", text, now)


def _hours(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """The run has taken ``budget_share`` of ``budget_hours``."""
    if not settings.budget_hours or facts.started is None:
        return
    near = facts.started + settings.budget_share * settings.budget_hours * 3600
    if now >= near:
        taken = span(now - facts.started)
        text = f"the run has taken {taken} of {settings.budget_hours:g} h, {_progress(facts)}"
        yield Alert(facts.key, "budget-hours", "", "warning", text, near)


def _no_better(facts: RunFacts, settings: AlertSettings, now: float) -> Iterator[Alert]:
    """Mean validation AUROC has had no new best for ``patience`` rounds."""
    if not settings.patience or facts.auroc is None:
        return
    best, best_round, newest = float("-inf"), 0, 0
    for number, value in zip(facts.auroc.rounds, facts.auroc.mean, strict=True):
        if value is not None:
            newest = number
            if value >= best + SMALLEST_GAIN:
                best, best_round = value, number
    if newest - best_round >= settings.patience:
        when = f"round {best_round}" if best_round else "the start"
        rounds = counted(newest - best_round, "round")
        text = f"no new best for {rounds}: mean validation AUROC was {figure(best)} at {when}"
        yield Alert(facts.key, "budget-patience", "", "info", text, now)


_WHILE_LIVE: tuple[Rule, ...] = (
    _silent,
    _rejected,
    _abandoned,
    _thin,
    _diverging_loss,
    _falling_auroc,
    _large_norm,
    _lora_error,
    _privacy,
    _bytes,
    _hours,
    _no_better,
)


def _mean(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _progress(facts: RunFacts) -> str:
    return f"{facts.standing.committed} of {counted(facts.standing.rounds, 'round')} done"
