"""``python -m bench.inversion_memory [--json FILE]``: peak memory of a semi-supervised training step (003), each
contender in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from lmser._atomic import atomic_write
from lmser.benchmarks import inversion
from lmser.training.memory import PeakMemory

CONTENDERS = ("fused", *inversion.LAYOUTS)


def peak_of(contender: str, network: str) -> int:
    """Bytes of a training step above what the process holds between two of them."""
    command = [sys.executable, "-m", "bench.inversion_memory", "--one", contender, network]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"measuring {contender!r} failed: {done.stderr.strip()}")
    return int(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.inversion_memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        contender, network = options.one
        # Code, threads' scratch and the libraries' own buffers come with the first step and stay: a step needs what
        # comes above them.
        step = inversion.contender(contender, network)
        step()
        peak = PeakMemory(torch.device("cpu"))
        step()
        step()
        print(json.dumps(peak.bytes()))
        return
    found = {}
    for network in inversion.NETWORKS:
        peaks = {name: peak_of(name, network) / 1e6 for name in CONTENDERS}
        found[network] = peaks
        least = min(value for name, value in peaks.items() if name != "fused")
        print(
            network,
            {k: round(v, 1) for k, v in peaks.items()},
            f"fused / least: {peaks['fused'] / least:.2f}",
        )
    if options.json:
        with atomic_write(options.json, "w") as file:
            json.dump(
                {"torch": torch.__version__, "batch": inversion.BATCH, "peak_mb": found}, file, indent=1
            )


if __name__ == "__main__":
    main()
