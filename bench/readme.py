"""``python -m bench.readme``: writes the README's tables of measurements from the files in bench/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmser._atomic import atomic_write
from lmser.benchmarks import roofline

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PLOT = "docs/roofline.svg"


def layers() -> str:
    """Networks, layers and the neuron update against PyTorch, the grid in short, and where it comes from."""
    result = _read("cpu.json")
    lines = _table(row for row in result["rows"] if "grid" not in row["workload"])
    where = (
        f"float32, {_machine(result)}; copies run at {result['copy_bandwidth_gbs']:.0f} GB/s read and written. Medians of "
        "calls that take turns, verified against float64 before timing; the peak is the median of rounds of "
        "multiply-adds between them, and arithmetic is counted as the direct sum's, so more than 100 % means that "
        "fewer products were made. `lmser bench --skip settle --skip semi-supervised --skip bfloat16 --json "
        "bench/results/cpu.json` and "
        "`python -m bench.readme` reproduce the tables and the plot."
    )
    return "\n".join(
        [*lines, "", where, "", *_grid(result["rows"]), "", f"![Every workload under the roofline]({PLOT})"]
    )


def elsewhere() -> str:
    """Networks, and the grid of layers, on a processor that starts two multiply-adds of 64 bytes a cycle."""
    file = "cpu_wide.json"
    result = _read(file)
    where = (
        f"{_machine(result)}; copies run at {result['copy_bandwidth_gbs']:.0f} GB/s read and written: "
        f'`lmser bench --only CLmser --only Lmser --only ", grid" --skip bfloat16 --json bench/results/{file}`.'
    )
    lines = _table(row for row in result["rows"] if "grid" not in row["workload"])
    return "\n".join([*lines, "", *_grid(result["rows"]), "", where])


def half() -> str:
    """Networks in bfloat16, where the processor has tiles for it."""
    file = "cpu_bfloat16.json"
    result = _read(file)
    lines = [
        "| workload | fused, ms | ± % | fused in float32, ms | best of PyTorch in bfloat16, ms | ratio to both | memory, MB "
        "| least of PyTorch |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        others = {name: ms for name, ms in row["all_ms"].items() if name.startswith("eager")}
        best = min(others, key=others.__getitem__)
        single, ours = row["all_ms"]["fused, float32"], row["fused_ms"]
        least = min(mb for name, mb in row["all_mb"].items() if name.startswith("eager"))
        lines.append(
            f"| {row['workload']} | {ours:.2f} | {100 * row['spread']:.0f} | {single:.2f} | {others[best]:.2f} ({best}) "
            f"| {single / ours:.2f}, {others[best] / ours:.2f} | {row['peak_mb'] or 0:.0f} | {least:.0f} |"
        )
    where = (
        f"{_machine(result)}: `lmser bench --only bfloat16 --json bench/results/{file}`. A processor may slow its tiles "
        "down to a fraction of their speed when it is short of power; this one was seen to, for minutes."
    )
    return "\n".join([*lines, "", where])


def _table(rows: Iterable[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload | fused, ms | ± % | best other, ms | ratio | % of FMA peak | memory, MB | least other |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['workload']} | {row['fused_ms']:.2f} | {100 * row['spread']:.0f} "
        f"| {row['best_ms']:.2f} ({row['best']}) | {row['ratio']:.2f} | {_peak(row)} "
        f"| {row['peak_mb'] or 0:.0f} | {row['least_other_mb'] or 0:.0f} |"
        for row in rows
    ]
    return lines


def _grid(rows: list[dict[str, Any]]) -> list[str]:
    """Single layers of ordinary sizes by kernel and stride."""
    lines = [
        "| single layers, C 1 to 512, 7 to 128 px, batch 1 to 64 | shapes | geometric mean | lowest | below 0.95 |",
        "|---|---:|---:|---:|---:|",
    ]
    grid = [row for row in rows if "grid" in row["workload"]]
    for what, backward in (("forward", False), ("forward + backward", True)):
        mine = [row for row in grid if ("backward" in row["workload"]) == backward]
        kinds = [f"{kernel}x{kernel}, stride {stride}" for kernel in (1, 3, 5) for stride in (1, 2)]
        for kind in (*kinds, "all"):
            ratios = [row["ratio"] for row in mine if kind == "all" or f" {kind}," in row["workload"]]
            if ratios:
                mean, low = statistics.geometric_mean(ratios), sum(ratio < 0.95 for ratio in ratios)
                lines.append(f"| {kind}, {what} | {len(ratios)} | {mean:.2f} | {min(ratios):.2f} | {low} |")
    return lines


def _solves(file: str) -> list[str]:
    """Settling against the loops people write, on one processor; single updates where they were measured."""
    result = _read(file)
    rows = [row for row in result["rows"] if "settle_step" not in row["workload"]]
    steps = [row for row in result["rows"] if "settle_step" in row["workload"]]
    lines = [
        f"| {result['isa']}: one solve, 10 sweeps of batch 16, FBAN 20 of 250 | fused, ms | ± % | against 004's loop "
        "| against the best other | % of FMA peak |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        paper = row["all_ms"]["paper's loop"] / row["fused_ms"]
        lines.append(
            f"| {row['workload'].removeprefix('settle ')} | {row['fused_ms']:.1f} | {100 * row['spread']:.0f} "
            f"| {paper:.2f} | {row['ratio']:.2f} ({row['best']}) | {_peak(row)} |"
        )
    if steps:
        lines += [
            "",
            f"| {result['isa']}: one update by `settle_step`, channels below-here-above, batch 16 | fused, ms | ± % "
            "| against the best other | % of FMA peak |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['workload'].removeprefix('settle_step ')} | {row['fused_ms']:.1f} | {100 * row['spread']:.0f} "
            f"| {row['ratio']:.2f} ({row['best']}) | {_peak(row)} |"
            for row in steps
        ]
    lines += ["", f"{_machine(result)}: `lmser bench --only settle --json bench/results/{file}`.", ""]
    return lines


def settling() -> str:
    """Settling on the processors it was measured on, its memory, and where that comes from."""
    memory = _read("settle_memory.json")
    lines = [line for file in ("settle_cpu.json", "settle_cpu_avx512.json") for line in _solves(file)]
    where = (
        "004's loop computes every drive at every update, in eager PyTorch; the others compute each drive once a sweep or "
        "go through `torch.compile`, in either memory format. Training is the squared error of all readouts and its "
        "gradient through all sweeps. The inference rows vary from run to run by more "
        "than the spread within one. An update by "
        "`settle_step` has tanh and the change against the state before; the layer above is as large in the first, "
        "half as large each way in the second."
    )
    lines += [
        where,
        "",
        "| peak memory of a training step, MB | fused | bfloat16 trajectory | least other |",
    ]
    lines.append("|---|---:|---:|---:|")
    for network, peaks in memory["peak_mb"].items():
        least = min(value for name, value in peaks.items() if not name.startswith("fused"))
        ours = [peaks[name] for name in ("fused", "fused, bfloat16 trajectory")]
        cells = " | ".join(f"{value:.0f} ({value / least:.2f})" for value in ours)
        lines.append(f"| {network} | {cells} | {least:.0f} |")
    long = memory["long"]
    lines += ["", f"| {long['sweeps']} sweeps of CBAN-CIFAR, a training step | MB | s |", "|---|---:|---:|"]
    names = {
        "bptt": "through the sweeps",
        "checkpointed": "the same, states of every eighth sweep kept (`checkpoint_every=8`)",
        "implicit": '`backward="implicit"`',
    }
    for name, title in names.items():
        lines.append(f"| {title} | {long['peak_mb'][name]:.0f} | {long['seconds'][name]:.2f} |")
    least = min(long["eager_mb"], key=long["eager_mb"].__getitem__)
    lines.append(
        f"| through the sweeps in eager PyTorch ({least}, the least) | {long['eager_mb'][least]:.0f} | |"
    )
    lines += ["", "`python -m bench.settle_memory --json bench/results/settle_memory.json`."]
    return "\n".join(lines)


def inversion() -> str:
    """Learning with few labels against eager PyTorch, its memory, and where that comes from."""
    result, memory = _read("inversion_cpu.json"), _read("inversion_memory.json")
    lines = [
        "| a training step of loss (10) of 003, batch 64 | fused, ms | ± % | best eager, ms | ratio | to "
        "`create_graph` | % of FMA peak | peak memory, MB | of eager's least |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        graph = min(ms for kind, ms in row["all_ms"].items() if kind in ("eager", "eager, channels-last"))
        name = row["workload"].removeprefix("semi-supervised ").partition(" ")[0]
        peaks = memory["peak_mb"][name]
        least = min(value for kind, value in peaks.items() if kind != "fused")
        lines.append(
            f"| {name} | {row['fused_ms']:.1f} | {100 * row['spread']:.0f} | {row['best_ms']:.1f} "
            f"({row['best']}) | {row['ratio']:.2f} | {graph / row['fused_ms']:.2f} | {_peak(row)} "
            f"| {peaks['fused']:.0f} | {peaks['fused'] / least:.2f} |"
        )
    where = (
        "Eager PyTorch differentiates a gradient (`create_graph=True`) of the same network of `torch.nn`'s layers; "
        '"gated" is this library\'s pass of first order in eager operations. Memory is beside the former alone, above '
        "what the process holds between two steps. "
        f"{_machine(result)}: `lmser bench --only semi-supervised --repeats 61 --json bench/results/inversion_cpu.json`, "
        "`python -m bench.inversion_memory --json bench/results/inversion_memory.json`."
    )
    return "\n".join([*lines, "", where])


PARTS = {
    "bench": layers,
    "bench elsewhere": elsewhere,
    "bench half": half,
    "bench settle": settling,
    "bench inversion": inversion,
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _peak(row: dict[str, Any]) -> str:
    return f"{100 * row['gflops'] / row['fma_peak_gflops']:.0f}"


def _machine(result: dict[str, Any]) -> str:
    return (
        f"{result['threads']} threads of {result['processor']} ({result['isa']}), torch {result['torch']}, commit "
        f"`{result['commit']}`"
    )


def main() -> None:
    """Rewrite the parts between the markers, and the plot."""
    roofline.draw(_read("cpu.json"), ROOT / PLOT)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{part()}\n{end}{after}"
    with atomic_write(readme, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
