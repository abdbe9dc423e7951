"""`python -m lmser_kernels.doctor`: what is installed, which paths run here, and the measured peaks.

With ``--device cuda`` about the GPU too: what it is, what its data sheet says, and with ``--measure`` its rates of
copies and matrix products, measured for a second or two.

Answers in one screen why a call takes the path that it takes. Exit status 0 whether or not the compiled
library is there: a platform without it is supported, and the first line of the report says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmser_kernels import _library, chips, dispatch
from lmser_kernels.settle import persistent

OPERATIONS = (
    "conv2d_add_act",
    "conv_transpose2d_add_act",
    "tied_conv2d",
    "add_act",
    "max_pool2d_act",
    "max_unpool2d",
    "reflect",
    "settle_step",
    "settle",
)


def examine(
    seconds: float = 0.2, device: torch.device | None = None, *, measure: bool = False
) -> dict[str, Any]:
    """The report as plain data; with the library loaded, each peak is measured for `seconds`.

    device: a CUDA device to report on; by default torch's current one, where there is one
    measure: whether its rates are measured too, each for `seconds`
    """
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
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
    if _library.available:
        report["triton"] = {"loaded": _library.triton_error is None, "reason": _library.triton_error}
    if device is not None and device.type == "cuda":
        report["gpu"] = _gpu(device, seconds, measure)
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


def _gpu(device: torch.device, seconds: float, measure: bool) -> dict[str, Any]:
    """Of one CUDA device: facts, the data sheet's rates where its kind is known, measured rates where asked for."""
    report = chips.facts(device)
    report["device"] = str(device)
    kind = chips.chip_of(device)
    if kind is not None:
        report["data_sheet"] = {"tflops": dict(kind.tflops), "copy_gbs": kind.gbs}
    if _library.cuda_operators:
        report["persistent_settle"] = persistent.unusable(device.index or 0)
    if measure:
        report["measured"] = chips.measure(device, seconds)
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
    triton = report.get("triton")
    if triton is not None and not triton["loaded"]:
        lines.append(f"Triton kernels     none: {triton['reason']}")
    lines += _gpu_lines(report["gpu"]) if "gpu" in report else []
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


def _gpu_lines(gpu: Mapping[str, Any]) -> list[str]:
    driver = gpu["driver"] or "unknown"
    lines = [
        f"GPU                {gpu['name']} ({gpu['device']}), capability {gpu['capability']}, "
        f"{gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']} GiB, driver {driver}"
    ]
    sheet = gpu.get("data_sheet")
    if sheet is None:
        lines.append("GPU data sheet     none in the table of lmser_kernels.chips")
    else:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in sheet["tflops"].items())
        lines.append(f"GPU data sheet     {rates} TFLOP/s, copy {sheet['copy_gbs']:g} GB/s")
    if "persistent_settle" in gpu:
        lines.append(f"settle in CUDA C++ {gpu['persistent_settle'] or 'runs here'}")
    measured = dict(gpu.get("measured", {}))
    if measured:
        copy = measured.pop("copy_gbs")
        rates = ", ".join(f"{n.removesuffix('_gflops')} {rate / 1e3:.1f}" for n, rate in measured.items())
        lines.append(f"GPU measured now   {rates} TFLOP/s, copy {copy:.0f} GB/s")
    return lines


def _device(name: str) -> torch.device:
    """The CUDA device called so; ValueError in one sentence where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: {name!r} is not a device; cpu, cuda or cuda:1 are") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: {name!r} is not supported, cpu and cuda are")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: {name!r} is not there: {chips.why_no(device)}")
    return device


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmser_kernels.doctor", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="how long each peak is measured (default 0.2)"
    )
    parser.add_argument(
        "--device", help="cpu, or a GPU to report on (default: the current one, if there is one)"
    )
    parser.add_argument("--measure", action="store_true", help="measure the GPU's rates too")
    options = parser.parse_args(argv)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive; got {options.seconds}")
    try:
        device = None if options.device is None else _device(options.device)
    except ValueError as error:
        parser.error(str(error))
    if options.measure and not (device.type == "cuda" if device is not None else torch.cuda.is_available()):
        parser.error(f"--measure: expected a GPU to measure: {chips.why_no(torch.device('cuda'))}")
    report = examine(options.seconds, device, measure=options.measure)
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
