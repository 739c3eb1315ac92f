"""This machine: Python and packages, memory, processor, graphics card, environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from client.join.checks.case import Case, Outcome, failure, ok, size, skipped, warning
from client.join.checks.proxy import find_proxy
from client.site import SiteConfig

MODEL_MEMORY = 1_000_000_000
"""Bytes that the worker needs: libraries, base, gradients of the adapter and a batch."""
DECODER_MEMORY = 150_000_000
"""Bytes that one image decoder takes for an ordinary radiograph."""
MOST_DECODERS = 8

_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH")
_SECRETS = "SSLKEYLOGFILE"


def check_python(case: Case) -> Iterator[Outcome]:
    """Python and every package the distribution asks for, in a version it allows."""
    found = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = requires("fedcxr") or []
    except PackageNotFoundError:
        yield warning(
            "packages",
            f"Python {found}; fedcxr runs from a folder and is not installed, so nobody knows what it needs",
            "install the wheel the centre names into an environment of its own",
        )
        return
    from packaging.requirements import InvalidRequirement, Requirement

    wrong = []
    for text in wanted:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(have, prereleases=True):
            wrong.append(f"{needed.name} is {have}, needed {needed.specifier}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield failure(
            "packages",
            f"Python {found}: {'; '.join(wrong[:3])}{more}.",
            "install fedcxr anew: pip install --force-reinstall with the wheel the centre names",
        )
        return
    yield ok("packages", f"Python {found} and every package fedcxr {version('fedcxr')} needs.")


def check_memory(case: Case) -> Iterator[Outcome]:
    """Memory for the worker and its image decoders."""
    free = case.around.memory()
    decoders = min(MOST_DECODERS, len(os.sched_getaffinity(0)))
    needed = MODEL_MEMORY + decoders * DECODER_MEMORY
    told = f"{size(free)} of memory free; the worker and {decoders} image decoders take about {size(needed)}"
    if free < needed:
        yield failure("memory", f"{told}.", "end other programs, or give this machine more memory")
    elif free < 2 * needed:
        yield warning("memory", f"{told}, a larger model more.", "leave room before a larger plan is run")
    else:
        yield ok("memory", f"{told}.")
    shared = Path("/dev/shm")
    if shared.is_dir() and (room := shutil.disk_usage(shared).free) < 64_000_000:
        yield warning(
            "shared memory",
            f"/dev/shm has {size(room)} free.",
            "enlarge it; for a container: --shm-size=256m",
        )


def check_processor(case: Case) -> Iterator[Outcome]:
    """Cores there are against threads asked for."""
    if not isinstance(case.site, SiteConfig):
        return
    cores, threads = len(os.sched_getaffinity(0)), case.site.device.threads
    if threads > cores:
        yield warning(
            "processor",
            f"device.threads = {threads} in site.toml and this machine lends {cores} cores.",
            f"set device.threads = {cores} or 0",
        )
    else:
        yield ok("processor", f"{cores} cores, {threads or 'as many'} threads.")


def check_device(case: Case) -> Iterator[Outcome]:
    """The graphics card, as the driver tells of it: importing PyTorch would take too long."""
    if not isinstance(case.site, SiteConfig):
        yield skipped("device", "site.toml cannot be read.")
        return
    name = case.site.device.name
    cards = _cards()
    if name.startswith("cuda"):
        number = int(name.partition(":")[2] or 0)
        if number >= cards:
            yield failure(
                "device",
                f'site.toml asks for device "{name}" and the driver knows {cards} NVIDIA cards.',
                'set device.name = "auto" or "cpu", or have the driver installed and the card passed through',
            )
            return
        yield ok("device", f"{name}: the driver knows {cards} NVIDIA cards.")
    elif name == "auto":
        yield ok("device", f"auto: {'a GPU is used' if cards else 'no GPU, the processor is used'}.")
    else:
        yield ok("device", "cpu, as site.toml says.")


def check_environment(case: Case) -> Iterator[Outcome]:
    """Variables that lead Flower, Python or TLS somewhere else; the umask."""
    from common.supervise import flower_environment

    environment = case.around.environment
    ours = flower_environment(case.folder.flower_home)
    foreign = [
        name
        for name in sorted(environment)
        if (name.startswith("FLWR_") and ours.get(name) != environment[name])
        or (name in _FOREIGN and environment[name])
    ]
    if _SECRETS in environment:
        yield failure(
            "environment",
            f"{_SECRETS} is set: the keys of every TLS connection would be written to a file.",
            f"unset {_SECRETS}",
        )
    if foreign:
        yield warning(
            "environment",
            f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} set and may lead Flower or "
            "Python to other code, folders or services.",
            f"unset {' '.join(foreign)}",
        )
    elif _SECRETS not in environment:
        yield ok("environment", "no variable leads Flower or Python elsewhere.")
    inward = find_proxy({**environment, **ours}, "127.0.0.1", "http")
    if inward is not None:
        yield failure(
            "environment",
            f"{inward.variable} would take what this site's own processes say to each other on 127.0.0.1.",
            "add 127.0.0.1 and localhost to NO_PROXY",
        )
    mask = _umask()
    if mask is not None and mask & 0o022 != 0o022:
        yield warning(
            "umask",
            f"the umask is {mask:03o}: files written here can be changed by other accounts.",
            "set umask 027 or 077 where the site is started",
        )


def _umask() -> int | None:
    """Read the umask without setting it, which every thread would notice."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    return None if found is None else int(found[1], 8)


def _cards() -> int:
    """Count the NVIDIA cards the driver lends us."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        try:
            told = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=4, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return 0
        return sum(line.startswith("GPU ") for line in told.stdout.splitlines())
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0
