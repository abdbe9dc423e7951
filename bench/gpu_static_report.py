"""The static survey as a table to read: one line per kernel configuration, its binaries side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MATRIX = ("HGMMA", "HMMA", "DMMA", "UTCMMA")


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report."""
    archs = sorted({row["arch"] for row in result["kernels"]})
    wrong = len(result["problems"]) + len(result["without_kernel"])
    lines = [
        "# What the GPU kernels compile to",
        "",
        f"`{result['command']}`: no GPU was at hand; at commit `{result['commit']}` Triton "
        f"{result['triton']} compiled what the workloads below "
        f"launch, for {', '.join(f'sm_{a}' for a in archs)}. {len(result['kernels'])} binaries were read: "
        + (f"**{wrong} problems**, listed at the end." if wrong else "no spills, all within shared memory, ")
        + ("" if wrong else "matrix instructions wherever dtype and precision mean them."),
        "",
        "## What the workloads cost at least",
        "",
        "Multiply-adds of the definition (two each) and every argument and result moved once, operator by operator, at "
        "an H200's 4.3 TB/s and 790 (bf16, fp16), 395 (tf32), 132 (3xtf32), 67 (float32, float64) TFLOP/s: predicted, "
        "not measured.",
        "",
        "| workload | kind | kernels launched | planned for cuDNN | GFLOP | MB | at least, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for b in result["bounds"]:
        costs = f"{b['gflop']:.3g} | {b['megabytes']:.4g} | {b['ms']:.3g}"
        lines.append(f"| {b['workload']} | {b['kind']} | {b['launches']} | {b['by_cudnn']} | {costs} |")
    lines += ["", "## Kernels", "", *_kernels(result["kernels"], archs)]
    if result["cuda"]:
        lines += ["", "## CUDA sources (nvcc)", "", *_cuda(result["cuda"])]
    if wrong:
        lines += ["", "## Problems", ""]
        lines += [f"- {line}" for line in result["problems"]]
        lines += [f"- {name} has no Triton kernel" for name in result["without_kernel"]]
    return "\n".join(lines) + "\n"


def _kernels(rows: Sequence[Mapping[str, Any]], archs: Sequence[int]) -> list[str]:
    """A cell of an architecture: registers, KB of shared memory, matrix instructions, asynchronous copies."""
    table: dict[tuple[str, ...], dict[int, list[str]]] = {}
    serves: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        key: tuple[str, ...] = (
            row["kernel"],
            _constants(row),
            "/".join(row["kinds"]),
            f"{row['warps']}/{row['stages']}",
        )
        table.setdefault(key, {}).setdefault(row["arch"], []).append(_cell(row["binary"]))
        serves.setdefault(key, set()).update(row["serves"])
    lines = [
        "Cells: registers of a thread; KB of shared memory of a block; matrix instructions; asynchronous copies (n/c: "
        "not counted, where dtype and precision mean no matrix instructions). "
        "Configurations that differ in strides or alignment only are counted (xn), the largest shown.",
        "",
        "| kernel | constants | kind | warps/stages | serves | "
        + " | ".join(f"sm_{a}" for a in archs)
        + " |",
        "|---|---|---|---|---:|" + "---|" * len(archs),
    ]
    for key in sorted(table):
        cells = []
        for arch in archs:
            made = table[key].get(arch, [])
            largest = max(made, default="-", key=lambda cell: int(cell.split(";")[0]) if ";" in cell else 0)
            cells.append(largest + (f" (x{len(made)})" if len(made) > 1 else ""))
        lines.append(f"| {' | '.join(key)} | {len(serves[key])} | {' | '.join(cells)} |")
    return lines


def _constants(row: Mapping[str, Any]) -> str:
    """Sizes only: switches and names are in the JSON."""
    return ", ".join(
        f"{name} {value}"
        for name, value in row["constants"].items()
        if value.isdigit() and name.startswith("BLOCK")
    )


def _cell(binary: Mapping[str, Any]) -> str:
    if "problem" in binary:
        return "not compiled"
    counts = binary["counts"]
    matrix = ", ".join(f"{counts[kind]} {kind}" for kind in MATRIX if counts.get(kind))
    matrix = matrix or ("none" if MATRIX[0] in counts else "n/c")
    spilled = f"; {counts['local']} local" if counts["local"] else ""
    return f"{binary['registers']}; {binary['shared'] / 1024:.0f}; {matrix}; {counts.get('async copies', 'n/c')}{spilled}"


def _cuda(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| kernel | arch | registers | spills, bytes | shared memory, bytes |",
        "|---|---|---:|---:|---:|",
    ]
    return lines + [
        f"| {r['kernel']} | {r['arch']} | {r['registers']} | {r['spills']} | {r['shared']} |" for r in rows
    ]
