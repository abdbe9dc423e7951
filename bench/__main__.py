"""``python -m bench [--only TEXT] [--skip TEXT] [--json FILE] [--threads N]``: every workload, contenders
alternating; a table with the ratio to the best eager contender, the spread, and the fraction of the FMA peak measured in
the same run."""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path

import torch

from bench.checkout import commit
from bench.workloads import Workload, workloads
from lmser._atomic import atomic_write
from lmser.contest import contest
from lmser_kernels import _C


def processor() -> str:
    """The processor's model name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(work: Workload) -> dict[str, object]:
    """One row of the table."""
    contenders, wanted = work.build()
    timings = contest(contenders, wanted, tolerance=work.tolerance, repeats=work.repeats, warm_up=2)
    fused = timings["fused"]
    rivals = [t for name, t in timings.items() if name != "fused"]
    best = min(rivals, key=lambda t: t.median)
    return {
        "workload": work.name,
        "fused_ms": fused.median * 1e3,
        "spread": fused.spread,
        "best_eager": best.name,
        "best_eager_ms": best.median * 1e3,
        "ratio": best.median / fused.median,
        "gflops": work.flops / fused.median / 1e9,
        "error": fused.error,
        "all_ms": {name: t.median * 1e3 for name, t in timings.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument(
        "--skip", help="no workloads whose name contains this, or one of these with commas between"
    )
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--isa", help="make the kernels use this instruction set (avx512, avx2, baseline)")
    options = parser.parse_args()
    if options.isa:
        _C.choose_isa(options.isa)
    torch.set_num_threads(options.threads)
    chosen = [
        w
        for w in workloads()
        if options.only in w.name
        and not any(part in w.name for part in (options.skip or "").split(",") if part)
    ]
    if not chosen:
        parser.error(f"no workload is left by --only {options.only!r} and --skip {options.skip!r}")
    rows = []
    print(
        f"{'workload':58} {'fused ms':>9} {'± %':>5} {'eager ms':>9} {'ratio':>6} {'GFLOP/s':>8} {'peak %':>6} {'error':>8}"
    )
    for work in chosen:
        peak = _C.measure_fma_peak(0.2, options.threads)
        row = measure(work)
        peak = max(peak, _C.measure_fma_peak(0.2, options.threads))
        row["fma_peak_gflops"] = peak
        rows.append(row)
        print(
            f"{row['workload']:58} {row['fused_ms']:9.3f} {100 * row['spread']:5.1f} {row['best_eager_ms']:9.3f} "
            f"{row['ratio']:6.2f} {row['gflops']:8.1f} {100 * row['gflops'] / peak:6.0f} {row['error']:8.1e}",
            flush=True,
        )
    layers = [r["ratio"] for r in rows if str(r["workload"]).startswith("layer")]
    if layers:
        mean = math.exp(sum(map(math.log, layers)) / len(layers))
        print(f"single layers: geometric mean {mean:.2f}, lowest {min(layers):.2f}")
    result = {
        "processor": processor(),
        "threads": options.threads,
        "isa": _C.cpu_info()["isa"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "copy_bandwidth_gbs": _C.measure_copy_bandwidth(0.5, options.threads),
        "rows": rows,
    }
    if options.json:
        with atomic_write(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
