"""Peak memory of one training step, taken in a process of its own so that nothing else can be counted with
it.

``python -m lmser.experiments.step_memory CONTENDER BATCH SIZE THREADS DEVICE`` prints one JSON line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lmser.baselines import EagerCLmser
from lmser.experiments.image_reconstruction import CHANNELS, STRIDES
from lmser.models import CLmser
from lmser.training.memory import PeakMemory

__all__ = ["CONTENDERS", "contender", "peak_of_step", "training_step"]

CONTENDERS = ("fused", "eager", "eager, channels-last")


def contender(name: str, images: Tensor) -> tuple[CLmser, Tensor]:
    """The CLmser of 001 Table 2 as `name` runs it, on the device of `images`, and the images in its layout.

    All contenders built under one seed have the same weights. ValueError listing the names there are.
    """
    if name not in CONTENDERS:
        raise ValueError(f"there is no contender {name!r}; there are {', '.join(CONTENDERS)}")
    kind = CLmser if name == "fused" else EagerCLmser
    model = kind(3, CHANNELS, STRIDES).to(images.device)
    if name == "eager, channels-last":
        channels_last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return channels_last, images.to(memory_format=torch.channels_last)
    return model, images


def training_step(model: CLmser) -> Callable[[Tensor], None]:
    """Forward, backward and an Adam update for a batch of images; the call returns when the device is
    done."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step(images: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(images).backward()
        optimizer.step()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)

    return step


def peak_of_step(name: str, batch: int, size: int, device: str) -> int | None:
    """Bytes that a contender's training step needs at its peak above weights, optimiser state and images.

    Measured in a fresh process by `lmser.training.memory.PeakMemory`: on the CPU the most resident memory of
    the whole process, scratch of every library included. None where the system does not tell (it is not
    Linux). Raises RuntimeError with the process's own message if it fails.
    """
    command = [
        sys.executable,
        "-m",
        __name__,
        name,
        str(batch),
        str(size),
        str(torch.get_num_threads()),
        device,
    ]
    # "-m" looks in the working directory first: the same copy of the package as this process's.
    home = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=home)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name!r} failed: {done.stderr.strip()}")
    peak: int | None = json.loads(done.stdout)
    return peak


def _main(name: str, batch: str, size: str, threads: str, device: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model, images = contender(name, torch.rand(int(batch), 3, int(size), int(size), device=device) * 2 - 1)
    step = training_step(model)
    step(images[:1])  # the optimiser's state and the libraries' code are then in place
    peak = PeakMemory(images.device)
    step(images)
    step(images)
    print(json.dumps(peak.bytes()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
