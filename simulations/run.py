"""Run an experiment: sites, pooled reference, federation, report."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from client.site import load_site
from common.config import RunConfig
from common.errors import ConfigError
from common.files import write_atomic
from server.checkpoint import read
from server.ledger import Ledger
from server.plan_model import model_of
from server.report import write_report
from server.report_schema import Report
from server.summary import summarise
from simulations.engine import Engine, run_inline, run_ray
from simulations.experiment import Experiment
from simulations.faults import tamper_with
from simulations.leave_out import check_leave_out, leave_one_out, training_only
from simulations.prepare import prepare_sites, write_pooled_site
from simulations.stacked.limits import check_stack
from simulations.text_probe import in_words, probe_sites
from simulations.view import View

POOLED = "All sites' training studies in one place, the same epochs over all of them; no hospital could."


def run_series(
    experiments: Mapping[str, Experiment],
    folder: Path,
    *,
    engine: Engine,
    resume: bool,
    view: View,
) -> dict[Path, Report]:
    """Run experiments one after the other; several go to subfolders. Returns folder -> report."""
    places = {name: folder / name if len(experiments) > 1 else folder for name in experiments}
    return {
        place: run_experiment(experiments[name], place, engine=engine, resume=resume, view=view)
        for name, place in places.items()
    }


def run_experiment(
    experiment: Experiment,
    folder: Path,
    *,
    engine: Engine,
    resume: bool,
    view: View,
    sites: Mapping[str, Path] | None = None,
) -> Report:
    """Run every arm of an experiment and write its report; returns the report.

    ``sites`` are site -> site.toml where they are laid out already; else they come to ``folder/sites``.

    Raises:
        ConfigError: if the folder holds a run and ``resume`` is off, or an engine cannot do
            what the experiment asks.
        FedcxrError: whatever stops a run; nothing committed is lost.
    """
    quiet_libraries()
    if (folder / "plan.toml").is_file() and not resume:
        raise ConfigError(
            f"{folder} already holds a run", fix="add --resume to go on with it, or use another --out"
        )
    if experiment.faults and engine != "inline":
        raise ConfigError("faults are simulated by the inline engine only", found=engine)
    if experiment.stack and engine != "inline":
        raise ConfigError("stack is for the inline engine", found=engine, fix="set stack = 0")
    folder.mkdir(parents=True, exist_ok=True)
    view.say(f"{experiment.title}: writing to {folder}")
    draft = experiment.run_config(0)
    # What is wrong with the model is said before a single image is drawn.
    if experiment.stack:
        check_stack(draft)
    model_of(draft)
    view.begin(folder)
    files = prepare_sites(experiment, folder / "sites") if sites is None else sites
    config = experiment.run_config(len(files))
    probe = probe_sites(config, files)
    if probe is not None:
        view.say(in_words(probe))
    if "pooled" in experiment.arms:
        _pooled_arm(experiment, config, files, folder, view)
    held_out = "held-out" in experiment.arms
    if held_out:
        check_leave_out(files, config)
    with view.follow(folder, "federated", config.last_round):
        _federate(experiment, engine, config, files, folder)
    if held_out:
        leave_one_out(config, files, folder, partial(_federate, experiment, engine), view)
    _tell_the_report(experiment, files, config, folder, view, probe)
    report = summarise(folder)
    write_report(report, folder)
    return report


def _federate(
    experiment: Experiment, engine: Engine, config: RunConfig, files: Mapping[str, Path], folder: Path
) -> None:
    """Carry out a plan at some sites, in a folder."""
    if engine == "ray":
        run_ray(config, files, folder, experiment.threads, experiment.gpus)
    else:
        run_inline(config, files, folder, tamper_with(experiment.faults), experiment.stack)


def _pooled_arm(
    experiment: Experiment,
    config: RunConfig,
    files: Mapping[str, Path],
    folder: Path,
    view: View,
) -> None:
    """Train on all sites' studies at once, as a federation of one, and leave its adapter in arms/."""
    adapter = folder / "arms" / "pooled.safetensors"
    if adapter.is_file():
        return
    place = folder / "pooled"
    site = place / "site" / "site.toml"
    if not site.is_file():
        write_pooled_site(dict(files), config, site.parent)
    # The sites have drawn already; what they drew is pooled.
    drawn = config.data.model_copy(update={"fraction": 1.0, "shots": 0})
    alone = training_only(config, 1).model_copy(update={"data": drawn})
    view.say("pooled reference: training on all sites' studies in one place")
    with view.follow(place, "pooled", config.last_round):
        run_inline(alone, {"pooled": site}, place)
    ledger = Ledger(place / "ledger.sqlite")
    chosen, plan = ledger.get("released")["round"], ledger.get("plan_digest")
    steps = sum(record["steps"].get("pooled", 0) for record in ledger.rounds())
    ledger.close()
    facts = {"description": POOLED, "local_steps": {"pooled": steps}}
    write_atomic(adapter.with_suffix(".json"), json.dumps(facts).encode())
    write_atomic(adapter, read(place / "checkpoints", chosen, plan).state.to_bytes())


def _tell_the_report(
    experiment: Experiment,
    files: Mapping[str, Path],
    config: RunConfig,
    folder: Path,
    view: View,
    probe: Mapping[str, Any] | None,
) -> None:
    """Leave in the ledger what only a simulation knows about its sites."""
    thumbnail = None
    if experiment.thumbnail_baseline:
        from simulations.thumbnail import thumbnail_baseline

        view.say("fitting logistic regression to 32 x 32 thumbnails, as a floor")
        results = thumbnail_baseline(dict(files), config)
        thumbnail = {s: {f: r.model_dump() for f, r in of.items()} for s, of in results.items()}
    told = {
        "title": experiment.title,
        "notes": _notes(experiment),
        "images": _image_bytes(files),
        "thumbnail": thumbnail,
        "text_probe": probe,
    }
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.put("report", told)
    ledger.close()


def _image_bytes(files: Mapping[str, Path]) -> int:
    """Bytes of all image files the sites' tables name."""
    from client.data.table import read_studies

    total = 0
    for file in files.values():
        site = load_site(file)
        table = read_studies(site, (), ())
        for path in table.path[table.code == ""]:
            image = site.data.root / str(path)
            total += image.stat().st_size if image.is_file() else 0
    return total


def _notes(experiment: Experiment) -> list[str]:
    notes = [experiment.description] if experiment.description else []
    if any(spec.phantom for spec in experiment.sites.values()):
        notes.append(
            "Procedural phantoms, not patients: this says how the methods compare on this task, "
            "not how a model performs in a hospital."
        )
    notes += [f"Fault on purpose: {f.site} sends {f.kind}." for f in experiment.faults]
    return notes


def quiet_libraries() -> None:
    """Keep other libraries' warnings and logs off the terminal."""
    warnings.filterwarnings("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("flwr", "ray", "timm", "peft", "transformers", "PIL", "pydicom", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
