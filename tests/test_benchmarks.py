"""`lmser bench`: contenders agree, the wrong get no time, results are written as they come, the roofline is drawn."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from lmser import CLmser
from lmser.baselines import EagerCLmser
from lmser.benchmarks import measure, networks, roofline, workloads
from lmser.benchmarks.workload import Workload
from lmser.cli import main
from lmser.contest import Contender, contest

pytestmark = pytest.mark.native


def _work(name: str, build: Any, cost: tuple[float, float] = (1e6, 1e5)) -> Workload:
    return Workload(name, *cost, build, repeats=5)


def _layer(name: str = "layer 3→5 up, 9 px", *how: Any) -> Workload:
    how = how or (3, 5, 9, 2, 2, False, False)
    return _work(name, workloads._layer(*how), workloads._one_layer(*how))


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_layers_agree_with_float64(kernel: int, stride: int, down: bool, training: bool) -> None:
    contenders, wanted = workloads._layer(4, 6, 9, stride, 2, down, training, kernel)()
    assert [c.name for c in contenders] == ["fused", "eager", "eager, channels-last"]
    contest(contenders, wanted, tolerance=1e-4, repeats=1)


@pytest.mark.parametrize("kind", [networks.INFERENCE, networks.TRAINING, networks.UPDATE])
def test_networks_agree_with_float64(kind: str) -> None:
    build = networks._network(CLmser, EagerCLmser, (3, (4, 8), (1, 2)), (2, 3, 8, 8), kind)
    contenders, wanted = build()
    plain = [c for c in contenders if "compiled" not in c.name]
    assert len(contenders) == 2 * len(plain) - 1  # all but ours once more
    contest(plain, wanted, tolerance=1e-3, repeats=1)


@pytest.mark.parametrize("kind", [networks.INFERENCE, networks.TRAINING])
def test_networks_in_bfloat16_compete_with_themselves_in_float32(kind: str) -> None:
    where = ((3, (4, 8), (1, 2)), (2, 3, 8, 8), kind, torch.bfloat16)
    contenders, wanted = networks._network(CLmser, EagerCLmser, *where)()
    plain = [c for c in contenders if "compiled" not in c.name]
    assert [c.name for c in plain] == ["fused", "eager", "eager, channels-last", "fused, float32"]
    assert [c.run()[-1].dtype for c in plain] == 3 * [torch.bfloat16] + [torch.float32]
    contest(plain, wanted, tolerance=0.1, repeats=1)


def test_an_update_changes_the_weights_and_not_what_is_computed() -> None:
    build = networks._network(CLmser, EagerCLmser, (3, (4, 8), (1, 2)), (2, 3, 8, 8), networks.UPDATE)
    fused = build()[0][0]
    first, *before = (t.clone() for t in fused.run())
    for _ in range(20):
        last, *after = fused.run()
    torch.testing.assert_close(last, first, rtol=1e-4, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_short_calls_are_timed_in_blocks_of_one_length() -> None:
    calls = {"short": 0, "long": 0}

    def counted(name: str, seconds: float) -> Contender:
        def run() -> list[torch.Tensor]:
            calls[name] += 1
            time.sleep(seconds)
            return [torch.ones(1)]

        return Contender(name, run)

    found = contest(
        [counted("short", 1e-3), counted("long", 4e-3)],
        [torch.ones(1)],
        tolerance=1,
        repeats=2,
        warm_up=9,  # a busy machine may hold up any one of them
        turn_seconds=8e-3,
    )
    in_turns = calls["short"] - 10  # verified and warmed up
    assert calls["long"] - 10 == in_turns
    assert in_turns % 2 == 0
    assert 4 <= in_turns <= 16  # a call sleeps for a millisecond at least
    assert [len(timing.seconds) for timing in found.values()] == [2, 2]
    assert 1e-3 <= found["short"].median < found["long"].median
    alone = contest([counted("long", 1e-3)], [torch.ones(1)], tolerance=1, repeats=3, turn_seconds=0.5e-3)
    assert len(alone["long"].seconds) == 3


@pytest.mark.parametrize("activation", ["relu", "leaky_sigmoid", "tanh"])
def test_add_act_agrees_with_float64(activation: str) -> None:
    contenders, wanted = workloads._add_act(activation, True, elements=2**18)()
    contest([c for c in contenders if "compiled" not in c.name], wanted, tolerance=1e-4, repeats=1)


def test_the_workloads_are_those_asked_for() -> None:
    works = workloads.workloads()
    names = [work.name for work in works]
    assert len(names) == len(set(names))
    assert sum(name.startswith("layer") and "grid" in name for name in names) >= 150
    assert all(work.flops > 0 and work.bytes > 0 for work in works)
    for network in (
        "CLmser-STL10",
        "CLmser-CelebA",
        "Lmser 784-300-100-10",
        "settle CBAN-CIFAR",
        "semi-supervised",
    ):
        assert any(name.startswith(network) for name in names), network
    assert {"CLmser-STL10 inference, batch 1", "add_act leaky_sigmoid, 64 MB, forward + backward"} <= set(
        names
    )


def test_flops_of_a_network_are_those_of_its_layers() -> None:
    shape, channels, strides = (50, 3, 96, 96), workloads.CHANNELS, workloads.STRIDES
    flops, _ = networks._reflection(shape, channels, strides, False)
    assert flops == pytest.approx(9.3e9, rel=0.02)  # as KERNELS counts them
    assert networks._reflection(shape, channels, strides, True)[0] == pytest.approx(27.5e9, rel=0.02)


# the command


def test_workloads_are_listed_and_chosen() -> None:
    listed = _bench("--list", "--only", "settle", "--skip", "FBAN")
    assert listed.exit_code == 0
    assert listed.output.splitlines() == [
        f"settle {name} {kind}"
        for name in ("CBAN-CIFAR", "CBAN-Omniglot")
        for kind in ("inference", "training step")
    ] + [
        f"settle_step {name}, {kind}"
        for name in ("128-256-256, 14 px", "40-120-440, 16 px")
        for kind in ("forward", "forward + backward")
    ]


def test_rows_are_told_written_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plot = tmp_path / "found.json", tmp_path / "roof.svg"
    seen: list[int] = []

    def watched(*arguments: Any, **rest: Any) -> Any:
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return contest(*arguments, **rest)

    works = [_layer(), _layer("layer 5→3 down, 9 px", 3, 5, 9, 2, 2, True, True)]
    monkeypatch.setattr(workloads, "workloads", lambda: works)
    monkeypatch.setattr(measure, "contest", watched)
    done = _bench("--json", str(path), "--plot", str(plot), "--threads", "1", "--repeats", "3")
    assert done.exit_code == 0, done.output
    assert seen == [0, 1]
    result = json.loads(path.read_text())
    assert result["threads"] == 1
    assert {"processor", "isa", "torch", "python", "commit", "copy_bandwidth_gbs"} <= set(result)
    for row, work in zip(result["rows"], works, strict=True):
        assert row["workload"] == work.name
        assert row["ratio"] == pytest.approx(row["best_ms"] / row["fused_ms"])
        assert row["best_ms"] == min(ms for name, ms in row["all_ms"].items() if name != "fused")
        assert row["gflops"] == pytest.approx(work.flops / row["fused_ms"] / 1e6)
        assert row["error"] < 1e-3
        assert 0 < row["fma_peak_gflops"] <= row["fma_peak_best_gflops"]
        assert row["workload"] in done.output
    assert "2 single layers: geometric mean" in done.output
    assert plot.read_text().lstrip().startswith("<?xml")
    assert "GFLOP/s" in plot.read_text()


def test_a_plot_as_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure.run([_layer()], repeats=2)
    roofline.draw(result, tmp_path / "roof.png")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png, got 'roof.pdf'"):
        roofline.draw(result, tmp_path / "roof.pdf")


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> tuple[list[Contender], list[torch.Tensor]]:
        ones = torch.ones(4)
        return [Contender("fused", lambda: [1.5 * ones]), Contender("eager", lambda: [ones])], [ones.double()]

    monkeypatch.setattr(workloads, "workloads", lambda: [_work("made up", build)])
    done = _bench()
    assert done.exit_code == 1
    assert "'fused' is off by 5.0e-01 from float64" in done.output
    assert "Traceback" not in done.output


def test_compiled_contenders_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> tuple[list[Contender], list[torch.Tensor]]:
        ones = torch.ones(4)
        names = ("fused", "eager", "eager, compiled")
        return [Contender(name, lambda: [ones]) for name in names], [ones.double()]

    for compiled in (False, True):
        (row,) = measure.run([_work("made up", build)], compiled=compiled, repeats=4)["rows"]
        assert ("eager, compiled" in row["all_ms"]) == compiled


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "no such thing"], "no workload is left by --only no such thing"),
        (["--plot", "roof.pdf"], "--plot: expected a name that ends in .svg or .png, got 'roof.pdf'"),
        (["--json", "no/such/folder/found.json"], "--json: the folder no/such/folder does not exist"),
        (["--isa", "mmx"], "--isa: instruction set 'mmx' does not run here"),
        (["--threads", "0"], "'--threads': 0 is not in the range"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(given: list[str], said: str) -> None:
    done = _bench(*given)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_without_the_library_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmser_kernels import _library

    monkeypatch.setattr(_library, "available", False)
    monkeypatch.setattr(_library, "error", "it was not compiled")
    done = _bench("--only", "add_act")
    assert done.exit_code == 2
    assert "there is nothing to measure: it was not compiled" in done.output
