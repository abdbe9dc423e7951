"""``python -m bench.readme``: writes the README's table of measurements from bench/results/cpu.json."""

from __future__ import annotations

import json
from pathlib import Path

from lmser._atomic import atomic_write

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def table(result: dict) -> str:
    """The table and the sentence saying where it comes from."""
    lines = [
        "| workload | fused, ms | best eager, ms | ratio | % of FMA peak |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['workload']} | {row['fused_ms']:.2f} | {row['best_eager_ms']:.2f} ({row['best_eager']}) "
            f"| {row['ratio']:.2f} | {100 * row['gflops'] / row['fma_peak_gflops']:.0f} |"
        )
    where = (
        f"float32, {result['threads']} threads of {result['processor']} ({result['isa']}), torch {result['torch']}, commit "
        f"`{result['commit']}`. Medians of alternating calls, verified against float64 before timing; the peak is the one "
        "measured in the same run, and arithmetic is counted as the direct sum's, so more than 100 % means that fewer "
        "products were made. `python -m bench --json bench/results/cpu.json` and `python -m bench.readme` reproduce it."
    )
    return "\n".join([*lines, "", where])


def main() -> None:
    """Rewrite the part between the markers."""
    result = json.loads((ROOT / "bench/results/cpu.json").read_text())
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(readme, "w") as file:
        file.write(f"{before}{BEGIN}\n{table(result)}\n{END}{after}")


if __name__ == "__main__":
    main()
