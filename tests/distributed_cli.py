"""``python -m lmser`` with one more experiment, which takes a second: for test_distributed.py."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

import lmser.experiments
from lmser.experiments import Experiment, Request
from lmser.experiments.campaign import Job, load_trained, table_row, train_rows
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.results import Figure, Results
from lmser.experiments.rows import parse_row
from lmser.experiments.tables import Table
from lmser.training.distributed import is_main

ROW = """
position = 1
table = "small"
label = "Lmser(un)"
[model]
kind = "Lmser"
sizes = [64, 8, 3]
[training]
steps = 30
lr = 0.01
batch_size = 7
"""


def run(request: Request) -> Results:
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    row = parse_row(ROW, "small/lmser", "quick")
    assert row is not None

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        stop = os.environ.get("STOP_IN_THE_SECOND_PROCESS")
        if stop and not is_main() and not os.path.exists(stop):
            open(stop, "w").close()
            signal.raise_signal(signal.SIGTERM)
        return model.loss(images)

    def error(model: nn.Module) -> dict[str, float]:
        return {"MSE": float((model(x).reconstruction - x).square().mean())}

    job = Job(x, loss, error, ("MSE",), lambda model: model(x[:2]).reconstruction)
    trained = train_rows(request, [row], lambda row: job, experiment="small", data={"sha256": "0"})
    with torch.no_grad():
        shown = load_trained(request, row, 0)(x[:2]).reconstruction.clamp(0, 1)
    name = "figures/small.svg"
    save_figure(
        request.out / name, picture_grid(name, {"shown": shown}, data_range=(0.0, 1.0), labels="rows")
    )
    results = Results(
        experiment="small",
        title="Small",
        summary="A small network.",
        scale=request.scale,
        seeds=request.seeds,
        tables=(Table("Error", ("MSE",), (table_row(row, trained[row], ("MSE",)),)),),
        figures=(Figure(name, "Shown", "Two pictures.", "Two pictures"),),
        seconds=1.0,
        machine={"device": request.device},
        data={},
    )
    results.write(request.out)
    return results


if __name__ == "__main__":
    module = ModuleType("lmser.experiments.small")
    module.run = run  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    lmser.experiments.EXPERIMENTS = (
        Experiment(
            "small", "a small network", "no paper", "nothing", "nothing is needed",
            seeds={"quick": (0,), "paper": (0,)}, minutes={"quick": 1, "paper": 1},
        ),
    )  # fmt: skip
    runpy.run_module("lmser", run_name="__main__")
