"""``python -m bench.settle_memory [--json FILE]``: peak memory of a training step of settling, each contender in a
process of its own, and of 50 sweeps: the gradient through them with all states kept, with those between every eighth
computed again, and the implicit one, beside the loop in eager PyTorch that takes least."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch

from lmser._atomic import atomic_write
from lmser.benchmarks import settling
from lmser.benchmarks.settle_peers import Net, loop
from lmser.contest import Contender, contest
from lmser.training.memory import PeakMemory

LONG = 50  # sweeps
FORMATS = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
CONTENDERS = (
    "fused",
    "fused, bfloat16 trajectory",
    *(title + suffix for title in settling.SWEEPS for suffix in FORMATS),
)


def _run(contender: str, network: str, sweeps: int | None) -> PeakMemory:
    title, comma, rest = contender.partition(", ")
    few = 4  # sweeps
    net = settling.network(network, sweeps)
    if title in ("fused", "implicit"):
        how = "implicit" if title == "implicit" else "bptt"
        dtype = torch.bfloat16 if rest.startswith("bfloat16") else None
        every = math.ceil(math.sqrt(net.max_steps)) if rest == "checkpointed" else None
        if every:
            few = every + 1

        def run(net: Net) -> tuple[list[torch.Tensor], torch.Tensor]:
            return settling.fused(net, how, dtype, every)

        net = net.to(torch.float32, torch.channels_last)
    else:
        sweep = settling.SWEEPS[title]

        def run(net: Net) -> tuple[list[torch.Tensor], torch.Tensor]:
            return loop(sweep, net)

        net = net.to(torch.float32, FORMATS[comma + rest])
    # Code and the libraries' own buffers are in place before anything is counted.
    settling.call(run, settling.network(network, few).to(torch.float32, torch.channels_last), True)()
    step = settling.call(run, net, True)
    peak = PeakMemory(torch.device("cpu"))
    step()
    step()
    return peak


def peak_of(contender: str, network: str, sweeps: int | None = None) -> int:
    """Bytes of a training step above weights, states and what one sweep leaves behind."""
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "bench.settle_memory"]
    command += ["--one", contender, network, str(sweeps or 0)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"measuring {contender!r} failed: {done.stderr.strip()}")
    return int(json.loads(done.stdout))


GRADIENTS = {"bptt": "fused", "checkpointed": "fused, checkpointed", "implicit": "implicit"}


def long_times() -> dict[str, float]:
    """Seconds of the three gradients at `LONG` sweeps, alternating; each is verified against its own float64 result."""
    found = []
    for name in GRADIENTS:
        how = "implicit" if name == "implicit" else "bptt"
        every = math.ceil(math.sqrt(LONG)) if name == "checkpointed" else None

        def run(
            net: Net, how: str = how, every: int | None = every
        ) -> tuple[list[torch.Tensor], torch.Tensor]:
            return settling.fused(net, how, checkpoint_every=every)

        net = settling.network("CBAN-CIFAR", LONG)
        wanted = settling.call(run, net.to(torch.float64, torch.channels_last), True)()
        found.append(
            Contender(
                name, settling.call(run, net.to(torch.float32, torch.channels_last), True), wanted=wanted
            )
        )
    timings = contest(found, [], tolerance=1e-3, repeats=5)
    return {name: timing.median for name, timing in timings.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.settle_memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        contender, network, sweeps = options.one
        print(json.dumps(_run(contender, network, int(sweeps) or None).bytes()))
        return
    result: dict[str, object] = {"torch": torch.__version__, "peak_mb": {}}
    for network in settling.NETWORKS:
        peaks = {name: peak_of(name, network) / 1e6 for name in CONTENDERS}
        result["peak_mb"][network] = peaks  # type: ignore[index]
        lowest = min(value for name, value in peaks.items() if not name.startswith("fused"))
        print(
            network,
            {k: round(v, 1) for k, v in peaks.items()},
            ", ".join(
                f"{name} / least other: {peaks[name] / lowest:.2f}"
                for name in CONTENDERS
                if name.startswith("fused")
            ),
        )
    peaks = {name: peak_of(title, "CBAN-CIFAR", LONG) / 1e6 for name, title in GRADIENTS.items()}
    eager = {name: peak_of(name, "CBAN-CIFAR", LONG) / 1e6 for name in CONTENDERS if "fused" not in name}
    least = min(eager, key=eager.__getitem__)
    times = long_times()
    result["long"] = {"peak_mb": peaks, "seconds": times, "sweeps": LONG, "eager_mb": eager}
    for name in GRADIENTS:
        print(
            f"{LONG} sweeps, {name}: {peaks[name]:.1f} MB (1/{peaks['bptt'] / peaks[name]:.1f} of bptt's, "
            f"1/{eager[least] / peaks[name]:.1f} of {least}'s), {times[name]:.2f} s ({times[name] / times['bptt']:.2f})"
        )
    if options.json:
        with atomic_write(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
