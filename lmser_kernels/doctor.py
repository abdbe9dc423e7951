"""`python -m lmser_kernels.doctor`: what is installed, which paths run here, and the measured peaks.

Answers in one screen why a call takes the path that it takes. Exit status 0 whether or not the compiled
library is there: a platform without it is supported, and the first line of the report says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from lmser_kernels import _library, dispatch

OPERATIONS = (
    "conv2d_add_act",
    "conv_transpose2d_add_act",
    "tied_conv2d",
    "add_act",
    "max_pool2d_act",
    "max_unpool2d",
    "settle_step",
    "settle",
)


def examine(seconds: float = 0.2) -> dict[str, Any]:
    """The report as plain data; with the library loaded, each peak is measured for `seconds`."""
    report: dict[str, Any] = {
        "library": {"loaded": _library.available, "reason": _library.error},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda_of_torch": torch.version.cuda,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "threads": torch.get_num_threads(),
        "paths": {name: _paths(name) for name in OPERATIONS},
    }
    library = _library.module
    if library is not None:
        threads = torch.get_num_threads()
        report["library"]["file"] = library.__file__
        report["build"] = dict(library.build_info())
        report["cpu"] = dict(library.cpu_info())
        report["measured"] = {
            "fma_peak_gflops": {str(n): library.measure_fma_peak(seconds, n) for n in sorted({1, threads})},
            "copy_bandwidth_gbs": {
                str(n): library.measure_copy_bandwidth(seconds, n) for n in sorted({1, threads})
            },
        }
    return report


def _paths(operation: str) -> dict[str, list[str]]:
    """Device → implementations that run there, the one that "auto" takes first."""
    paths = {}
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        probe = torch.empty(0, device=device)
        found = []
        for impl in dispatch.IMPLEMENTATIONS[1:]:
            try:
                dispatch.chosen(operation, impl, probe)
            except RuntimeError:
                continue
            found.append(impl)
        paths[device] = found
    return paths


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    library = report["library"]
    loaded = f"loaded, {library['file']}" if library["loaded"] else f"not loaded: {library['reason']}"
    lines = [f"compiled library   {loaded}"]
    if not library["loaded"]:
        lines.append('                   every operation runs through impl="reference" (eager PyTorch)')
    versions = report["versions"]
    cuda = versions["cuda_of_torch"] or "none"
    lines.append(f"python             {versions['python']} on {versions['platform']}")
    lines.append(f"torch              {versions['torch']} (CUDA {cuda}), {report['threads']} threads")
    for title in ("build", "cpu"):
        for key, value in report.get(title, {}).items():
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{title + ' ' + key.replace('_', ' '):<18} {shown}")
    measured = report.get("measured")
    if measured:
        for name, unit, key in (
            ("FMA peak", "GFLOP/s", "fma_peak_gflops"),
            ("copy", "GB/s", "copy_bandwidth_gbs"),
        ):
            each = ", ".join(f"{value:.1f} {unit} on {n}" for n, value in measured[key].items())
            lines.append(f"{name:<18} {each} thread(s), float32, measured now")
    lines.append('paths, the one of impl="auto" first')
    for operation, devices in report["paths"].items():
        each = "; ".join(f"{device}: {', '.join(paths)}" for device, paths in devices.items())
        lines.append(f"  {operation:<25} {each}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmser_kernels.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="how long each peak is measured (default 0.2)"
    )
    options = parser.parse_args(argv)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive; got {options.seconds}")
    report = examine(options.seconds)
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
