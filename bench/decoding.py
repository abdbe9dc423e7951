"""``python -m bench.decoding --data DIR [--dataset NAME] [--size N] [--workers N …]``: how fast photographs are decoded.

One line per number of worker processes: images per second, and the shortest training step that they keep fed. The time
to start the processes is not counted. A set of few files is read from the system's cache; a large one, the first time,
from the disk.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from lmser.data import PhotoStream, photo_streams


def rate(stream: PhotoStream, batch: int, workers: int, seconds: float, seed: int = 0) -> float:
    """Images per second of a loader with `workers` processes (0: this one), over at least `seconds`."""
    generator = torch.Generator().manual_seed(seed)
    endless = RandomSampler(stream, replacement=True, num_samples=1 << 40, generator=generator)
    batches = iter(DataLoader(stream, batch, sampler=endless, num_workers=workers))
    # What the workers have fetched ahead is not theirs to deliver once more.
    for _ in range(1 + 2 * workers):
        next(batches)
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches))
    return images / passed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoding", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument(
        "--dataset", default="scenes", help="faces, faces-hq, scenes, or a key of the registry"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--train", type=int, help="number of training images to draw from")
    parser.add_argument("--test", type=int, help="number of test images to leave out")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="per number of workers")
    options = parser.parse_args()
    stream, _ = photo_streams(
        options.data, options.dataset, options.size, train=options.train, test=options.test, crop=options.crop
    )
    torch.set_num_threads(1)
    print(f"{stream.name}, {options.size}x{options.size}, batches of {options.batch}")
    print(f"{'workers':>7} {'images/s':>9} {'ms per batch':>13}")
    for workers in options.workers:
        images = rate(stream, options.batch, workers, options.seconds)
        print(f"{workers:7} {images:9.0f} {1e3 * options.batch / images:13.1f}", flush=True)


if __name__ == "__main__":
    main()
