"""Two processes under torchrun: the same numbers as one, one set of files, one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import distributed_cases as cases
import pytest
import torch
from torch import Tensor
from training_cases import assert_same_run
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser.training import ConfigMismatch, Run, Sampler, distributed, load_checkpoint

HERE = Path(__file__).resolve().parent


def torchrun(*words: str, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all cases."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    out = tmp_path_factory.mktemp("two")
    child = torchrun(str(HERE / "distributed_cases.py"), str(out))
    _, errors = child.communicate(timeout=500)
    assert child.returncode == 0, errors
    return out


def both(out: Path, case: str) -> tuple[dict, dict]:
    first, second = (torch.load(out / f"{case}-{rank}.pt", weights_only=False) for rank in (0, 1))
    return first, second


def close(a: object, b: object, tolerance: float) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key], tolerance)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            close(x, y, tolerance)
    elif isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    else:
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("case", cases.SAME)
def test_equals_one_process(two, case):
    """Weights, losses, gradient norms and metrics."""
    first, second = both(two, case)
    alone = cases.compared(*cases.SAME[case], None)
    assert first["extras"].keys() > {"body.0.weight.grad", "critic.bias.grad"}
    close(first, alone, 1e-12 if cases.SAME[case][0] == torch.float64 else 1e-4)
    for key in ("weights", "curve", "extras"):
        close(first[key], second[key], 0)
    assert first["evaluations"][24]["mse"] == second["evaluations"][24]["mse"]


def test_the_slices_of_an_epoch_hold_each_sample_once(two):
    first, second = both(two, "covered")
    sampler = Sampler(19, 4, seed=3)
    for name in ("tensors", "dataset"):
        assert len(first[name]) == len(second[name]) == 10
        for step, (a, b) in enumerate(zip(first[name], second[name], strict=True)):
            assert a + b == sampler.indices(step).tolist()
        epoch = [n for step in range(5) for n in (*first[name][step], *second[name][step])]
        assert sorted(epoch) == list(range(19))
    assert not set(first["dataset noise"]) & set(second["dataset noise"])


def test_writes_once(two):
    for case in cases.SAME:
        assert sorted(path.name for path in (two / case).iterdir()) == ["checkpoint.pt", "log.jsonl"]
        log = Run(two / case).log()
        assert [line["step"] for line in log if "loss" in line] == list(range(1, 25))
        assert [line["step"] for line in log if "evaluation" in line] == [0, 10, 24]


def test_resumes_to_the_same_bits(two):
    assert_same_run(two / "parts", two / "whole")
    first, second = both(two, "resumed")
    assert first["whole"] == first["parts"] == second["whole"] == second["parts"]
    assert first["from"] == second["from"] == 15
    assert load_checkpoint(two / "whole" / "checkpoint.pt")["identity"]["processes"] == 2


def test_each_process_draws_its_own_noise_and_the_first_draws_that_of_a_single_one(two, tmp_path):
    first, second = both(two, "resumed")
    assert not set(first["drawn"]) & set(second["drawn"])
    cases.DRAWN.clear()
    cases.noisy(tmp_path)
    assert cases.DRAWN[0] == first["drawn"][0]


def test_refuses_another_number_of_processes_by_name(two):
    with pytest.raises(ConfigMismatch, match="processes was 2 when the run began and is 1 now"):
        cases.noisy(two / "whole", resume=True)


def test_a_signal_to_one_stops_all_after_the_same_step(two):
    first, second = both(two, "stopped")
    assert first["step"] == second["step"] == first["saved"]
    assert 9 <= first["step"] < 24
    assert first["signum"] == second["signum"] == signal.SIGTERM
    assert_same_run(two / "stopped", two / "whole")
    assert first["curve"] == second["curve"] == Run(two / "whole").result().curve


def test_a_loss_that_breaks_in_one_ends_all(two):
    first, second = both(two, "diverged")
    assert first == second
    assert first["step"] == 9
    assert len(first["curve"]) == 8
    assert Run(two / "diverged").step == 5


def test_errors_are_told_in_all(two):
    first, second = both(two, "refused")
    assert first == second
    for message, start in zip(
        first["messages"],
        ("run_dir: ", "cannot resume ", "identity: expected plain values", "no room for pictures"),
        strict=True,
    ):
        assert message.startswith(start)


def test_a_job_of_an_experiment(two):
    first, second = both(two, "job")
    assert first == second
    assert first["metrics"] == first["again"]
    assert sorted(first["metrics"]) == [10, 24]
    assert "body.0.weight.grad" in first["extras"]
    assert "a: 1 there, 2 asked for" in first["refused"]
    names = sorted(path.name for path in (two / "experiment" / "job").iterdir())
    assert names == ["log.jsonl", "pictures.safetensors", "result.json", "weights.safetensors"]


# Without torchrun, and what it may not be asked.


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined("cuda:1") as device:
        assert device == torch.device("cuda:1")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.broadcast("a") == "a"
    assert distributed.on_main(lambda: 3) == 3
    assert distributed.barrier() is None


def test_refuses_a_device_that_is_not_every_ones(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.NoDevice, match="device: expected 'cuda' with several processes"):
        distributed.joined("cuda:0").__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(distributed.NoDevice, match="process 1 of this machine has no CUDA device"):
        distributed.joined("cuda").__enter__()


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """Stopped by a signal to the second process, continued, and refused: each time one voice."""

    def run(*options: str) -> tuple[int, str, str]:
        out = tmp_path / "out"
        words = ("run", "small", "--data", str(tmp_path), "--out", str(out), *options)
        child = torchrun(
            str(HERE / "distributed_cli.py"), *words, STOP_IN_THE_SECOND_PROCESS=str(tmp_path / "stopped")
        )
        written, errors = child.communicate(timeout=300)
        return child.returncode, written, errors

    status, written, errors = run()
    assert status != 0
    assert errors.count("stopped by SIGTERM after step ") == 1, errors
    assert errors.count("Continue with: lmser run small") == 1
    assert "results:" not in written
    assert not (tmp_path / "out" / "results.json").exists()

    status, written, errors = run("--resume")
    assert status == 0, errors
    assert written.count("results:") == 1
    assert (tmp_path / "out" / "figures" / "small.svg").stat().st_size > 0
    assert (tmp_path / "out" / "report.html").stat().st_size > 0
    job = tmp_path / "out" / "small" / "lmser" / "seed-0"
    assert '"processes": 2' in (job / "result.json").read_text()

    status, written, errors = run()
    assert status != 0
    assert errors.count("is not empty: continue that run with --resume") == 1, errors
