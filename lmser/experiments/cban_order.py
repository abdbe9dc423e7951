"""004 App. E.2, Table 3: the layers updated up and down, or the odd ones and then the even ones.

Two networks of `lmser.experiments.cban_omniglot` that differ in the order of the updates alone, in training and in the test
(`lmser_kernels.settle`: one iteration updates layers 1 ... L, then L-1 ... 0; or 1, 3, ..., then 0, 2, ...). 004 prints
22.35 dB for up-down here and 24.11 dB in Table 2 for what reads as the same network; the rows have the settings of
App. D.3.

What decides the claim, set before the rows were run, by the means over the seeds: up-down is superior where its PSNR and
SSIM are higher and its L1 is lower than those of odd-even.
"""

from __future__ import annotations

from lmser.experiments import Request
from lmser.experiments.completion_metrics import MEASURES
from lmser.experiments.completion_results import write_results
from lmser.experiments.completion_tables import has_rows, measured_table, settling_table, superior
from lmser.experiments.image_completion import save_completions, train_completion
from lmser.experiments.paper import paper_table
from lmser.experiments.results import Results
from lmser.experiments.rows import RowConfig, load_rows

__all__ = ["run"]

NAME = "cban-order"

_SOURCE = "004 App. E.2"
_UP_DOWN, _ODD_EVEN = "up-down", "odd-even"
_PRINTED = {_UP_DOWN: "up_down", _ODD_EVEN: "odd_even"}


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    trained, data = train_completion(request, rows, NAME)
    paper = paper_table("004", "table 3")
    table = measured_table(
        trained,
        "Completed images by the order of the updates",
        source="004 Table 3",
        printed={label: paper[name] for label, name in _PRINTED.items()},
        notes=(data.note(), "s.e.: standard error of the mean over the test images, of each seed."),
        header="order",
    )
    claims = []
    if has_rows(trained, _UP_DOWN, _ODD_EVEN):
        text = "The up-down rule achieves superior performance, measured by PSNR, SSIM and L1"
        claims = [superior(text, _SOURCE, table, _UP_DOWN, (_ODD_EVEN,), MEASURES)]
    return write_results(
        request,
        trained,
        data.facts(),
        experiment=NAME,
        title="The order of the updates",
        summary=(
            "CBAN on drawings in [-1, 1]. PSNR (data range 2, as 1 on [0, 1]) and SSIM are each image's own, L1 is the sum "
            "over its pixels on [0, 1]; all are means over the test images."
        ),
        tables=(table, settling_table(trained)),
        figures=[
            save_completions(
                request, trained, data, "orders", "Test drawings and their completions", "004 Fig. 9"
            )
        ],
        claims=claims,
    )
