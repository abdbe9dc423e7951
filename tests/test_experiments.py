"""The experiments at a tiny scale: that they run, stop, continue to the same bits, and say what they did."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import made_up_data
import pytest
import torch

from lmser.contest import Timing
from lmser.experiments import (
    EXPERIMENTS,
    Request,
    campaign,
    demo,
    fashion_reconstruction,
    find,
    mnist_reconstruction,
    stl10_reconstruction,
)
from lmser.experiments import training_job as training_job_module
from lmser.experiments.eager_comparison import StepCost, compare_steps, comparison_table
from lmser.experiments.figures import loss_curves, picture_grid
from lmser.experiments.image_reconstruction import METRICS, build_variant, measure, mse_of_loss, reconstruct
from lmser.experiments.paper import paper_table, paper_title
from lmser.experiments.progress import ExperimentProgress
from lmser.experiments.provenance import machine
from lmser.experiments.results import Results, read_results
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.run_directory import RunRefused, open_run_directory
from lmser.experiments.step_memory import CONTENDERS
from lmser.experiments.training_job import train_job
from lmser.training import TrainConfig

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.usefixtures("light_collections")

TINY_DEMO = demo.Configuration(
    crop=16,
    train_crops=8,
    test_crops=3,
    batch_size=4,
    steps=4,
    warmup=1,
    seeds=(0,),
    timing_batch=2,
    timing_size=16,
    timing_repeats=1,
    pictures=2,
)


def tiny_stl10() -> list[RowConfig]:
    """The quick rows, two classes of at most two small images, two steps."""
    return [
        dataclasses.replace(
            row,
            group="n = 2" if row.group == "n = 400" else row.group,
            data={"per_class": 2 if row.data["per_class"] > 10 else 1},
            training={**row.training, "steps": 2, "batch_size": 2},
            evaluation={"per_class": 1, "side": 16},
        )
        for row in load_rows("stl10-reconstruction", "quick")
    ]


def tiny_mnist(**training: object) -> list[RowConfig]:
    """The quick rows with 4 steps, evaluated after 2 and 4; `training` as the command line gives it."""
    return [
        dataclasses.replace(
            row,
            training={**row.training, "steps": 4, "log_every": 1},
            evaluation={"at": [2, 4] if len(row.evaluation["at"]) > 1 else [4]},
        )
        for row in load_rows("mnist-reconstruction", "quick", training)
    ]


@pytest.fixture
def stl10(tmp_path: Path) -> Path:
    return made_up_data.stl10(tmp_path / "data")


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return made_up_data.digits(tmp_path / "data", "mnist", "fashion-mnist")


def request_for(data: Path, out: Path, *, resume: bool = False, seeds: tuple[int, ...] = (0,)) -> Request:
    return Request(
        data=data, device="cpu", scale="quick", seeds=seeds, out=out, resume=resume, progress=False
    )


def bits(out: Path) -> dict[str, bytes]:
    """Everything in a run directory that must not depend on interruptions."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "result.json":
            kept = json.loads(path.read_text())
            kept = {key: value for key, value in kept.items() if not key.startswith("seconds")}
            found[name] = json.dumps(kept).encode()
        elif path.name == "results.json":
            kept = json.loads(path.read_text())
            found[name] = json.dumps(
                [table for table in kept["tables"] if "step" not in table["title"]]
            ).encode()
        elif path.is_file() and path.name != "report.html":
            found[name] = path.read_bytes()
    return found


def stopping_progress(monkeypatch: pytest.MonkeyPatch, module: object, after_jobs: int) -> None:
    """Kill the run without warning within the job after `after_jobs`: nothing is saved there and then."""

    class Stopping(ExperimentProgress):
        def job(self, label: str, steps: int):  # type: ignore[no-untyped-def]
            super().job(label, steps)

            def on_step(step: int, _loss: torch.Tensor) -> None:
                if self._started > after_jobs and step == 2:
                    raise RuntimeError("killed")

            return on_step

    monkeypatch.setattr(module, "ExperimentProgress", Stopping)


# The registry and the papers' numbers.


def test_every_experiment_can_be_loaded_and_run() -> None:
    for experiment in EXPERIMENTS:
        assert callable(experiment.module().run)
        assert set(experiment.seeds) == {"quick", "paper"}
        assert find(experiment.name) is experiment


def test_an_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="mnist-reconstruction, fashion-reconstruction, stl10-reconstruction"
    ):
        find("stl11")


def test_paper_tables_hold_the_printed_numbers() -> None:
    assert paper_table("000", "table 1")["Lmser(un)"] == {"500": 0.0067, "5000": 0.0018, "20000": 0.0006}
    table = paper_table("001", "table 4")
    assert table["n = 10"]["U-Net"] == {"MSE": 0.0106, "SSIM": 0.8054, "PSNR": 26.27}
    assert [table[n]["CAE"]["PSNR"] for n in table] == [17.49, 17.47, 17.13]
    # A slip of the pen in copying would show: PSNR and MSE of a row belong together (range 2, mean of PSNRs).
    for models in table.values():
        for values in models.values():
            assert 0 < values["PSNR"] - 10 * math.log10(4 / values["MSE"]) < 0.6
    assert "convolutional layers" in paper_title("000")
    assert paper_table("004", "table 1")["BSD100"]["CBAN"] == {"PSNR": 30.12, "SSIM": 0.872}
    assert paper_table("004", "table 2")["1.0"]["mean iterations"] == 3.01
    with pytest.raises(ValueError, match=r"there are 000, 001, 003, 004"):
        paper_title("002")
    with pytest.raises(ValueError, match="there are table 1, recognition"):
        paper_table("000", "table 2")


def test_machine_names_what_matters_and_no_path() -> None:
    facts = machine("cpu")
    assert {"device", "processor", "threads", "kernels", "torch", "python"} <= set(facts)
    assert facts["threads"] == str(torch.get_num_threads())
    assert str(Path(__file__).resolve().parents[1]) not in json.dumps(facts)


# Pieces.


def test_measure_is_exact_for_a_perfect_and_a_constant_reconstruction() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(by))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.by

    images = torch.rand(3, 3, 16, 16) * 2 - 1
    found = measure(Shifted(0.2), images)
    assert found["MSE"] == pytest.approx(0.04, rel=1e-5)
    assert found["PSNR"] == pytest.approx(20.0, rel=1e-5)  # range 2: 10 log10(4 / 0.04)
    assert torch.equal(reconstruct(Shifted(0.0), images), images)


def test_mse_of_loss_agrees_with_the_network() -> None:
    model = build_variant("CLmser")
    images = torch.rand(2, 3, 16, 16)
    curve = mse_of_loss([(1, model.loss(images).item())], images[0].numel())
    assert curve[0][1] == pytest.approx(measure(model, images)["MSE"], rel=1e-5)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="CLmser, CLmser-w, CLmser-n, CAE"):
        build_variant("CLmser-x")


def test_figures_are_valid_and_the_same_every_time() -> None:
    curves = {"CLmser": [(1, 1.0), (2, 0.5), (3, math.nan)], "CAE": [(1, 2.0)]}
    pictures = {name: torch.rand(2, 3, 8, 8) for name in ("a", "b & c")}
    for draw in (
        functools.partial(loss_curves, "loss", curves, y_label="MSE"),
        functools.partial(picture_grid, "grid", pictures, data_range=(0.0, 1.0)),
        functools.partial(picture_grid, "rows", pictures, data_range=(0.0, 1.0), labels="rows"),
    ):
        svg = draw()
        assert svg == draw()
        root = xml.etree.ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert root.get("width") == "100%"
        assert root.get("viewBox")
        assert b"currentColor" in svg
    assert "b & c" in "".join(root.itertext())


def test_figures_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="no curve"):
        loss_curves("loss", {}, y_label="MSE")
    with pytest.raises(ValueError, match="same shape"):
        picture_grid("grid", {"a": torch.rand(1, 3, 4, 4), "b": torch.rand(1, 1, 4, 4)}, data_range=(0, 1))
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 4\)"):
        picture_grid("grid", {"a": torch.rand(2, 2, 4, 4)}, data_range=(0, 1))
    with pytest.raises(ValueError, match="columns"):
        picture_grid("grid", {"a": torch.rand(2, 3, 4, 4)}, data_range=(0, 1), labels="tiles")


def test_step_costs_are_measured_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = compare_steps(batch=2, size=16, repeats=2)
    assert [cost.timing.name for cost in costs] == ["fused", "eager", "eager, channels-last"]
    assert all(len(cost.timing.seconds) == 2 and cost.timing.median > 0 for cost in costs)
    assert all(cost.timing.error < 1e-4 for cost in costs)
    if sys.platform == "linux":
        assert all(cost.peak_bytes is not None and cost.peak_bytes >= 0 for cost in costs)
    table = comparison_table(costs, batch=2, size=16, machine=machine())
    assert table.mean(2, "eager") <= 1
    assert max(table.mean(2, cost.timing.name) for cost in costs[1:]) == 1
    monkeypatch.setattr("lmser.experiments.eager_comparison._TOLERANCE", 1e-12)
    with pytest.raises(ArithmeticError, match="its speed means nothing"):
        compare_steps(batch=2, size=16, repeats=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_steps_of_all_jobs_and_skips_finished_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    loss = torch.tensor(0.0)
    with ExperimentProgress(jobs=3, steps=12, shown=True) as progress:
        progress.job("finished earlier", 4)
        on_step = progress.job("resumed", 4)
        assert progress._bar.n == 4
        on_step(3, loss)
        assert progress._bar.n == 7
        on_step(4, loss)
        progress.job("last", 4)(4, loss)
        assert progress._bar.n == progress._bar.total == 12
    assert "done: 100%" in sys.stderr.getvalue()


def test_progress_without_a_terminal_is_a_line_per_job(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with ExperimentProgress(jobs=2, steps=8, shown=shown) as progress:
            progress.job("a", 4)(1, torch.tensor(0.0))
            progress.job("b", 4)
    assert capsys.readouterr().err == "[1/2] a\n[2/2] b\n"


# The run directory.


def test_a_run_directory_is_made_once_and_then_only_resumed(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    plan = {"experiment": "x", "seeds": (0, 1), "rows": {"CLmser": {"lr": 0.01}}}
    assert open_run_directory(out, plan, resume=False) == out
    with pytest.raises(RunRefused, match="--resume"):
        open_run_directory(out, plan, resume=False)
    open_run_directory(out, plan, resume=True)
    with pytest.raises(RunRefused, match=r"rows\.CLmser\.lr: 0\.01 there, 0\.02 asked for"):
        open_run_directory(out, {**plan, "rows": {"CLmser": {"lr": 0.02}}}, resume=True)
    with pytest.raises(RunRefused, match="device: only asked for"):
        open_run_directory(out, {**plan, "device": "cpu"}, resume=True)


def test_a_run_directory_is_not_taken_from_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunRefused, match="not empty"):
            open_run_directory(tmp_path, {}, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(NotADirectoryError):
        open_run_directory(tmp_path / "thesis.txt", {}, resume=False)


def test_what_a_kill_leaves_before_the_plan_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / ".plan.json.abc.tmp").write_text("{")
    open_run_directory(tmp_path, {"experiment": "x"}, resume=False)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".result.json.abc.tmp").write_text("{")
    open_run_directory(tmp_path, {"experiment": "x"}, resume=True)
    assert not list(tmp_path.rglob("*.tmp"))
    assert json.loads((tmp_path / "plan.json").read_text()) == {"experiment": "x"}


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunRefused, match=r"plan\.json is damaged"):
        open_run_directory(tmp_path, {}, resume=True)


# One job.


def quick_job(directory: Path, **changes: object):  # type: ignore[no-untyped-def]
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = {
        "build": functools.partial(build_variant, "CLmser"),
        "loss": lambda model, x: model.loss(x),
        "data": images,
        "config": TrainConfig(steps=3, batch_size=2, lr=0.01),
        "eval_at": (1, 3),
        "evaluate": functools.partial(measure, images=images),
        "metrics": METRICS,
        "pictures": functools.partial(reconstruct, images=images[:1]),
        "identity": {"variant": "CLmser"},
        "device": torch.device("cpu"),
    }
    return train_job(directory, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_finished_job_is_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick_job(tmp_path)
    assert set(first.metrics) == {1, 3}
    assert first.final("MSE") == first.metrics[3]["MSE"]
    assert first.pictures[3].shape == (1, 3, 16, 16)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "weights.safetensors").exists()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training_job_module, "train", fail)
    again = quick_job(tmp_path)
    assert again.metrics == first.metrics
    assert again.curve == first.curve
    assert torch.equal(again.pictures[1], first.pictures[1])
    with pytest.raises(RunRefused, match=r"lr: 0\.01 there, 0\.5 asked for"):
        quick_job(tmp_path, config=TrainConfig(steps=3, batch_size=2, lr=0.5))
    (tmp_path / "result.json").write_text('{"settings": ')
    with pytest.raises(RunRefused, match=r"result\.json .*damaged"):
        quick_job(tmp_path)


def test_a_divergence_is_a_result(tmp_path: Path) -> None:
    config = TrainConfig(steps=40, batch_size=2, lr=1e9, optimizer="sgd")
    job = quick_job(tmp_path, config=config, eval_at=(40,))
    assert job.diverged_at is not None
    assert math.isnan(job.final("MSE"))
    assert not math.isfinite(job.curve[-1][1])
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert not (tmp_path / "weights.safetensors").exists()
    assert quick_job(tmp_path, config=config, eval_at=(40,)).diverged_at == job.diverged_at


def test_the_weights_do_not_depend_on_the_global_generator(tmp_path: Path) -> None:
    quick_job(tmp_path / "a")
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    quick_job(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


# Whole experiments.


def check_results(out: Path, results: Results) -> None:
    read = read_results(out / "results.json")
    assert json.dumps([table.to_json() for table in read.tables]) == json.dumps(
        [table.to_json() for table in results.tables]
    )
    assert dataclasses.replace(read, tables=results.tables) == results
    assert results.seconds > 0
    for figure in results.figures:
        xml.etree.ElementTree.parse(out / figure.file)
    assert not list(out.rglob("*.tmp"))


def test_stl10_runs_and_resumes_to_the_same_bits(
    stl10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_stl10()
    whole = stl10_reconstruction.run(request_for(stl10, tmp_path / "whole"), rows)
    check_results(tmp_path / "whole", whole)
    printed, steady, isometric, sgd = whole.tables
    assert [row.group for row in printed.rows] == ["n = 2"] * 5 + ["n = 100"] * 5 + ["n = 10"] * 5
    assert [row.label for row in steady.rows] == ["CLmser", "CLmser-w", "U-Net", "CLmser-n", "CAE"]
    assert "U-Net" not in [row.label for row in isometric.rows]
    assert {row.label: "lr 0.002" in row.differs for row in steady.rows}["CAE"]
    assert all("stand-in data" in row.differs for row in sgd.rows)
    assert all(len(cell.ours) == 1 for table in whole.tables for row in table.rows for cell in row.cells)
    assert len(whole.figures) == 5
    assert len(whole.claims) == 4 * len(whole.tables)

    with monkeypatch.context() as patched:
        stopping_progress(patched, campaign, after_jobs=7)
        with pytest.raises(RuntimeError, match="killed"):
            stl10_reconstruction.run(request_for(stl10, tmp_path / "parts"), rows)
    with pytest.raises(RunRefused, match="--resume"):
        stl10_reconstruction.run(request_for(stl10, tmp_path / "parts"), rows)
    stl10_reconstruction.run(request_for(stl10, tmp_path / "parts", resume=True), rows)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_stl10_paper_scale_is_the_papers() -> None:
    rows = load_rows("stl10-reconstruction", "paper")
    printed = [row for row in rows if row.table == "as-printed"]
    assert [(row.steps(10 * n), n) for n in (400, 100, 10) for row in printed[:1]] == [
        (800, 400),
        (200, 100),
        (20, 10),
    ]
    table = paper_table("001", "table 4")
    assert {(row.group, row.label) for row in printed} == {(n, model) for n in table for model in table[n]}
    for row in printed:
        config = row.train_config(seed=1, samples=1000)
        assert (config.lr, config.optimizer, config.batch_size, config.warmup) == (0.01, "adam", 100, 0)
        assert (config.gamma, config.seed, row.differs) == (1.0, 1, "")
    steady = next(row for row in rows if row.path == "steady/n-100/CAE")
    assert steady.train_config(0, 1000).warmup == 20


def test_mnist_runs_and_resumes_to_the_same_bits(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_mnist()
    whole = mnist_reconstruction.run(request_for(mnist, tmp_path / "whole"), rows)
    check_results(tmp_path / "whole", whole)
    assert len(whole.tables) == len(whole.figures) == 3
    plain = ("τ = 2", "τ = 4", "accuracy % at τ = 4")
    reflections = ("k = 2, τ = 4", "k = 3, τ = 4")
    assert [table.columns for table in whole.tables] == [plain, (*plain, *reflections), plain]
    for table in whole.tables:
        has_accuracy = {row.label: bool(row.cells[2].ours) for row in table.rows}
        assert has_accuracy == {"AE": False, "Lmser(un-n)": False, "Lmser(un)": False, "Lmser(sup)": True}
    assert [bool(row.cells[-1].ours) for row in whole.tables[1].rows] == [False, False, True, True]
    assert len(whole.claims) == 9

    with monkeypatch.context() as patched:
        stopping_progress(patched, campaign, after_jobs=4)
        with pytest.raises(RuntimeError, match="killed"):
            mnist_reconstruction.run(request_for(mnist, tmp_path / "parts"), rows)
    mnist_reconstruction.run(request_for(mnist, tmp_path / "parts", resume=True), rows)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    with pytest.raises(RunRefused, match="other settings"):
        mnist_reconstruction.run(request_for(mnist, tmp_path / "parts", resume=True, seeds=(1,)), rows)


def test_fashion_is_the_same_without_the_papers_numbers(mnist: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, source="", data={"name": "fashion-mnist"}) for row in tiny_mnist()[4:6]]
    found = fashion_reconstruction.run(request_for(mnist, tmp_path / "out"), rows)
    check_results(tmp_path / "out", found)
    assert "Fashion-MNIST" in found.tables[0].title
    assert not any(found.tables[0].has_paper(column) for column in range(3))


def test_bfloat16_and_event_files(mnist: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    whole = mnist_reconstruction.run(request_for(mnist, tmp_path / "plain"), tiny_mnist()[4:6])
    rows = tiny_mnist(precision="bfloat16")[4:6]
    request = dataclasses.replace(request_for(mnist, tmp_path / "half"), tensorboard=True)
    half = mnist_reconstruction.run(request, rows)
    assert all("bfloat16 autocast" in row.differs for row in half.tables[0].rows)
    one, other = (found.tables[0].rows[0].cells[0].mean for found in (whole, half))
    assert one is not None
    assert one != other
    assert other == pytest.approx(one, rel=0.05)
    assert len(list((tmp_path / "half").rglob("events.out.*"))) == len(rows)
    assert not list((tmp_path / "plain").rglob("events.out.*"))


def test_mnist_paper_scale_is_the_papers() -> None:
    rows = load_rows("mnist-reconstruction", "paper")
    paper = paper_table("000", "table 1")
    printed = [row for row in rows if row.table == "as-printed"]
    assert [row.label for row in printed] == list(paper)
    for row in printed:
        assert row.evaluation["at"] == [int(step) for step in paper[row.label]]
        config = row.train_config(seed=3, samples=60000)
        assert (config.lr, config.gamma, config.batch_size, config.optimizer) == (0.01, 0.9999, 50, "adam")
        assert (config.steps, config.seed, config.warmup) == (20000, 3, 0)
    fashion = load_rows("fashion-reconstruction", "paper")
    for row, other in zip(rows, fashion, strict=True):  # nothing but the data differs
        assert (row.path, row.model, row.training) == (other.path, other.model, other.training)


def test_demo_runs_and_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    costs = [
        StepCost(Timing(name, (0.1, 0.2), 1e-7), 2**20) for name in CONTENDERS
    ]  # measured in a test of its own
    monkeypatch.setattr(demo, "compare_steps", lambda *_: costs)
    whole = demo.run(tmp_path / "whole", progress=False, configuration=TINY_DEMO)
    check_results(tmp_path / "whole", whole)
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    default, isometric, timing = whole.tables
    assert [row.label for row in default.rows] == ["CLmser", "CLmser-w", "CLmser-n", "CAE"]
    assert [cell.paper for cell in default.rows[0].cells] == [0.0067, 0.8607, 28.11]
    assert "near-isometric" in isometric.rows[0].differs
    assert "eager" in [row.label for row in timing.rows]
    assert len(list((tmp_path / "whole").rglob("weights.safetensors"))) == 8

    with monkeypatch.context() as patched:
        stopping_progress(patched, demo, after_jobs=3)
        with pytest.raises(RuntimeError, match="killed"):
            demo.run(tmp_path / "parts", progress=False, configuration=TINY_DEMO)
    demo.run(tmp_path / "parts", resume=True, progress=False, configuration=TINY_DEMO)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


_DRIVER = """
import sys
from pathlib import Path
from lmser.experiments import demo
configuration = demo.Configuration(crop=32, train_crops=64, test_crops=4, batch_size=8, steps=40, seeds=(0,),
                                   timing_batch=1, timing_size=16, timing_repeats=1, pictures=1)
demo.run(Path(sys.argv[1]), resume=sys.argv[2] == "resume", configuration=configuration)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("sklearn")

    def start(out: Path, mode: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        return subprocess.Popen([sys.executable, "-c", _DRIVER, str(out), mode], env=environment)

    assert start(tmp_path / "whole", "new").wait() == 0
    interrupted, moments = tmp_path / "parts", 0
    for wait in (1, 3, 5):  # finished jobs before each kill
        process = start(interrupted, "resume")
        while process.poll() is None and len(list(interrupted.rglob("result.json"))) < wait:
            time.sleep(0.01)
        time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(number)
            moments += 1
        assert process.wait() != 0 or moments < wait
    assert moments > 0
    assert start(interrupted, "resume").wait() == 0
    assert bits(interrupted) == bits(tmp_path / "whole")


@pytest.mark.slow
def test_the_demo_shows_the_order_of_001(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    results = demo.run(tmp_path / "demo", progress=False)
    error = functools.partial(results.tables[0].mean, 0)
    assert error("CLmser") < error("CLmser-w") < min(error("CLmser-n"), error("CAE"))


@pytest.mark.slow
def test_mnist_at_quick_scale_shows_the_order_of_000(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    data = pytestconfig.getoption("--data")
    if data is None:
        pytest.skip("--data DIR names the folder with the real files")
    results = mnist_reconstruction.run(request_for(Path(data), tmp_path / "mnist"))
    calibrated = results.tables[1]
    error = functools.partial(calibrated.mean, len(mnist_reconstruction.SCALES["quick"]) - 1)
    assert error("AE") > error("Lmser(un-n)") > max(error("Lmser(un)"), error("Lmser(sup)"))
