"""What each figure shows, in words: the same for the live page and for the report.

``..._told`` is what someone who cannot see the figure needs, with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from server.facts.records import Aggregation, Curve, Matrix, Reliability
from server.report_words import between, counted, listed, number

METRICS = {
    "auroc": "AUROC on validation studies",
    "pr-auc": "PR-AUC on validation studies",
    "ece": "ECE on validation studies",
    "loss": "training loss",
    "steps": "local steps",
    "seconds": "seconds from question to answer",
    "examples": "training examples",
    "weight": "weight in the mean",
    "update-norm": "norm of the update",
    "codec-error": "error of the codec",
    "cosine": "cosine with the aggregate",
    "up": "bytes from the site",
    "down": "bytes to the site",
    "payload": "bytes of the update",
}

MATRIX_CAPTION = (
    "AUROC of every model (rows) on every site's own test studies (columns). Outlined: the site that "
    "trained the model alone. Star: the best model at that site. Compare within a column; sites differ "
    "in how hard their studies are."
)
RELIABILITY_CAPTION = (
    "Each point gathers studies of similar predicted probability; larger points hold more studies. On "
    "the diagonal a probability means what it says; below it probabilities are too high, above it too "
    "low. Bars are 95 % Wilson intervals. Bins too small to show are merged with their neighbours."
)
PAIRS_CAPTION = (
    "Cosine of each pair of sites' updates in this round: 1, they pull the same way; 0, unrelated; "
    "below 0, against each other."
)
WEIGHTS_CAPTION = (
    "Left: each site's share of the mean; the dashed line is an equal share. Right: cosine of its update "
    "with the aggregate; near or below 0 the site pulls another way."
)
LORA_CAPTION = (
    "‖M − A‖ / ‖M‖: how far the applied update A is from the weighted mean M of the sites' products. "
    "0 is exact."
)
DRIFT_CAPTION = (
    "L2 distance of each part of the adapter after a round from where the run began. A part that runs "
    "away from the others is worth a look."
)


def finding_words(finding: str) -> str:
    """Write a finding, or what stands for all of them.

    >>> finding_words("lung_opacity"), finding_words("")
    ('lung opacity', 'all findings')
    """
    return finding.replace("_", " ") or "all findings"


def metric_words(metric: str, finding: str = "") -> str:
    """Write what a curve shows.

    >>> metric_words("auroc"), metric_words("ece", "edema")
    ('AUROC on validation studies', 'ECE on validation studies, edema')
    """
    words = METRICS.get(metric, metric.replace("-", " "))
    return f"{words}, {finding_words(finding)}" if finding else words


def figures_of(value: float) -> str:
    """Write a value of unknown size with about three figures.

    >>> figures_of(0.8123), figures_of(0.00012), figures_of(1234.5), figures_of(-0.5)
    ('0.812', '0.00012', '1,234', '−0.5')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def curve_told(curve: Curve) -> str:
    """Say where the sites stand now and where they came from."""
    seen = [(r, v) for r, v in zip(curve.rounds, curve.mean, strict=True) if v is not None]
    what = metric_words(curve.metric, curve.finding)
    if not seen:
        return f"{what}: no value yet."
    (first, before), (last, now) = seen[0], seen[-1]
    place = curve.rounds.index(last)
    told = f"{what}: mean over sites {figures_of(now)} after round {last}"
    if last != first:
        told += f", {figures_of(before)} " + ("at the start" if first == 0 else f"after round {first}")
    worst, low, high = curve.worst[place], curve.low[place], curve.high[place]
    if worst is not None and len(curve.sites) > 1:
        told += f"; worst at {curve.worst_site[place]} with {figures_of(worst)}"
    if low is not None and high is not None and len(curve.sites) > 1:
        told += f"; spread {figures_of(low)} to {figures_of(high)}"
    return f"{told}."


def best_models(matrix: Matrix) -> tuple[tuple[int, ...], ...]:
    """Per site the rows of the best model: more than one where they tie, none where all are unknown."""
    best = []
    for column in range(len(matrix.sites)):
        values = [row[column] for row in matrix.values]
        top = max((value for value in values if value is not None), default=None)
        best.append(tuple(i for i, value in enumerate(values) if value is not None and value == top))
    return tuple(best)


def matrix_told(matrix: Matrix) -> str:
    """Say which model is best where, up to eight sites one by one."""
    about = (
        f"AUROC, {finding_words(matrix.finding)}, of {counted(len(matrix.models), 'model')} "
        f"at {counted(len(matrix.sites), 'site')}. "
    )
    best = best_models(matrix)
    if len(matrix.sites) <= 8:
        told = []
        for column, (site, rows) in enumerate(zip(matrix.sites, best, strict=True)):
            if rows:
                names = listed([matrix.models[row] for row in rows], most=3)
                value = matrix.values[rows[0]][column]
                told.append(f"at {site} {names}" + (f" ({number(value)})" if value is not None else ""))
        return f"{about}Best {'; '.join(told)}." if told else f"{about}No value."
    wins: dict[str, int] = {}
    for rows in best:
        for row in rows:
            name = matrix.models[row]
            wins[name] = wins.get(name, 0) + 1
    ranked = sorted(wins.items(), key=lambda item: -item[1])
    return f"{about}Best most often: {listed([f'{name} at {n} sites' for name, n in ranked], most=3)}."


ARM_WORDS = {"federated": "before calibration", "calibrated": "after calibration"}


def arm_words(arm: str) -> str:
    """Write the name of a model in a reliability figure."""
    return ARM_WORDS.get(arm, arm)


def shown_arms(reliability: Reliability) -> list[str]:
    """Before and after where there are both; else up to two of the models measured."""
    arms = [arm for arm in ("federated", "calibrated") if reliability.arms.get(arm)]
    return arms or [arm for arm, bins in reliability.arms.items() if bins][:2]


def reliability_told(reliability: Reliability) -> str:
    """Say how far the probabilities are from the shares observed, and where most."""
    where = f"at {reliability.site}" if reliability.site else "over all sites"
    told = []
    for arm in shown_arms(reliability):
        bins = reliability.arms[arm]
        far = max(bins, key=lambda part: abs(part.mean - part.share))
        error = reliability.ece.get(arm)
        told.append(
            f"{arm_words(arm)} ({arm} model) ECE {'n/a' if error is None else number(error)}, "
            f"{counted(len(bins), 'bin')}, "
            f"farthest where {number(far.mean, 2)} was predicted and {number(far.share, 2)} observed "
            f"({far.positives} of {far.studies} studies)"
        )
    return f"Reliability of {finding_words(reliability.finding)} {where}: {'; '.join(told)}."


def weights_told(aggregation: Aggregation) -> str:
    """Say who weighs most and least, and who pulls another way."""
    ranked = sorted(aggregation.weights.items(), key=lambda item: -item[1])
    (most, largest), (least, smallest) = ranked[0], ranked[-1]
    told = (
        f"Round {aggregation.round}: {counted(len(ranked), 'site')} in the mean; "
        f"largest weight {percent(largest)} ({most})"
    )
    if len(ranked) > 1:
        told += f", smallest {percent(smallest)} ({least})"
    if aggregation.cosines:
        site = min(aggregation.cosines, key=lambda name: aggregation.cosines[name])
        told += f"; least in line with the aggregate: {site}, cosine {number(aggregation.cosines[site], 2)}"
    return f"{told}."


def pairs_told(aggregation: Aggregation) -> str:
    """Say how alike the sites' updates are: the mean, the least and the most alike pair."""
    sites = list(aggregation.weights)
    pairs = [
        (value, sites[i], sites[j])
        for i, row in enumerate(aggregation.pairs)
        for j, value in enumerate(row)
        if i < j and isfinite(value)
    ]
    if not pairs:
        return f"Round {aggregation.round}: no two updates to compare."
    (low, a, b), (high, c, d) = min(pairs), max(pairs)
    mean = sum(value for value, _, _ in pairs) / len(pairs)
    return (
        f"Round {aggregation.round}: cosines between the updates of {len(sites)} sites, "
        f"mean {number(mean, 2)}; "
        f"least alike {a} and {b} ({number(low, 2)}), most alike {c} and {d} ({number(high, 2)})."
    )


def lora_told(errors: Sequence[tuple[int, float]]) -> str:
    """Say how large the error is now, and its largest so far."""
    last, now = errors[-1]
    at, most = max(errors, key=lambda entry: entry[1])
    told = f"Relative LoRA aggregation error {percent(now)} in round {last}"
    return f"{told}; largest {percent(most)}, in round {at}." if len(errors) > 1 else f"{told}."


def drift_told(aggregation: Aggregation) -> str:
    """Say which part of the adapter went farthest, and which least."""
    last = [
        (value, name)
        for value, name in zip(aggregation.drift[-1], aggregation.drift_blocks, strict=True)
        if value is not None
    ]
    at = aggregation.drift_rounds[-1]
    if not last:
        return f"Drift of {len(aggregation.drift_blocks)} parts of the adapter; none known after round {at}."
    (low, least), (high, most) = min(last), max(last)
    return (
        f"Drift of {len(aggregation.drift_blocks)} parts of the adapter after round {at}: farthest {most} "
        f"({figures_of(high)}), least {least} ({figures_of(low)})."
    )


def percent(value: float) -> str:
    """Write a share as a percentage with about two figures, however small.

    >>> percent(0.25), percent(0.0123), percent(0.0), percent(0.00000012)
    ('25 %', '1.2 %', '0 %', '1.2e−05 %')
    """
    hundred = 100 * value
    if hundred and abs(hundred) < 0.001:
        return f"{hundred:.1e} %".replace("-", "−")
    text = f"{hundred:.0f}" if abs(hundred) >= 9.95 or not hundred else f"{hundred:.2g}"
    return f"{text} %".replace("-", "−")


def interval_words(interval: tuple[float, float] | None) -> str:
    """Write an interval in brackets after its value; nothing where there is none."""
    return "" if interval is None else f" ({between(interval)})"
