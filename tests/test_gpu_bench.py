"""The GPU benchmark's logic on a CPU with tiny shapes: contenders agree, the wrong get no speed, every row is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from bench import gpu_bench, gpu_settling
from bench.gpu_clock import CpuClock
from bench.gpu_contest import CompileBudget, grid, measure
from bench.gpu_entrants import Ask, Entrant, Place, Workload
from bench.gpu_layers import dual, elementwise
from bench.gpu_workloads import layers, reflection, settling, workloads

pytestmark = pytest.mark.native
TINY = (3, (4, 8), (1, 2))
NET = gpu_settling.Spec(2, (3, 8, 16), 8, (1, 2), 3, 3)


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def _row(work: Workload, kind: str = "tf32", **rest: Any) -> dict[str, Any]:
    row = measure(work, kind, CpuClock(), rounds=2, budget=CompileBudget(0.0), **rest)
    json.dumps(row)
    return row


def _problems(row: dict[str, Any]) -> list[str]:
    return [e["problem"] for e in row["entrants"] if e["problem"] and not e["problem"].startswith("not run")]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_reflection_networks_agree(training: bool, kind: str) -> None:
    asks = (Ask("eager", 0.0), Ask("compiled", 0.0))
    work = reflection("tiny", TINY, (2, 3, 9, 8), training, ("default",), asks=asks, frames=2)
    row = _row(work, kind)
    assert not _problems(row)
    assert [e["name"] for e in row["entrants"]] == [
        "fused", "fused, CUDA graph", "eager", "eager, channels-last", "compiled, default",
    ]  # fmt: skip
    eager, compiled = row["asks"]
    assert eager["met"] is True
    assert compiled["met"] is None
    assert row["entrants"][-1]["problem"] == "not run: the time for compiling is spent"
    assert row["ms_per_frame"] == row["ours_ms"] / 2


def test_the_fully_connected_network_agrees_captured_too() -> None:
    row = _row(reflection("tiny", ((12, 8, 4),), (5, 12), True, graphed=True, asks=(Ask("graphed", 0.0),)))
    assert not _problems(row)
    assert row["asks"][0]["met"] is True
    assert row["ratios"]["graphed"]["of"] == "eager, CUDA graph"


@pytest.mark.parametrize("training", [True, False])
def test_attractor_networks_agree(training: bool) -> None:
    row = _row(settling("tiny", NET, training, (Ask("eager", 0.0),), ("default",)))
    assert not _problems(row)
    assert len(row["entrants"]) == 2 + 2 * 2 + 2 + 1  # ours, the cached loop, the paper's, and one compiled


def test_every_sweep_is_made_by_all() -> None:
    """The loops' states after the last sweep are `settle`'s, and one sweep fewer gives others."""
    place = Place("cpu", "float64")
    fused, cached, paper = (
        gpu_settling.step(NET, True, title, True, None, place)()
        for title in ("fused", "cached loop", "paper's loop")
    )
    fewer = gpu_settling.step(replace(NET, sweeps=2), True, "fused", True, None, place)()
    for a, b, c in zip(fused, cached, paper, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    assert not torch.allclose(fused[0], fewer[0], rtol=1e-6)


def test_layers_agree() -> None:
    for work in layers([(2, 1, 4, 9, 1), (2, 4, 6, 8, 2)]):
        row = _row(work)
        assert not _problems(row), (work.name, row)
        assert row["ratios"]["eager"]["ratio"] > 0


def test_the_update_from_both_neighbours_agrees_with_the_concat_trick() -> None:
    row = _row(dual("tiny", (2, 3, 4, 5, 6)))
    assert not _problems(row)
    # All of them captured, too: beside a replayed graph, a call would be measured by its host's work.
    names = {entrant["name"] for entrant in row["entrants"]}
    assert {"concat trick", "concat trick, CUDA graph", "eager, CUDA graph"} <= names


def test_add_act_is_held_to_the_copy() -> None:
    row = _row(elementwise("tiny", 1 << 19, (Ask("copy", 0.9),)), copy_bandwidth=1.0)
    assert not _problems(row)
    assert row["asks"][0]["met"] is True
    assert _row(elementwise("tiny", 1 << 19, (Ask("copy", 0.9),)))["asks"][0]["met"] is None


def _entrant(name: str, group: str, make: Callable[[Place], Callable[[], Sequence[Tensor]]]) -> Entrant:
    return Entrant(name, group, make)


def _ones(factor: float, place: Place) -> Callable[[], Sequence[Tensor]]:
    return lambda: [torch.full((8,), factor, dtype=place.dtype)]


def _fails(place: Place) -> Callable[[], Sequence[Tensor]]:
    raise RuntimeError("no memory left")


def test_a_wrong_result_gets_no_speed() -> None:
    work = Workload(
        "made up",
        (
            _entrant("fused", "ours", partial(_ones, 1.5)),
            _entrant("eager", "eager", partial(_ones, 1.0)),
            _entrant("another", "eager", _fails),
        ),
        asks=(Ask("eager", 1.0),),
    )
    row = _row(work)
    fused, eager, another = row["entrants"]
    assert "ms" not in fused
    assert fused["problem"].startswith("off by 5.0e-01")
    assert "ms" in eager
    assert another["problem"] == "RuntimeError: no memory left"
    assert row["ours_ms"] is None
    assert row["asks"][0]["met"] is None


def test_the_grid_is_told_by_its_mean_and_its_lowest() -> None:
    rows = [
        {"workload": name, "kind": "tf32", "ratios": {"eager": {"without_graph": r, "ratio": 9.0}}}
        for name, r in (("layer a", 4.0), ("layer b", 0.9), ("network", 100.0))
    ]
    found = grid(rows, 2)
    assert found is not None
    assert found["as called"]["geometric_mean"] == pytest.approx(3.6**0.5)
    assert found["as called"]["lowest"] == 0.9
    assert found["as called"]["lowest_of"] == "layer b, tf32"
    assert found["as called"]["met"] is False
    part = grid(rows, 3)
    assert part is not None
    assert part["as called"]["met"] is None
    assert grid([], 2) is None


def test_rows_are_written_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = tmp_path / "gpu.json"
    seen = []

    def wrong(*arguments: Any) -> dict[str, Any]:
        seen.append(json.loads(path.read_text())["rows"] if path.exists() else [])
        if len(seen) == 2:
            raise RuntimeError("out of luck")
        return measure(*arguments)

    tiny = [reflection(name, TINY, (2, 3, 8, 8), False, kinds=("tf32",)) for name in ("a", "b", "c")]
    monkeypatch.setattr(gpu_bench, "workloads", lambda: tiny)
    monkeypatch.setattr(gpu_bench, "measure", wrong)
    result = gpu_bench.run(CpuClock(), path=path, rounds=1)
    assert [len(rows) for rows in seen] == [0, 1, 2]
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result["rows"][1]["problem"] == "RuntimeError: out of luck"
    assert {"copy_bandwidth", "matmul_rates", "torch", "triton", "commit", "smi", "grid"} <= set(result)
    assert capsys.readouterr().out.count("\n") == 3
    late = gpu_bench.run(CpuClock(), only="c", seconds=-1.0, rounds=1)
    assert [row["problem"] for row in late["rows"]] == ["not reached: the time is up"]


def test_a_process_that_ends_within_a_row_loses_that_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, turns = tmp_path / "gpu.json", []
    tiny = [reflection(name, TINY, (2, 3, 8, 8), False, kinds=("tf32",)) for name in ("a", "b", "c", "d")]
    monkeypatch.setattr(gpu_bench, "workloads", lambda: tiny)

    def measured(work: Workload, *rest: Any) -> dict[str, Any]:
        if work.name == "b":
            raise KeyboardInterrupt  # stands for a process that is killed: it passes `except Exception`
        return measure(work, *rest)

    def process(command: list[str], **_: Any) -> int:
        turns.append(command)
        before = json.loads(path.read_text()) if "--behind" in command else None
        monkeypatch.setattr(gpu_bench, "_lost", lambda clock: len(turns) == 2 and len(rows(path)) == 3)
        try:
            gpu_bench.run(CpuClock(), path=path, rounds=1, before=before)
        except KeyboardInterrupt:
            return -9
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def rows(path: Path) -> list[dict[str, Any]]:
        return json.loads(path.read_text())["rows"]

    monkeypatch.setattr(gpu_bench, "measure", measured)
    monkeypatch.setattr(gpu_bench.subprocess, "call", process)
    assert gpu_bench.in_turns([], path, 1000.0, 7.0) == 0
    assert [row["workload"] for row in rows(path)] == ["a", "b", "c", "d"]
    assert [row.get("problem") for row in rows(path)] == [None, "its process ended with -9", None, None]
    assert ["--behind" in command for command in turns] == [False, True, True]
    assert json.loads(path.read_text())["complete"]


def test_a_process_that_never_begins_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bench.subprocess, "call", lambda command: 1)
    assert gpu_bench.in_turns([], tmp_path / "gpu.json", 1000.0, 7.0) == 1


def test_time_for_compiling_is_kept_for_the_default_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(work: Workload, kind: str, clock: Any, rounds: int, budget: CompileBudget, copy: float) -> Any:
        seen.append((budget.allows("default"), budget.allows("max-autotune-no-cudagraphs")))
        budget.left -= 20.0
        raise RuntimeError("not measured")

    tiny = [reflection(n, TINY, (2, 3, 8, 8), True, ("default",), kinds=("tf32",)) for n in ("a", "b", "c")]
    monkeypatch.setattr(gpu_bench, "workloads", lambda: tiny)
    monkeypatch.setattr(gpu_bench, "measure", note)
    gpu_bench.run(CpuClock(), compile_seconds=30.0)
    assert seen == [(True, True), (True, False), (False, False)]


def test_eager_networks_compile_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `fullgraph` a break in the graph is an error; what the compiler makes of it is not tested here."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode=None, **k: compiled(f, backend="eager", **k))
    work = reflection("tiny", TINY, (2, 3, 8, 8), True, ("default",))
    row = measure(work, "tf32", CpuClock(), rounds=1)
    assert not _problems(row)
    assert row["entrants"][-1]["name"] == "compiled, default, CUDA graph"
    row = measure(settling("tiny", NET, False, (), ("default",)), "tf32", CpuClock(), rounds=1)
    assert not _problems(row)
    assert row["ratios"]["compiled"]["ratio"] > 0


def test_workloads_have_what_the_table_asks() -> None:
    found = workloads()
    assert len({work.name for work in found}) == len(found)
    asked = {ask.against for work in found for ask in work.asks}
    assert asked == {"eager", "compiled", "graphed", "graphed-compiled", "memory", "copy", "ms per frame"}
    for work in found:
        assert set(work.kinds) <= set(work.tolerance)
        assert work.ours.group == "ours"
        if any(ask.against == "compiled" for ask in work.asks):
            assert any(e.group == "compiled" for e in work.entrants)
