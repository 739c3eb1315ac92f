"""Making one simulated site, as ``fedcxr-simulate make-site`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from common.errors import ConfigError
from simulations.phantom.cases import FINDINGS, Population
from simulations.phantom.site import check_findings, find_scanner, write_site
from simulations.phantom.spoil import LEAST_SIDE, LEAST_SOUND, spoil_site


def make_site(
    directory: Path,
    name: str,
    studies: int,
    seed: int,
    size: int = 128,
    scanner: str = "reference",
    findings: Sequence[str] | None = None,
    format: str = "png",
    *,
    prevalence: float | None = None,
    label_noise: float = 0.0,
    missing_labels: float = 0.0,
    uncertain: float = 0.0,
    workers: int = 1,
    spoil: bool = False,
) -> Path:
    """Write a site into ``directory`` and return the path of its ``site.toml``.

    ``findings`` are those the site annotates (default: all); ``prevalence`` sets one share for
    every finding. ``spoil`` adds studies with everything that can be wrong with one.

    Raises:
        ConfigError: if an argument is unknown or out of range, or the directory already holds
            something that is not a simulated site.
    """
    if studies < 1:
        raise ConfigError("a site needs at least one study", found=str(studies), fix="--studies 200")
    if not 32 <= size <= 2048:
        raise ConfigError("--size must lie in [32, 2048]", found=str(size), fix="--size 128")
    if seed < 0:
        raise ConfigError("--seed must not be negative", found=str(seed), fix="--seed 0")
    if format not in ("png", "dicom"):
        raise ConfigError(f"format {format!r} is not written", found=format, fix="--format png or dicom")
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("a site's name is letters, digits, - and _", found=repr(name), fix="--name north")
    directory = Path(directory)
    if directory.is_file() or (
        directory.is_dir() and any(directory.iterdir()) and not (directory / "site.toml").is_file()
    ):
        raise ConfigError(
            "the directory is not empty and not a site", found=str(directory), fix="name a new one"
        )
    if spoil and (studies < LEAST_SOUND or size < LEAST_SIDE or findings is not None):
        raise ConfigError(
            f"--spoil needs at least {LEAST_SOUND} studies of {LEAST_SIDE} pixels, and every finding",
            found=f"{studies} studies of {size} pixels" + ("" if findings is None else ", --findings"),
            fix=f"--studies {LEAST_SOUND} --size {LEAST_SIDE}, and leave --findings out",
        )
    owned = check_findings(tuple(findings)) if findings is not None else FINDINGS
    population = Population() if prevalence is None else Population(dict.fromkeys(FINDINGS, prevalence))
    site = write_site(
        directory,
        name=name,
        n=studies,
        seed=seed,
        size=size,
        scanner=find_scanner(scanner),
        population=population,
        owned=owned,
        format=cast(Literal["png", "dicom"], format),
        label_noise=label_noise,
        missing_labels=missing_labels,
        uncertain=uncertain,
        workers=workers,
    )
    return spoil_site(directory, seed=seed, size=size) if spoil else site
