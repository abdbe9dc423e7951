"""Kernels compiled ahead of time for GPUs that are not here: what is read off the binaries, and that nothing is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: this one defines its kernels for Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


@pytest.fixture(scope="module")
def planted() -> dict[str, Any]:
    done = _run("tests/gpu_static_cases.py", "90")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_sound_kernels_have_no_problems(planted: dict[str, Any]) -> None:
    for name in ("half", "tf32", "plain"):
        assert planted[name]["problems"] == []
        assert 0 < planted[name]["registers"] <= 255


def test_matrix_instructions_are_found_where_the_dtype_means_them(planted: dict[str, Any]) -> None:
    for name in ("half", "tf32"):
        assert planted[name]["means_matrix"]
        assert planted[name]["counts"]["HGMMA"] > 0
        assert planted[name]["counts"]["async copies"] > 0
    assert not planted["plain"]["means_matrix"]
    assert planted["plain"]["counts"]["FFMA"] > 0


def test_spills_are_a_problem(planted: dict[str, Any]) -> None:
    (problem,) = planted["spills"]["problems"]
    assert problem.startswith("local memory")


def test_more_shared_memory_than_a_block_may_have_is_a_problem(planted: dict[str, Any]) -> None:
    (problem,) = planted["too much shared memory"]["problems"]
    assert problem.startswith("shared memory")


def test_launches_are_told_apart_as_the_jit_does(planted: dict[str, Any]) -> None:
    """Of an integer: 1, a multiple of 16, neither, 64 bits."""
    assert planted["same kernel"] == [True, True, False, False, False]


def test_products_that_miss_the_tensor_cores_are_a_problem() -> None:
    from bench.gpu_compile import COUNTED, Binary

    binary = Binary("kernel", 90, 64, 0, 1024, dict.fromkeys(COUNTED, 0), True)
    assert binary.problems() == ["no matrix instruction"]


def test_what_cuobjdump_says_is_read() -> None:
    from bench.gpu_compile import count, usage

    said = "  REG:168 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:584 TEXTURE:0\n"
    assert usage(said) == (168, 24)
    with pytest.raises(ValueError, match="registers"):
        usage("nothing")
    sass = "HGMMA.64x128x16.F32.BF16 R24 ; LDGSTS.E.BYPASS.128 ; UTCHMMA gdesc ; STL.64 [R1] ; LDL R2 ; FFMA R1 ;"
    counts = count(sass)
    assert (counts["HGMMA"], counts["HMMA"], counts["UTCMMA"]) == (1, 0, 1)
    assert (counts["async copies"], counts["local"], counts["FFMA"]) == (1, 2, 1)


@pytest.mark.native
def test_a_workload_is_recorded_without_memory() -> None:
    """The largest: nothing of its 0.6 GB is allocated, and its multiply-adds are the definition's."""
    from bench.gpu_entrants import Place
    from bench.gpu_record import record
    from bench.gpu_workloads import workloads

    work = next(w for w in workloads() if "inference, batch 64" in w.name)
    made = record(lambda: work.ours.make(Place("cpu", "bf16"))(), 90)
    assert not made.without_kernel
    assert {operator for operator, _ in made.launches} == {"conv2d_add_act", "conv_transpose2d_add_act"}
    flops, size, below = 0.0, 256, 3
    for width, stride in zip((16, 32, 64, 128, 256, 256, 256), (1, 2, 2, 2, 2, 2, 2), strict=True):
        size //= stride
        flops += 2 * 2.0 * 64 * size * size * width * below * 9
        below = width
    assert sum(c.flops for c in made.costs) == flops
    for _, launch in made.launches:
        assert all(t.is_meta for t in launch.arguments.values() if isinstance(t, torch.Tensor))


def test_the_report_says_what_is_wrong() -> None:
    from bench.gpu_static_report import markdown

    binary = {
        "registers": 255, "shared": 99 * 1024, "stack": 64,
        "counts": {"HGMMA": 4, "HMMA": 0, "DMMA": 0, "UTCMMA": 0, "async copies": 24, "FFMA": 0, "local": 12},
    }  # fmt: skip
    row = {
        "kernel": "conv_up", "operator": "conv2d_add_act", "arch": 90, "kinds": ["bf16"], "warps": 8, "stages": 3,
        "constants": {"BLOCK_M": "128", "ACT": "relu"}, "serves": ["a", "b"], "binary": binary,
    }  # fmt: skip
    other = row | {"arch": 100, "binary": {"problem": "PTXASError: no"}}
    bound = {
        "workload": "a",
        "kind": "bf16",
        "launches": 3,
        "by_cudnn": 1,
        "gflop": 1.5,
        "megabytes": 20.0,
        "ms": 0.1,
    }
    cuda = {"kernel": "settle", "arch": 90, "registers": 100, "spills": 0, "shared": 16}
    report = markdown(
        {
            "triton": "3", "commit": "abc", "command": "python",
            "kernels": [row, row, other], "bounds": [bound], "without_kernel": ["settle"],
            "cuda": [cuda], "problems": ["conv_up spills"],
        }
    )  # fmt: skip
    assert "**2 problems**" in report
    assert (
        "| conv_up | BLOCK_M 128 | bf16 | 8/3 | 2 | 255; 99; 4 HGMMA; 24; 12 local (x2) | not compiled |"
        in report
    )
    assert "| a | bf16 | 3 | 1 | 1.5 | 20 | 0.1 |" in report
    assert "| settle | 90 | 100 | 0 | 16 |" in report
    assert "- conv_up spills" in report
    assert "- settle has no Triton kernel" in report


@pytest.mark.native
def test_every_tile_that_tuning_may_choose_is_recorded() -> None:
    from bench.gpu_entrants import Place
    from bench.gpu_static import _recordings
    from bench.gpu_workloads import layers
    from lmser_kernels.gpu import tiles

    (work, *_) = layers([(2, 64, 64, 8, 1)])
    seen: set[tuple[int, ...]] = set()
    problem = tiles.Problem("conv_up", 2 * 8 * 8, 64, 64 * 9, torch.bfloat16, "ieee", 90)
    for made in _recordings(work, Place("cpu", "bf16"), 90, every_tile=True):
        for _, launch in made.launches:
            given = launch.arguments
            if launch.kernel.__name__ == "conv_up":
                seen.add((given["BLOCK_M"], given["BLOCK_N"], given["BLOCK_K"]))
    assert seen == {(tile.m, tile.n, tile.k) for tile in tiles.candidates(problem)}


@pytest.mark.native
def test_the_report_lists_every_kernel(tmp_path: Path) -> None:
    """A layer and its derivative for Hopper: compiled, read, nothing wrong."""
    done = _run("-m", "bench.gpu_static", "--quick", "--jobs", "1", "--out", str(tmp_path / "quick"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "quick.json").read_text())
    report = (tmp_path / "quick.md").read_text()
    assert result["problems"] == []
    assert result["without_kernel"] == []
    assert result["kernels"]
    for row in result["kernels"]:
        assert row["kernel"] in report
        assert row["binary"]["registers"] > 0
    assert any(
        row["binary"]["counts"]["HGMMA"] + row["binary"]["counts"]["HMMA"] for row in result["kernels"]
    )


def test_the_committed_report_is_of_every_kernel_and_finds_nothing_wrong() -> None:
    result = json.loads((ROOT / "bench/results/gpu_static.json").read_text())
    assert result["problems"] == []
    assert result["without_kernel"] == []
    assert not any(row["problem"] for row in result["cuda"] if "problem" in row)
    launched: set[str] = set()
    for source in (ROOT / "lmser_kernels").rglob("*.py"):
        launched |= set(re.findall(r"(?<!def )\blaunch\(\s*(\w+),", source.read_text()))
    for arch in (80, 90, 100):
        assert {row["kernel"] for row in result["kernels"] if row["arch"] == arch} == launched


@pytest.mark.slow
@pytest.mark.native
def test_every_kernel_of_every_workload(tmp_path: Path) -> None:
    done = _run("-m", "bench.gpu_static", "--out", str(tmp_path / "all"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
