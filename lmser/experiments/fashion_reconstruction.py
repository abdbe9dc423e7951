"""000 Fig. 3: reconstruction of Fashion-MNIST by fully connected networks (`lmser.experiments.fully_connected`).

000 shows pictures and no numbers; the tables are those of `mnist_reconstruction`, without the paper's column.
"""

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
        request,
        rows,
        experiment="fashion-reconstruction",
        title="Fashion-MNIST",
        fashion=True,
        figure="Fig. 3",
    )
