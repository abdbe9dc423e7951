"""``python results/readme.py``: writes the README's tables of results from the ``results.json`` files beside it."""

from __future__ import annotations

import re
from pathlib import Path

from lmser._atomic import atomic_write
from lmser.experiments.results import Claim, Results, read_results
from lmser.experiments.tables import Cell, Table

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->", "<!-- /results -->"

# Folder -> the tables shown, by a part of their titles; the report has them all.
SHOWN = {
    "mnist-reconstruction-paper": ("calibrated", "tuned", "as printed"),
    "fashion-reconstruction-quick": ("calibrated",),
    "stl10-reconstruction-paper": ("As printed", "With a warm-up", "near-isometric"),
    "recognition-paper": ("accuracy %, attacks",),
    "classification-paper": ("Accuracy",),
    "semisup-mnist-paper": ("Table 2", "What limits it"),
    "semisup-mnist-supervised-paper": ("Table 2",),
    "semisup-mnist-draws-paper": ("The search",),
    "cban-bars-paper": ("As printed", "Calibrated"),
    "cban-mnist-paper": ("As printed", "Calibrated"),
}
# Those whose tables come with their notes.
NOTED = ("semisup-mnist-paper",)
# What was run of experiments that were run in part.
ROWS = {
    "semisup-mnist-paper": "semi/Small,supervised-50/Small,supervised-1000/Small",
    "semisup-mnist-supervised-paper": "supervised-1000",
    "semisup-mnist-draws-paper": "grid/draw-",
}


def _cell(cell: Cell) -> str:
    paper = "" if cell.paper is None else f" ({cell.paper_text()})"
    return cell.ours_text() + paper


def _table(table: Table) -> list[str]:
    """The columns of which any row was run."""
    run = [
        index
        for index in range(len(table.columns))
        if any(row.cells[index].mean is not None for row in table.rows)
    ]
    lines = [
        f"| {table.title} | " + " | ".join(table.columns[index] for index in run) + " |",
        "|---|" + "---:|" * len(run),
    ]
    for row in table.rows:
        name = f"{row.group}, {row.label}" if row.group else row.label
        lines.append(f"| {name} | " + " | ".join(_cell(row.cells[index]) for index in run) + " |")
    return lines


def _differences(table: Table) -> str:
    """What all rows share; each row's own settings are in the report."""
    sets = [set(re.split(r", (?![^()]*\))", row.differs)) for row in table.rows]
    common = [
        part for part in re.split(r", (?![^()]*\))", table.rows[0].differs) if all(part in s for s in sets)
    ]
    return ", ".join(filter(None, common))


def _claims(found: list[Results]) -> list[str]:
    lines = ["| claim | source | confirmed in |", "|---|---|---|"]
    grouped: dict[tuple[str, str], list[Claim]] = {}
    for results in found:
        for claim in results.claims:
            grouped.setdefault((claim.text, claim.source), []).append(claim)
    for (text, source), claims in grouped.items():
        held = sum(claim.confirmed for claim in claims)
        lines.append(f"| {text} | {source} | {held} of {len(claims)} tests |")
    return lines


def main() -> None:
    """Rewrite the part between the markers."""
    parts, found = [], []
    for folder, titles in SHOWN.items():
        results = read_results(ROOT / "results" / folder / "results.json")
        found.append(results)
        seeds = ",".join(map(str, results.seeds))
        rows = f" --rows {ROWS[folder]}" if folder in ROWS else ""
        parts.append(
            f"**{results.title}** (`lmser run {results.experiment} --scale {results.scale} --seeds {seeds}{rows}`; "
            f"ours, in brackets the paper's)\n"
        )
        for table in results.tables:
            if not any(title in table.title for title in titles):
                continue
            parts += _table(table)
            common = _differences(table)
            notes = table.notes if folder in NOTED else ()
            said = [f"Not the paper's: {common}.", *notes] if common else list(notes)
            parts.append("\n" + " ".join(said) + "\n" if said else "")
    parts += [
        "**What the papers say**, each sentence tested in every table above that can decide it:\n",
        *_claims(found),
    ]
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(readme, "w") as file:
        file.write(f"{before}{BEGIN}\n" + "\n".join(parts) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
