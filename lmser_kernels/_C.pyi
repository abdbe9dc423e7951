"""What the compiled extension offers; loading it also registers the operators `torch.ops.lmser.*`."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_info() -> dict[str, Any]: ...
def choose_isa(name: str) -> str: ...
def measure_fma_peak(seconds: float, threads: int) -> float: ...
def measure_copy_bandwidth(seconds: float, threads: int) -> float: ...
def plan(
    op: str,
    dtype: str,
    shape: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool: Sequence[int],
    output_size: Sequence[int],
    channels_last: bool,
    threads: int,
) -> dict[str, Any]: ...
