"""Every experiment, from the command line to its page, at quick scale on the data sets given with ``--data``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmser.experiments import EXPERIMENTS
from lmser.experiments.results import read_results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS])
def test_an_experiment_runs_at_quick_scale(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("no data sets: give their folder with --data")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "lmser", "run", name, "--data", str(Path(data).resolve()), "--out", str(out)],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(out / "results.json")
    assert (results.experiment, results.scale) == (name, "quick")
    assert results.tables
    cells = [cell for table in results.tables for row in table.rows for cell in row.cells]
    assert any(cell.ours for cell in cells)
    assert all((out / figure.file).is_file() for figure in results.figures)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert results.title in page
    assert all(table.title in done.stdout for table in results.tables)
