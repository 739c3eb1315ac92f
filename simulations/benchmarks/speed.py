"""Every speed benchmark, one after the other, each in a process of its own.

    python -m simulations.benchmarks.speed --only prefix aggregation --out speed

What each measures, and what it is held against, stands at the head of its module and in docs/speed.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BENCHMARKS: Mapping[str, str] = {
    "prefix": "an epoch with and without the frozen-prefix cache, beside the arithmetic bound",
    "local_step": "what each choice in the local training step is worth",
    "quickstart": "a simulation against the plain Flower, Ray and peft pattern",
    "codecs": "bytes per round of every codec, and what they cost in AUROC",
    "aggregation": "averaging 10, 100 and 1,000 sites against memory bandwidth and Flower's own",
    "round_overhead": "a deployment's round beyond the slowest site's training",
    "scaling": "how cost grows with sites, rounds, studies and parameters",
    "stacked": "many small sites in one batched pass",
}
"""Module -> what it measures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run some benchmarks or all; returns 1 if one missed a limit it states."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*BENCHMARKS], default=[*BENCHMARKS], metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder for a JSON file of each")
    chosen = parser.parse_args(argv)
    missed = []
    for name in chosen.only:
        _say(f"== {name}: {BENCHMARKS[name]}")
        command = [sys.executable, "-m", f"simulations.benchmarks.{name}"]
        if chosen.out is not None:
            chosen.out.mkdir(parents=True, exist_ok=True)
            command += ["--json", str(chosen.out / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            missed.append(name)
        _say("")
    _say(f"missed a limit: {', '.join(missed)}" if missed else f"all limits held: {', '.join(chosen.only)}")
    return bool(missed)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
