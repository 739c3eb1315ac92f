"""Indexing a site against a bare Pillow loop that only decodes and resizes the same PNGs.

    python -m simulations.benchmarks.indexing --studies 2000 --size 1024

Both run as commands of their own, start-up included, on the same warm files, in turns. The loop
runs in two processes; indexing takes as many as the machine has cores.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from client.data.folder import INDEX_SIZE
from simulations.make_site import make_site

BARE = """
import sys
from PIL import Image
for path in sys.stdin.read().split("\\n"):
    Image.open(path).convert("L").resize(({side}, {side}), Image.Resampling.BILINEAR).tobytes()
"""


def bare_loop(paths: Sequence[str], processes: int = 2) -> float:
    """Decode and resize the files in so many processes; returns seconds."""
    begun = time.monotonic()
    started = []
    for k in range(processes):
        command = [sys.executable, "-c", BARE.format(side=INDEX_SIZE)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        assert child.stdin is not None  # noqa: S101
        child.stdin.write("\n".join(paths[k::processes]))
        child.stdin.close()
        started.append(child)
    if any(child.wait() for child in started):
        raise RuntimeError("the bare loop failed")
    return time.monotonic() - begun


def index(site: Path) -> float:
    """Run ``fedcxr-site index``; returns seconds."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "client.cli", "index", str(site)], check=True, capture_output=True)
    return time.monotonic() - begun


def enlarge(path: str, size: int) -> None:
    """Bring a phantom to the size of a real radiograph's PNG, with a detector's noise."""
    picture = Image.open(path).resize((size, size), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(zlib.crc32(path.encode())).normal(0, 2, (size, size))
    noisy = np.clip(np.asarray(picture, dtype=np.float32) + noise, 0, 255)
    Image.fromarray(noisy.astype(np.uint8)).save(path)


def paths_of(site: Path) -> list[str]:
    """Return the images a site's table names."""
    with (site.parent / "studies.csv").open(newline="", encoding="utf-8-sig") as table:
        return [str(site.parent / row["path"]) for row in csv.DictReader(table)]


def main() -> None:
    """Print the ratios of each turn, their median and their range."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--size", type=int, default=1024, help="side of the PNGs in pixels")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the site here, or use the one that is here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        site = (options.folder or Path(temporary)) / "site" / "site.toml"
        if not site.is_file():
            make_site(site.parent, "bench", options.studies, 0, min(options.size, 256), workers=2)
            if options.size > 256:
                with ProcessPoolExecutor(2) as pool:
                    list(pool.map(enlarge, paths_of(site), repeat(options.size), chunksize=50))
        paths = paths_of(site)
        bare_loop(paths)
        first, second = [], []
        for turn in range(options.turns):
            for left in ("cache", "state"):
                shutil.rmtree(site.parent / left, ignore_errors=True)
            bare, new, again = bare_loop(paths), index(site), index(site)
            first.append(new / bare)
            second.append(again / new)
            sys.stdout.write(
                f"turn {turn + 1}: index / bare loop {first[-1]:.2f}, second / first {second[-1]:.3f}\n"
            )
    for name, ratios in (("index / bare loop", first), ("second run / first run", second)):
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        sys.stdout.write(f"{name}: median {statistics.median(ratios):.3f} ({spread})\n")


if __name__ == "__main__":
    main()
