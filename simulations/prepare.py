"""Lay out the sites of an experiment as folders: each a site.toml a real site could have."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from client.data.dataset import load_site_data
from client.data.table import StudyTable, read_studies
from client.data.unlabelled import Unlabelled
from client.site import SiteConfig, load_site
from common.config import RunConfig
from common.errors import ConfigError, TableError
from common.files import write_atomic
from common.overrides import read_toml
from common.seeds import numpy_generator
from common.threads import cores_here
from simulations.experiment import Experiment, PartitionSpec, PhantomSpec, SiteSpec
from simulations.partition import partition
from simulations.phantom.cases import PREVALENCE, Population
from simulations.phantom.site import write_site
from simulations.phantom.unlabelled import write_unlabelled
from simulations.site_reports import report_columns

_FINDINGS = ("findings_text", "findings")
"""Key of ``[columns]``, and its default, of the field that no redaction but ``indication`` takes away."""


def prepare_sites(experiment: Experiment, folder: Path) -> dict[str, Path]:
    """Write every site's folder and return site -> site.toml, in name order.

    Sites already written for the same experiment are used as they are.

    Raises:
        ConfigError: if a site cannot be made as described.
        TableError, LabelError: if a site's table cannot be used; checked before anything runs.
    """
    identity = experiment.model_dump_json(include={"sites", "partition", "data", "threads", "seed"})
    digest = hashlib.sha256(identity.encode()).hexdigest()
    stamp = folder / "prepared.json"
    told = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if told.get("digest") != digest:
        if experiment.partition is not None:
            names = _deal(experiment, experiment.partition, folder)
        else:
            names = list(experiment.sites)
            for name, spec in experiment.sites.items():
                _write(name, spec, experiment, folder / name)
        told = {"digest": digest, "sites": sorted(names)}
        write_atomic(stamp, json.dumps(told).encode())
    files = {name: folder / name / "site.toml" for name in told["sites"]}
    for file in files.values():
        read_studies(load_site(file), experiment.data.findings)
    return files


def _write(name: str, spec: SiteSpec, experiment: Experiment, folder: Path) -> Path:
    if spec.phantom is not None:
        return _write_phantoms(name, spec.phantom, experiment, folder)
    body = {k: dict(v) if isinstance(v, dict) else v for k, v in (spec.site or {}).items()}
    root = Path(experiment.data.root or ".").expanduser().resolve()
    data = body.setdefault("data", {})
    if data.get("layout", "table") == "table" and "table" not in data:
        raise ConfigError(
            f"sites.{name}.site.data.table is missing",
            fix=f'set [sites.{name}.site.data] table = "FILE.csv", relative to data.root',
        )
    data["root"] = str(root / data.get("root", "."))
    if "table" in data:
        data["table"] = str(root / data["table"])
    needed = Path(data.get("table", data["root"]))
    if not needed.exists():
        raise TableError(
            f"sites.{name}: there is no {needed.name} under data.root",
            found=str(root),
            fix="add --set data.root=FOLDER",
        )
    file = folder / "site.toml"
    write_atomic(file, tomli_w.dumps({"name": name, **body}).encode())
    _for_simulation(file, experiment)
    return file


def _write_phantoms(name: str, spec: PhantomSpec, experiment: Experiment, folder: Path) -> Path:
    population = Population(
        prevalence={**PREVALENCE, **spec.prevalence},
        age_mean=spec.age,
        ap_share=spec.ap,
        severity=spec.severity,
    )
    file = write_site(
        folder,
        name=name,
        n=spec.studies,
        seed=spec.seed,
        size=spec.size,
        scanner=spec.scanner,
        population=population,
        owned=spec.findings,
        format=spec.format,
        label_noise=spec.label_noise,
        missing_labels=spec.missing_labels,
        workers=cores_here(),
    )
    if spec.unlabelled:
        write_unlabelled(
            file,
            n=spec.unlabelled,
            seed=spec.seed,
            size=spec.size,
            scanner=spec.scanner,
            population=population,
            modality=spec.unlabelled_modality,
            workers=cores_here(),
        )
    _for_simulation(file, experiment, spec.split)
    return file


def _for_simulation(file: Path, experiment: Experiment, split: Sequence[float] = ()) -> None:
    """Set what a researcher decides for all sites: threads, and no small-cell suppression."""
    body = read_toml(file)
    body.setdefault("device", {}).setdefault("threads", experiment.threads or cores_here())
    body.setdefault("evaluate", {}).setdefault("min_cell", 1)
    if split:
        body["data"]["split"] = list(split)
    write_atomic(file, tomli_w.dumps(body).encode())


def _deal(experiment: Experiment, spec: PartitionSpec, folder: Path) -> list[str]:
    """Deal one table out to sites, by patient; returns the sites' names."""
    whole = load_site(_write("whole", spec.source, experiment, folder.parent / "whole"))
    if spec.scheme == "column":
        # The column to divide by rides along as the study, so rows stay aligned.
        columns = whole.columns.model_copy(update={"study": spec.column})
        columns.model_fields_set.add("study")
        whole = whole.model_copy(update={"columns": columns})
    table = read_studies(whole, experiment.data.findings, experiment.data.clinical)
    table = table.take(table.code == "")
    dealt = partition(
        table.patient,
        table.labels,
        scheme=spec.scheme,
        sites=spec.sites,
        generator=numpy_generator(experiment.seed, "partition"),
        alpha=spec.dirichlet_alpha,
        column=table.study if spec.scheme == "column" else None,
    )
    width = len(str(spec.sites))
    names = [f"site-{i:0{width}d}" for i in range(1, len(dealt) + 1)]
    for name, rows in zip(names, dealt, strict=True):
        part = {"path": table.path[rows], "patient": table.patient[rows], "view": table.view[rows]}
        reports = report_columns(whole, table.path[rows])
        write_table_site(folder / name, name, whole, {**part, **reports}, table.take(rows))
        _for_simulation(folder / name / "site.toml", experiment)
    return names


def write_table_site(
    folder: Path, name: str, like: SiteConfig, columns: dict[str, Any], studies: StudyTable
) -> Path:
    """Write a table and a site.toml over images that lie where ``like`` has them.

    ``columns`` are named as site.toml's ``[columns]`` names them by default; labels and clinical
    variables are those of ``studies``, row by row.
    """
    frame = pd.DataFrame(columns)
    own = [j for j in range(len(studies.findings)) if not np.isnan(studies.labels[:, j]).all()]
    labels = {studies.findings[j]: f"label {studies.findings[j]}" for j in own}
    for j, column in zip(own, labels.values(), strict=True):
        frame[column] = studies.labels[:, j]
    clinical = {variable: f"clinical {variable}" for variable in studies.variables}
    for j, column in enumerate(clinical.values()):
        frame[column] = studies.clinical[:, j]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "studies.csv", frame.to_csv(index=False).encode())
    data = like.data
    body = {
        "name": name,
        "data": {
            "table": "studies.csv",
            "root": str(data.root),
            "views": list(data.views),
            "burned_in": data.burned_in,
        },
        "columns": {name: name for name in columns},
        "labels": labels,
        "clinical": clinical,
    }
    write_atomic(folder / "site.toml", tomli_w.dumps(body).encode())
    return folder / "site.toml"


def write_pooled_site(files: dict[str, Path], config: RunConfig, folder: Path) -> Path:
    """Write the site that holds every site's studies in every site's own split.

    Only a simulation can: it is the reference a federation is measured against.
    """
    sites = {name: load_site(file) for name, file in files.items()}
    root = _common_root(site.data.root for site in sites.values())
    parts: dict[str, list[Any]] = {"path": [], "patient": [], "view": [], "split": []}
    studies: list[StudyTable] = []
    written: list[dict[str, list[str]]] = []
    pools: dict[str, Unlabelled] = {}
    for name, site in sites.items():
        data = load_site_data(site, config.data, config.seed, config.pretrain)
        if data.pool:
            pools[name] = data.pool
        table = read_studies(site, config.data.findings, config.data.clinical)
        table = replace(table.take(table.code == ""), labels=data.labels)
        place = os.path.relpath(site.data.root.resolve(), root)
        for split, rows in data.split.items():
            parts["path"] += [os.path.normpath(f"{place}/{table.path[i]}") for i in rows]
            parts["patient"] += [f"{name}/{table.patient[i]}" for i in rows]
            parts["view"] += ["pooled"] * len(rows)
            parts["split"] += [split] * len(rows)
            studies.append(table.take(rows))
            written.append(report_columns(site, table.path[rows]))
    for key in sorted({key for part in written for key in part}):
        parts[key] = [
            text
            for part, of in zip(written, studies, strict=True)
            for text in part.get(key, [""] * len(of.path))
        ]
    first = next(iter(sites.values()))
    everywhere = {"root": root, "views": (), "burned_in": "accept"}
    like = first.model_copy(update={"data": first.data.model_copy(update=everywhere)})
    together = replace(
        studies[0],
        labels=np.concatenate([part.labels for part in studies]),
        clinical=np.concatenate([part.clinical for part in studies]),
    )
    file = write_table_site(folder, "pooled", like, parts, together)
    body = read_toml(file)
    body["device"] = {"threads": first.device.threads}
    body["evaluate"] = {"min_cell": 1}
    drawn = config.data.fraction < 1 or config.data.shots > 0
    if pools and (drawn or any(site.unlabelled for site in sites.values())):
        key, usual = ("indication",) * 2 if config.pretrain.redaction == "indication" else _FINDINGS
        said = body["columns"].get(key, usual)
        body["unlabelled"] = _write_pools(pools, said, folder / "unlabelled.csv")
    write_atomic(file, tomli_w.dumps(body).encode())
    return file


def _write_pools(pools: dict[str, Unlabelled], said: str, table: Path) -> dict[str, str]:
    """Write what all sites pretrain on as one table; returns the ``[unlabelled]`` that names it.

    Reports are redacted already; they go to the column ``said``, of a field that the redaction leaves.
    """
    root = _common_root(pool.root for pool in pools.values())
    rows = [
        {
            "path": os.path.relpath(pool.root.resolve() / str(path), root),
            "patient": f"{name}/{i}",
            said: pool.texts[i] if pool.texts else "",
        }
        for name, pool in pools.items()
        for i, path in enumerate(pool.paths)
    ]
    write_atomic(table, pd.DataFrame(rows).to_csv(index=False).encode())
    return {"table": table.name, "root": str(root), "views": "any"}


def _common_root(folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([str(folder.resolve()) for folder in folders]))
