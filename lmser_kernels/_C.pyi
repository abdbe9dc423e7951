"""What the compiled extension offers besides the operators `torch.ops.lmser.*`, which loading it registers."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_info() -> dict[str, Any]: ...
def measure_fma_peak(seconds: float, threads: int) -> float: ...
def measure_copy_bandwidth(seconds: float, threads: int) -> float: ...
def plan(
    op: str,
    dtype: str,
    shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    pool_or_upsample: Sequence[int],
    output_size: Sequence[int],
    channels_last: bool,
    threads: int,
) -> dict[str, Any]: ...
