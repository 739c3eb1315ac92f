"""How many site workers fit on the machines there are: sized from what one of them was seen to take."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.config import RunConfig, Scalar
from common.errors import ConfigError, FedcxrError, RunError

GPU_CONTEXT = 512 * 1024**2
"""Bytes of GPU memory a process takes beside what torch counts; an estimate, and not a low one."""
_MEASURED = 2
"""Sites a worker is measured with: what the second adds, each further one adds too."""


@dataclass(frozen=True)
class Footprint:
    """What one worker takes that has answered for every site of a run, in bytes."""

    memory: int
    gpu: int = 0
    """0: it has not used one."""
    gpu_whole: int = 0
    """Memory of the GPU it used."""


@dataclass(frozen=True)
class Machine:
    """What one machine offers."""

    cores: int
    gpus: float
    memory: int
    """Bytes free for workers."""


@dataclass(frozen=True)
class Share:
    """What each worker is given, which decides how many there are."""

    cores: int
    gpus: float
    workers: int
    threads: int
    """CPU threads of each worker."""


def share_out(
    machines: Sequence[Machine], footprint: Footprint, sites: int, threads: int = 0, gpus: float = 0.0
) -> Share:
    """Return the smallest share with which no machine holds more workers than its memory and its cores allow.

    There are never more workers than sites. ``threads`` and ``gpus`` are what a person set for each site;
    0: as memory allows.

    >>> share_out([Machine(16, 0.0, 100)], Footprint(memory=20), sites=8)
    Share(cores=3, gpus=0.0, workers=5, threads=3)

    Raises:
        ConfigError: if no machine holds one worker.
    """
    gpus = gpus or _gpu_share(footprint)
    most = [min(_fitting(machine, footprint, threads, gpus), sites) for machine in machines]
    # Ray is told one share for all machines, in cores: the smallest that overfills none. One with fewer
    # cores stays idle, as one must whose memory is too small for any worker.
    overfilled = [m.cores // (count + 1) for m, count in zip(machines, most, strict=True) if _counts(m, gpus)]
    least = max(threads, *(cores + 1 for cores in overfilled)) if overfilled else 1
    here = [(m.cores, m.cores // least) for m in machines if _counts(m, gpus) and m.cores >= least]
    if not here:
        room = max((machine.memory for machine in machines), default=0)
        raise ConfigError(
            "no machine holds one site's worker, or one that does not has the most cores",
            found=f"it takes {_gib(footprint.memory)}, {threads or 1} cores and {gpus:g} GPUs; "
            f"the roomiest machine has {_gib(room)} free",
            fix="lower threads or gpus, take small machines out of the cluster, or use --engine inline",
        )
    # As many workers have room for as much as this.
    cores = min(of_machine // count for of_machine, count in here)
    workers = min(sites, sum(count for _, count in here))
    return Share(cores, gpus, workers, threads or cores)


def _counts(machine: Machine, gpus: float) -> bool:
    """Whether Ray would place a worker there at all."""
    return machine.cores > 0 and machine.gpus + 1e-9 >= gpus


def _fitting(machine: Machine, footprint: Footprint, threads: int, gpus: float) -> int:
    count = min(machine.cores // max(threads, 1), machine.memory // max(footprint.memory, 1))
    return min(count, int(machine.gpus / gpus + 1e-9)) if gpus else count


def _gpu_share(footprint: Footprint) -> float:
    """Return 1 / how many workers one GPU's memory holds, at least 1; 0 where none was used."""
    if not footprint.gpu:
        return 0.0
    return 1 / max(1, footprint.gpu_whole // footprint.gpu)


def size_workers(
    config: RunConfig,
    files: Mapping[str, Path],
    machines: Sequence[Machine],
    threads: int = 0,
    gpus: float = 0.0,
) -> Share:
    """Return what each worker of a run gets; where several could fit, by what one is measured to take.

    Raises:
        ConfigError, RunError: as `share_out` and `measure_worker`.
    """
    most = sum(machine.cores // max(threads, 1) for machine in machines)
    several = most > 1 and len(files) > 1
    unknown = not gpus and any(machine.gpus for machine in machines)
    footprint = measure_worker(config, files) if several or unknown else Footprint(0)
    return share_out(machines, footprint, len(files), threads, gpus)


def measure_worker(config: RunConfig, files: Mapping[str, Path]) -> Footprint:
    """Let one process train a step at the two largest sites that can, and return what it takes with all.

    The process is its own and ends; nothing of it stays but the sites' caches, which a run fills too. A site
    that cannot train is passed over: the run says why.

    Raises:
        RunError: if the process did not live to say.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            seen = pool.submit(_answer_for, config.to_flat(), _by_size(config, files)).result()
        except BrokenProcessPool:
            raise RunError(
                "a worker died while the memory it takes was measured",
                found=f"on a machine with {_gib(psutil.virtual_memory().total)}",
                fix="it may need more memory than there is: lower train.batch_size",
            ) from None
    memory, gpu = (_with_all([s[i] for s in seen], len(files)) for i in (0, 1))
    return Footprint(memory, gpu + GPU_CONTEXT if gpu else 0, seen[0][2])


def _with_all(seen: Sequence[int], sites: int) -> int:
    """Extrapolate bytes after one site and after two to all sites."""
    return seen[0] + (sites - 1) * max(0, seen[-1] - seen[0])


def _by_size(config: RunConfig, files: Mapping[str, Path]) -> list[Path]:
    """Return the sites, the one with the most studies first."""
    from client.data.table import read_studies
    from client.site import load_site

    def studies(file: Path) -> int:
        try:
            return len(read_studies(load_site(file), config.data.findings))
        except FedcxrError:
            return 0

    return sorted(files.values(), key=lambda file: -studies(file))


def _answer_for(flat: Mapping[str, Scalar], files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Train a step at the first sites that can, and return bytes after each; after none, once.

    The bytes are of memory, of the GPU's memory that is used, and of all that it has.
    """
    from client.site import load_site
    from client.worker import ModelPool, SiteWorker
    from common.code import code_digest
    from common.protocol import Instruction

    config = one_step(RunConfig.from_flat(flat))
    short, pool = config.to_flat(), ModelPool()
    seen: list[tuple[int, int, int]] = []
    workers = []  # kept, as a run's worker keeps what it has read of every site
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            site = load_site(file)
            # What a site keeps of its own rounds is none of this.
            data = site.data.model_copy(update={"state": Path(folder) / site.name})
            workers.append(worker := SiteWorker(site.model_copy(update={"data": data}), pool))
            base = worker.base_digest(short)
            plan = config.plan_digest(base, code_digest())
            if not worker.handle(Instruction("local", plan, code_digest(), base), short).code:
                seen.append((_resident(), *_on_gpu()))
            if len(seen) == _MEASURED:
                break
    return seen or [(_resident(), *_on_gpu())]


def one_step(config: RunConfig) -> RunConfig:
    """Return the plan with a single local step in a single round, which takes as much memory as any."""
    train = {"steps": 1, "class_weights": "none"}
    sections: dict[str, dict[str, object]] = {"train": train, "rounds": {"count": 1, "probe": 0}}
    if config.pretrain.rounds:
        sections["pretrain"] = {"rounds": 1, "steps": 1}
    changed = {name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    return config.model_copy(update=changed)


def limit_threads(file: Path, most: int) -> None:
    """Let this process's worker for a site compute with no more threads, whatever its site.toml says."""
    from client.app import worker_for

    worker = worker_for(file)
    own = worker.site.device.threads
    if not own or own > most:
        device = worker.site.device.model_copy(update={"threads": most})
        worker.site = worker.site.model_copy(update={"device": device})


def _resident() -> int:
    """Return the most memory this process has held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _on_gpu() -> tuple[int, int]:
    import torch

    if not torch.cuda.is_initialized():
        return 0, 0
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"
