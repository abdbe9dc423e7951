"""The command line: what it prints, what it refuses and how, and its exit statuses."""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from lmser.cli import main
from lmser.data import MissingData
from lmser.experiments import EXPERIMENTS, Experiment, Request
from lmser.experiments.results import Figure, Results
from lmser.experiments.run_directory import RunRefused
from lmser.experiments.tables import Cell, Row, Table
from lmser.training import Interrupted


def lmser(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(result: Result) -> str:
    """The one sentence on standard error of a refused command."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


RESULTS = Results(
    experiment="mnist-reconstruction",
    title="A title",
    summary="A summary.",
    scale="quick",
    seeds=(0,),
    tables=(Table("A table", ("MSE",), (Row("AE", (Cell((0.5,), 0.25),)),)),),
    figures=(),
    seconds=1.0,
    machine={"device": "cpu"},
    data={},
    notes=("A finding.",),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Replaces every experiment by one that notes what it was asked for."""
    requests: list[Request] = []

    def run(request: Request) -> Results:
        requests.append(request)
        request.out.mkdir(parents=True, exist_ok=True)
        RESULTS.write(request.out)
        return RESULTS

    monkeypatch.setattr(Experiment, "module", lambda self: SimpleNamespace(run=run))
    return requests


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_request: Request) -> Any:
        raise error

    monkeypatch.setattr(Experiment, "module", lambda self: SimpleNamespace(run=run))


def test_list_names_every_experiment_with_its_source() -> None:
    result = lmser("list")
    assert result.exit_code == 0
    for experiment in EXPERIMENTS:
        assert experiment.name in result.stdout
        assert experiment.source in result.stdout
        reads = f"{experiment.data}: {experiment.needs}" if experiment.data else "no data"
        assert f" {experiment.source}\n    reads {reads}\n" in result.stdout
    assert result.stdout.count(" quick, ") == result.stdout.count(" paper on two cores") == len(EXPERIMENTS)


def test_list_says_how_long_each_scale_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = dataclasses.replace(EXPERIMENTS[0], minutes={"quick": 2, "paper": 25})
    long = dataclasses.replace(timed, minutes={"quick": 1.5, "paper": 600})
    monkeypatch.setattr("lmser.cli.EXPERIMENTS", (timed, long))
    result = lmser("list")
    assert "    about 2 min quick, 25 min paper on two cores\n" in result.stdout
    assert "    about 1.5 min quick, 10 h paper on two cores\n" in result.stdout


def test_list_answers_without_loading_torch() -> None:
    code = (
        "import sys, lmser.cli; lmser.cli.main(['list'], standalone_mode=False); "
        "print('torch' in sys.modules, 'jinja2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.stdout.splitlines()[-1] == "False False"


def test_run_hands_on_what_was_asked_for(asked: list[Request], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = lmser(
        "run", "mnist-reconstruction", "--data", str(tmp_path), "--scale", "paper", "--seeds", "3,1",
        "--out", str(out), "--resume",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked == [Request(tmp_path, "cpu", "paper", (3, 1), out, resume=True)]
    assert "A table" in result.stdout
    assert "0.5000" in result.stdout
    assert "A finding." in result.stdout
    assert str(out / "report.html") in result.stdout
    assert "A title" in (out / "report.html").read_text()


def test_run_hands_on_how_to_train(asked: list[Request], tmp_path: Path) -> None:
    options = ("--precision", "bfloat16", "--compile", "--workers", "2", "--tensorboard")
    out = tmp_path / "out"
    result = lmser("run", "mnist-reconstruction", "--data", str(tmp_path), "--out", str(out), *options)
    assert result.exit_code == 0, result.output
    assert asked[0].training == {"precision": "bfloat16", "compile": True, "workers": 2}
    assert asked[0].tensorboard


def test_run_defaults_are_quick_one_seed_and_a_folder_of_its_own(
    asked: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert lmser("run", "stl10-reconstruction").exit_code == 0
    out = Path("runs/stl10-reconstruction-quick")
    assert asked == [Request(Path("data"), "cpu", "quick", (0,), out, resume=False)]


def test_a_wrong_name_lists_the_right_ones() -> None:
    message = refused(lmser("run", "stl11"))
    assert "'stl11'" in message
    assert all(experiment.name in message for experiment in EXPERIMENTS)


@pytest.mark.parametrize("seeds", ["a", "1,", "-1", "0,0", "1.5"])
def test_seeds_are_checked(seeds: str) -> None:
    assert repr(seeds) in refused(lmser("run", "mnist-reconstruction", "--seeds", seeds))


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_devices_are_checked(device: str) -> None:
    assert repr(device) in refused(lmser("demo", "--device", device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [("demo",), ("run", "mnist-reconstruction")])
def test_a_gpu_that_is_not_there_is_told_in_one_sentence(command: tuple[str, ...]) -> None:
    message = refused(lmser(*command, "--device", "cuda"))
    assert "'cuda' is not there: " in message


def test_graphs_are_for_gpus(asked: list[Request], tmp_path: Path) -> None:
    words = ("run", "mnist-reconstruction", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "--cuda-graph: expected --device cuda" in refused(lmser(*words, "--cuda-graph"))
    assert lmser(*words, "--no-cuda-graph").exit_code == 0
    assert asked[0].training == {"cuda_graph": False}


def test_an_experiment_without_data_needs_no_folder(
    asked: list[Request], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = dataclasses.replace(EXPERIMENTS[0], data="", needs="")
    monkeypatch.setattr("lmser.cli.EXPERIMENTS", (without,))
    monkeypatch.setattr("lmser.cli.find", lambda name: without)
    assert "reads no data\n" in lmser("list").stdout
    absent = tmp_path / "nowhere"
    result = lmser("run", without.name, "--data", str(absent), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert asked[0].data == absent


@pytest.mark.parametrize(
    "experiment",
    [experiment for experiment in EXPERIMENTS if experiment.data],
    ids=lambda experiment: experiment.name,
)
def test_missing_data_says_what_brings_it(experiment: Experiment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    absent = refused(lmser("run", experiment.name, "--data", str(tmp_path / "nowhere"), "--out", str(out)))
    assert str(tmp_path / "nowhere") in absent
    assert experiment.needs in absent
    (tmp_path / "file").write_bytes(b"")
    assert "is a file" in refused(
        lmser("run", experiment.name, "--data", str(tmp_path / "file"), "--out", str(out))
    )
    empty = refused(lmser("run", experiment.name, "--data", str(tmp_path), "--out", str(out)))
    assert str(tmp_path) in empty
    assert "lmser data get" in empty or re.search("https?://", empty)
    assert not out.exists()


@pytest.mark.parametrize(
    "missing", [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
)
def test_one_file_of_four_missing_says_which_and_what_brings_it(missing: str, tmp_path: Path) -> None:
    data = tmp_path / "my data" / "MNIST" / "raw"
    data.mkdir(parents=True)
    for part in ("train", "t10k"):
        (data / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 10, 28, 28) + bytes(7840))
        (data / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 10) + bytes(range(10)))
    (data / f"{missing}-ubyte").unlink()
    out = tmp_path / "out"
    root = data.parents[1]
    message = refused(lmser("run", "mnist-reconstruction", "--data", str(root), "--out", str(out)))
    assert f"not {missing}-ubyte.gz beside it" in message
    command = shlex.join(["lmser", "data", "get", "mnist", "--root", str(root)])
    assert f"`{command}` downloads the set" in message
    assert not out.exists()


def test_half_of_stl10_says_what_brings_the_rest(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(b"")
    message = refused(lmser("run", "stl10-reconstruction", "--data", str(tmp_path)))
    assert "train_y.bin beside it is not" in message
    assert "https://ai.stanford.edu" in message


@pytest.mark.parametrize("error", [MissingData("no such data"), RunRefused("in use")])
def test_what_the_user_can_put_right_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, error)
    assert refused(lmser("run", "mnist-reconstruction", "--data", str(tmp_path))) == f"Error: {error}"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = "tqdm is not installed; it comes with the extra 'experiments': pip install 'lmser[experiments]'"
    failing(monkeypatch, ImportError(message))
    assert message in refused(lmser("run", "mnist-reconstruction", "--data", str(tmp_path)))


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, ValueError("a defect"))
    result = lmser("run", "mnist-reconstruction", "--data", str(tmp_path))
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted(5, 10, Path("checkpoint.pt"), signal.SIGTERM), 143),
        (Interrupted(5, 10, Path("checkpoint.pt"), signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, error)
    tmp_path = tmp_path / "a folder"
    tmp_path.mkdir()
    out = tmp_path / "out"
    result = lmser("run", "mnist-reconstruction", "--data", str(tmp_path), "--seeds", "4", "--out", str(out))
    assert result.exit_code == status
    command = result.stderr.splitlines()[-1].removeprefix("Continue with: ")
    assert command == (
        f"lmser run mnist-reconstruction --data '{tmp_path}' --device cpu --scale quick --seeds 4 "
        f"--out '{out}' --resume"
    )
    monkeypatch.undo()  # the command is one that is understood
    assert "lmser data get" in refused(lmser(*shlex.split(command)[1:]))


def test_a_folder_in_use_is_refused_by_demo_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "--resume" in refused(lmser("demo", "--out", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_data_get_refuses_unknown_sets_and_those_it_has_no_checksum_for(tmp_path: Path) -> None:
    assert "mnist, fashion-mnist" in refused(lmser("data", "get", "mnst", "--root", str(tmp_path)))
    assert "stl10_binary" in refused(lmser("data", "get", "stl10", "--root", str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_data_get_downloads_into_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def get(name: str, root: Path, progress: Any) -> Path:
        progress("train-images", 10, 20)
        progress("train-images", 10, None)
        return Path(root) / name

    monkeypatch.setattr("lmser.data.download.get", get)
    result = lmser("data", "get", "mnist", "--root", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout.strip() == f"mnist is in {tmp_path / 'mnist'}"


def test_report_gathers_what_is_below_a_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(lmser("report", str(tmp_path / "nowhere")))
    assert "no results.json" in refused(lmser("report", str(tmp_path)))
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        RESULTS.write(tmp_path / name)
    result = lmser("report", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").read_text().count("A summary.") == 2
    elsewhere = tmp_path / "page.html"
    assert lmser("report", str(tmp_path), "--out", str(elsewhere)).exit_code == 0
    assert elsewhere.read_text() == (tmp_path / "report.html").read_text()
    figures = (Figure("figures/x.svg", "Curves", "A caption.", "curves"),) * 2
    dataclasses.replace(RESULTS, figures=figures).write(tmp_path / "a")
    result = lmser("report", str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr.startswith("2 figures are named in the page but not shown")
    assert str(tmp_path / "a" / "figures" / "x.svg") in result.stderr
    (tmp_path / "a" / "results.json").write_text("{}")
    assert str(tmp_path / "a" / "results.json") in refused(lmser("report", str(tmp_path)))
