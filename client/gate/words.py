"""The policy and an approval in plain sentences, for the person who signs."""

from __future__ import annotations

from collections.abc import Sequence

from client.gate.policy import Policy

_STAGES = {
    "enrol": "say how many studies it has",
    "pretrain": "pretrain the shared adapter without labels",
    "train": "train the shared adapter",
    "local": "train a model of its own",
    "evaluate": "measure models on its own studies",
    "personalise": "make the released adapter its own, which stays here",
    "calibrate": "sum up its validation studies, to calibrate a model together",
}
_GROUPS = {
    "set-aside": "how many studies could not be used, by reason",
    "training": "loss, seconds and validation score of a round",
    "findings": "results finding by finding, with every round and at the end",
    "histograms": "between which scores how many studies have a finding, and how many have not",
}
_MEANS = {"weighted": "mean", "trimmed": "trimmed mean", "median": "median"}
_OWN_MODEL = "the model this site trains for itself, to the centre and the other sites, if a plan asks for it"

_SUMS = (
    "sums over the validation studies of a finding, asked for a few times where a plan calibrates its model"
)


def policy_sentences(policy: Policy) -> list[str]:
    """Say what a policy lets a federation ask."""
    asked, training, sites = policy.asked, policy.training, policy.federation.min_sites
    weights = "" if training.own_weights else ", from weights that come with the software only"
    others = (
        "also if no other site takes part",
        "together with at least 1 other site",
        f"together with at least {sites - 1} other sites",
    )[min(sites, 3) - 1]
    return [
        f"This site may be asked to {listed([_STAGES[stage] for stage in asked.stages])}.",
        f"Findings: {', '.join(asked.findings) or 'those that site.toml names'}. Clinical variables "
        f"{'may' if asked.clinical else 'may not'} be used. Images: up to {asked.max_image_size} pixels.",
        f"Training: by {listed(training.methods, 'or')}{weights}; rank up to {training.max_rank}; a round "
        f"of up to {training.max_epochs} epochs or {training.max_steps} steps of {training.max_batch_size} "
        f"studies; up to {policy.federation.max_rounds} rounds, {others}; the sites' changes become one by "
        f"their {listed([_MEANS[mean] for mean in policy.federation.means], 'or')}.",
    ]


def leaving_sentences(policy: Policy) -> list[str]:
    """Say what a policy lets leave."""
    answers, training = policy.answers, policy.training
    told = [_GROUPS[group] for group in answers.metrics]
    return [
        "numbers of studies and patients; which findings are annotated and on how many studies",
        f"per round, the change of the adapter: from at least {training.min_studies} training studies, as "
        f"{listed(answers.codecs, 'or')}, of length up to {answers.max_update_norm:g}",
        *([_OWN_MODEL] if answers.local_adapter else []),
        *([_SUMS] if "calibrate" in policy.asked.stages else []),
        f"mean results of a model, without findings that fewer than {answers.min_cell} studies have, or lack",
        *told,
        f"up to {answers.max_bytes / 1e6:g} MB an answer, {answers.max_run_bytes / 1e6:g} MB a run",
    ]


def staying_sentences(policy: Policy) -> list[str]:
    """Say what no answer can hold, whatever a plan asks."""
    networks = [] if policy.answers.local_adapter else ["the model this site trains for itself"]
    networks += [] if "full" in policy.training.methods else ["the base", "the whole network"]
    return [
        "images, reports, table cells, file names or anything that tells patients apart",
        *([listed(networks, "or")] if networks else []),
        "scores or labels of single studies",
        "error messages, paths or log lines: only the code of what went wrong",
    ]


def listed(names: Sequence[str], joint: str = "and") -> str:
    """Join names for a sentence.

    >>> listed(["enrol", "train", "local"]), listed(["fp32"], "or")
    ('enrol, train and local', 'fp32')
    """
    return f" {joint} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
