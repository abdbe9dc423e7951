"""000 Table 1 and Fig. 2: reconstruction of MNIST by fully connected networks (`lmser.experiments.fully_connected`)."""

from __future__ import annotations

from lmser.experiments import Request
from lmser.experiments.fully_connected import run as run_fully_connected
from lmser.experiments.results import Results
from lmser.experiments.rows import RowConfig

__all__ = ["run"]


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    return run_fully_connected(
        request, rows, experiment="mnist-reconstruction", title="MNIST", fashion=False, figure="Fig. 2"
    )
