"""Random choices that come out the same on every machine and in every release.

The streams of `numpy.random.Generator` and of torch's generators may change with a release; NumPy promises
only those of its bit generators and of `SeedSequence` (NEP 19). Everything here is built on their raw 64-bit
words.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["check_seed", "order", "words"]


def check_seed(function: str, seed: int) -> int:
    """`seed` itself, or a TypeError or ValueError that names `function`."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{function}: seed must be an int, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"{function}: seed must not be negative, got {seed}")
    return seed


def words(count: int, seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """`count` uniform 64-bit words, the first of one endless stream per `seed` and `purpose`."""
    source = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return np.asarray(np.random.PCG64(source).random_raw(count), dtype=np.uint64)


def order(count: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """A random permutation of `range(count)`; its first n entries are the seeded choice of n, nested in n."""
    return np.argsort(words(count, seed, purpose), kind="stable").astype(np.int64)
