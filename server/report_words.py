"""The report's sentences and numbers: what a reader is told, and how carefully."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import fsum

from server.report_schema import Arm, Comparison, Report, WorseSite

MACRO = "macro"


@dataclass(frozen=True)
class Headline:
    """The answer in one sentence, what follows from it, and its tone for the page."""

    tone: str
    """``better``, ``mixed``, ``unclear``, ``worse`` or ``none``."""
    answer: str
    details: tuple[str, ...]


def number(value: float, digits: int = 3) -> str:
    """Write a value with a true minus, and no minus before a zero.

    >>> number(0.71249), number(-0.0001)
    ('0.712', '0.000')
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", "−" if float(text) else "")


def signed(value: float) -> str:
    """Write a difference with its sign.

    >>> signed(0.0123), signed(-0.0123), signed(-0.0001)
    ('+0.012', '−0.012', '0.000')
    """
    text = number(value)
    return f"+{text}" if value > 0 and float(text) else text


def between(interval: tuple[float, float], write: Callable[[float], str] = number) -> str:
    """Write an interval.

    >>> between((0.7, 0.8))
    '0.700 to 0.800'
    """
    return f"{write(interval[0])} to {write(interval[1])}"


def size(count: float) -> str:
    """Write a number of bytes in decimal units.

    >>> size(1_191_968), size(512), size(999_600)
    ('1.19 MB', '512 B', '1.00 MB')
    """
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    digits = 0 if unit == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:,.{digits}f} {unit}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Join names as in a sentence, the first ``most`` of them.

    >>> listed(["north", "east", "west"]), listed(["north", "east", "west"], most=2)
    ('north, east and west', 'north, east and 1 more')
    """
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(n: int, thing: str) -> str:
    """Write a count with its noun.

    >>> counted(1, "site"), counted(4, "site")
    ('1 site', '4 sites')
    """
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def shown_findings(report: Report) -> list[str]:
    """Every finding annotated or measured, in the order of the site that annotates most."""
    sites = sorted(report.sites.values(), key=lambda site: -len(site.findings))
    names = [finding for site in sites for finding in site.findings]
    results = [result for arm in report.arms.values() for result in arm.sites.values()]
    return list(dict.fromkeys(names + [name for result in results for name in result.findings]))


def by_gain(report: Report) -> list[str]:
    """Every measured site: the smallest gain first, then those not compared, lowest AUROC first."""
    sites = list(dict.fromkeys(site for arm in report.arms.values() for site in arm.sites))
    gaps = report.comparison.sites if report.comparison else {}
    arm = report.arms.get("federated") or next(iter(report.arms.values()), None)
    last = float("inf")

    def place(site: str) -> tuple[float, float]:
        area = arm.sites[site].macro_auroc if arm and site in arm.sites else None
        return gaps[site].difference if site in gaps else last, last if area is None else area

    return sorted(sites, key=place)


def headline(report: Report) -> Headline:
    """Say what federated training did to the sites, no surer than the intervals allow."""
    from server.report_further import sentences  # its sentences are made of what is here

    said = _without_comparison(report) if report.comparison is None else _compared(report, report.comparison)
    return replace(said, details=(*said.details, *sentences(report)))


def _compared(report: Report, against: Comparison) -> Headline:
    macro = [entry for entry in report.worse_sites if entry.finding == MACRO]
    certain = [entry for entry in macro if entry.certain]
    low, high = against.site_mean.interval
    if high < 0:
        tone = "worse"
    elif low > 0:
        tone = "mixed" if certain else "better"
    else:
        tone = "mixed" if certain else "unclear"
    return Headline(tone, _answer(report, against), tuple(_details(report, against, macro)))


def _answer(report: Report, against: Comparison) -> str:
    sites = list(against.sites)
    where = f"over {len(sites)} sites" if len(sites) > 1 else f"at {sites[0]}"
    what = "the mean AUROC" if len(sites) > 1 else "the macro AUROC"
    before, after = (_mean(report.arms.get(name), sites) for name in (against.reference, against.candidate))
    gap, interval = against.site_mean.difference, against.site_mean.interval
    change = f"{signed(gap)} (95 % interval {between(interval, signed)})"
    levels = ""
    if before is not None and after is not None:
        levels = f" from {number(before)} ({against.reference}) to {number(after)}"
    who = against.candidate.capitalize()
    if interval[0] <= 0 <= interval[1]:
        return (
            f"{who} training did not measurably change {what} {where}"
            f"{levels and f': it went{levels}'}, {change}; the interval includes zero."
        )
    verb = "raised" if gap > 0 else "lowered"
    return f"{who} training {verb} {what} {where}{levels}: {change}."


def _details(report: Report, against: Comparison, macro: Sequence[WorseSite]) -> list[str]:
    certain = [entry for entry in macro if entry.certain]
    noise = [entry for entry in macro if not entry.certain]
    details = []
    if certain:
        names = listed([f"{entry.site} ({signed(entry.difference)})" for entry in certain])
        details.append(f"{len(certain)} of {counted(len(against.sites), 'site')} got worse: {names}.")
    if noise:
        names = listed([f"{entry.site} ({signed(entry.difference)})" for entry in noise])
        start = "Also lower" if certain else "No site got worse beyond noise; lower"
        details.append(f"{start}, within noise: {names}.")
    if not macro:
        details.append("No site got worse.")
    single = [entry for entry in report.worse_sites if entry.finding != MACRO and entry.certain]
    if single:
        sites = listed(list(dict.fromkeys(entry.site for entry in single)))
        verb = "lies" if len(single) == 1 else "lie"
        details.append(
            f"{counted(len(single), 'result')} on a single finding {verb} wholly below local ({sites})."
        )
    left_out = [site for site in report.sites if site not in against.sites]
    if left_out:
        details.append(f"Not compared, because no AUROC is defined there: {listed(left_out)}.")
    return details


def _without_comparison(report: Report) -> Headline:
    arm, local = report.arms.get("federated"), report.arms.get("local")
    if arm is None:
        answer = "This run has no federated arm, so there is nothing to say about federation."
        return Headline("none", answer, ())
    if arm.site_mean_auroc is None:
        answer = "No AUROC is defined at any site: no finding has enough studies with and without it."
        return Headline("none", answer, ())
    defined = [site for site, result in arm.sites.items() if result.macro_auroc is not None]
    where = f"over {len(defined)} sites" if len(defined) > 1 else f"at {defined[0]}"
    reach = f" (95 % interval {between(arm.interval)})" if arm.interval else ""
    answer = f"Federated training reached a mean AUROC of {number(arm.site_mean_auroc)} {where}{reach}."
    why = (
        "There is no local arm to compare with, so this report cannot say which sites gained."
        if local is None
        else "No paired comparison with the local arm was made, so which sites gained is unknown."
    )
    return Headline("none", answer, (why,))


def _mean(arm: Arm | None, sites: Sequence[str]) -> float | None:
    """Mean over the very sites compared, so that the two levels differ by what is said."""
    if arm is None:
        return None
    values = [arm.sites[site].macro_auroc for site in sites if site in arm.sites]
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if len(known) == len(sites) else None


def equal_work(report: Report) -> tuple[bool, str] | None:
    """Say whether local and federated took the same local steps; ``None`` where not comparable."""
    local, federated = report.arms.get("local"), report.arms.get("federated")
    if local is None or federated is None:
        return None
    unequal = [
        f"{site} ({local.local_steps.get(site, 0)} local, {federated.local_steps[site]} federated)"
        for site in federated.local_steps
        if federated.local_steps[site] != local.local_steps.get(site, 0)
    ]
    if not federated.local_steps:
        return None
    if unequal:
        return False, (
            f"Local work differs at {listed(unequal, most=3)}: what looks like a gain or a loss of "
            "federation may be one of more or less training."
        )
    return True, (
        "Each site took the same number of optimiser steps on its own studies in the local and "
        "in the federated arm, so a difference is not one of training longer."
    )


def chance_flags(report: Report) -> tuple[int, float]:
    """Count the intervals looked at, and how many would lie wholly below 0 if nothing differed."""
    against = report.comparison
    if against is None:
        return 0, 0.0
    arms = [report.arms[name] for name in (against.reference, against.candidate)]
    pairs = 0
    for site in against.sites:
        known = [{f for f, r in arm.sites[site].findings.items() if r.auroc is not None} for arm in arms]
        pairs += 1 + len(known[0] & known[1])
    return pairs, 0.025 * pairs


def incidents(report: Report) -> list[str]:
    """Name every round in which something did not go as planned."""
    told = []
    for part in report.rounds:
        events = [f"{site} rejected ({code})" for site, code in part.rejected.items()]
        events += [f"{site} missing" for site in part.missing]
        if part.status == "abandoned":
            events.append("round abandoned")
        if events:
            told.append(f"Round {part.round}: {', '.join(events)}")
    return told
