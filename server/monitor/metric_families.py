"""What each metric is called and means; names are stable, docs/monitor-machines.md lists the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One metric: its name as Prometheus stores it, and what it means."""

    name: str
    kind: Literal["gauge", "counter", "info"]
    about: str
    labels: Labels = ()


_RUN, _SITE = ("run",), ("run", "site")

FAMILIES = (
    Family("fedcxr_monitor_info", "info", "Version of the monitor.", ("version",)),
    Family("fedcxr_centre_up", "gauge", "Whether the centre's SuperLink answers; absent without a centre."),
    Family("fedcxr_runs", "gauge", "Runs by state, old ones too.", ("state",)),
    Family("fedcxr_run_info", "info", "What a run is; always 1.", (*_RUN, "title", "method", "backbone")),
    Family("fedcxr_run_state", "gauge", "1 for the state the run is in, else 0.", (*_RUN, "state")),
    Family("fedcxr_run_started_timestamp_seconds", "gauge", "When the run began.", _RUN),
    Family("fedcxr_run_changed_timestamp_seconds", "gauge", "When its newest event happened.", _RUN),
    Family("fedcxr_run_stage_timestamp_seconds", "gauge", "When the stage or round under way began.", _RUN),
    Family(
        "fedcxr_run_deadline_timestamp_seconds",
        "gauge",
        "When what the run waits for is given up; absent while it waits for nothing.",
        _RUN,
    ),
    Family("fedcxr_run_round", "gauge", "The round under way, else the last one committed.", _RUN),
    Family("fedcxr_run_rounds_planned", "gauge", "Rounds the plan asks for.", _RUN),
    Family(
        "fedcxr_run_rounds_total",
        "counter",
        "Rounds that are over: committed or abandoned.",
        (*_RUN, "status"),
    ),
    Family("fedcxr_run_round_seconds", "gauge", "Duration of the newest round that is over.", _RUN),
    Family("fedcxr_run_sites", "gauge", "Sites that enrolled.", _RUN),
    Family("fedcxr_run_waiting_sites", "gauge", "Sites whose answer is still to come.", _RUN),
    Family(
        "fedcxr_run_bytes_total", "counter", "Bytes: up from the sites, down to them.", (*_RUN, "direction")
    ),
    Family(
        "fedcxr_run_warnings_total",
        "counter",
        "Updates rejected, deadlines missed and sites refused.",
        _RUN,
    ),
    Family(
        "fedcxr_run_lora_error",
        "gauge",
        "LoRA aggregation error of the newest round: share of the mean update that the adapter misses.",
        _RUN,
    ),
    Family("fedcxr_run_aggregate_norm", "gauge", "L2 norm of the newest aggregate.", _RUN),
    Family(
        "fedcxr_run_auroc_mean",
        "gauge",
        "Mean over sites of the newest macro AUROC of the federated model, on validation or test studies.",
        (*_RUN, "split"),
    ),
    Family("fedcxr_run_auroc_worst", "gauge", "The same at the worst site.", (*_RUN, "split")),
    Family(
        "fedcxr_site_contact",
        "gauge",
        "1 for how lately the site was heard of, else 0; unknown in a simulation.",
        (*_SITE, "contact"),
    ),
    Family("fedcxr_site_last_heard_timestamp_seconds", "gauge", "When the site was last heard of.", _SITE),
    Family(
        "fedcxr_site_asked_timestamp_seconds",
        "gauge",
        "When the site was asked for what the run waits for; absent once it answered.",
        _SITE,
    ),
    Family("fedcxr_site_studies", "gauge", "Studies the site enrolled with.", (*_SITE, "split")),
    Family("fedcxr_site_set_aside_studies", "gauge", "Studies the site could not use.", _SITE),
    Family(
        "fedcxr_site_updates_total",
        "counter",
        "Rounds the site was asked in, by outcome: returned, missing or rejected.",
        (*_SITE, "outcome"),
    ),
    Family(
        "fedcxr_site_bytes_total", "counter", "Bytes: up from the site, down to it.", (*_SITE, "direction")
    ),
    Family("fedcxr_site_round_seconds", "gauge", "From question to answer, in the newest round.", _SITE),
    Family("fedcxr_site_update_norm", "gauge", "L2 norm of the site's newest update.", _SITE),
    Family("fedcxr_site_cosine", "gauge", "Cosine of the newest update with that round's aggregate.", _SITE),
    Family("fedcxr_site_weight_ratio", "gauge", "The site's share of the newest mean, 0 to 1.", _SITE),
    Family("fedcxr_site_auroc", "gauge", "Newest macro AUROC on the site's validation studies.", _SITE),
    Family(
        "fedcxr_site_finding_auroc",
        "gauge",
        "Newest AUROC of one finding on the site's validation studies.",
        (*_SITE, "finding"),
    ),
    Family(
        "fedcxr_site_auroc_gain",
        "gauge",
        "Macro AUROC on the site's test studies, federated minus local model.",
        _SITE,
    ),
)
"""Every metric there is, in the order in which it is served."""
