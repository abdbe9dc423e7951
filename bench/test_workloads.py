"""The workloads of `lmser bench` for pytest-benchmark: ``pytest bench --benchmark-only``, ``--benchmark-compare`` between
commits.

Each test verifies every contender against float64, times them in alternation, records the ratio, and then lets
pytest-benchmark time the fused one.
"""

from __future__ import annotations

from typing import Any

import pytest

from lmser.benchmarks.measure import TURN_SECONDS
from lmser.benchmarks.workloads import Workload, workloads
from lmser.contest import contest


@pytest.mark.parametrize("work", workloads(), ids=lambda w: w.name)
def test_workload(work: Workload, benchmark: Any) -> None:
    contenders, wanted = work.build()
    timings = contest(contenders, wanted, tolerance=work.tolerance, repeats=5, turn_seconds=TURN_SECONDS)
    benchmark.extra_info["medians_ms"] = {name: t.median * 1e3 for name, t in timings.items()}
    rival = min(t.median for name, t in timings.items() if name != "fused")
    benchmark.extra_info["ratio"] = rival / timings["fused"].median
    benchmark.extra_info["error"] = timings["fused"].error
    fused = next(c for c in contenders if c.name == "fused")
    benchmark(fused.step or fused.run)
