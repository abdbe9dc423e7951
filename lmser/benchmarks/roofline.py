"""Every workload under the roof that arithmetic and memory put over it (Williams, Waterman, Patterson 2009)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmser._atomic import atomic_write
from lmser._extras import require

__all__ = ["draw"]

FORMATS = ("svg", "png")
# (what a workload's name begins with, what the group is called, marker): the last takes what is left.
_GROUPS = (
    ("settle", "settling", "D"),
    ("semi-supervised", "network inversion", "P"),
    ("layer", "single layers", "o"),
    ("add_act", "add_act", "^"),
    ("", "networks", "s"),
)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the roofline of a result of `measure.run` as SVG or PNG, by the suffix of `path`.

    Abscissa: multiply-adds x 2 of the definition per byte of what an operation must read and write once. Ordinate: the
    first over the time taken. Minimal filtering makes fewer products than the definition, so that points may lie above
    the roof.

    Raises:
        ValueError: another suffix.
        ImportError: matplotlib is missing; names the extra.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"--plot: expected a name that ends in .{' or .'.join(FORMATS)}, got {path.name!r}")
    figure_module = require("matplotlib.figure")
    figure = figure_module.Figure(figsize=(8.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    peak = max(row["fma_peak_best_gflops"] for row in rows)
    bandwidth = result["copy_bandwidth_gbs"]
    places = [row["flops"] / row["bytes"] for row in rows]
    left, right = min(*places, peak / bandwidth) / 2, max(*places, peak / bandwidth) * 2
    axes.plot(
        [left, peak / bandwidth, right], [left * bandwidth, peak, peak], color="#444444", linewidth=1.2,
        label=f"roof: {bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s",
    )  # fmt: skip
    drawn = set()
    for row, place in zip(rows, places, strict=True):
        _, group, marker = next(g for g in _GROUPS if row["workload"].startswith(g[0]))
        for who, rate, colour in (
            ("this library", row["gflops"], "#0072B2"),
            ("best other", row["flops"] / row["best_ms"] / 1e6, "#E69F00"),
        ):
            label = f"{group}, {who}"
            axes.plot(
                place, rate, marker, color=colour, markersize=5, alpha=0.8, markeredgewidth=0,
                label=None if label in drawn else label,
            )  # fmt: skip
            drawn.add(label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations of the definition per byte read and written once")
    axes.set_ylabel("GFLOP/s")
    axes.grid(visible=True, which="both", color="#888888", linewidth=0.3, alpha=0.4)
    axes.set_title(
        f"{result['processor']}, {result['isa']}, {result['threads']} threads, float32", fontsize=10
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getvalue())
