"""`python -m lmser_kernels.doctor`: what it prints with and without the compiled library."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
import torch

from lmser_kernels import _library, chips, doctor


def test_without_the_library_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(_library, "available", False)
    monkeypatch.setattr(_library, "module", None)
    monkeypatch.setattr(_library, "error", "it was not compiled")
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["compiled", "library", "not", "loaded:", "it", "was", "not", "compiled"]
    assert any(line.split() == ["add_act", "cpu:", "reference"] for line in lines)


@pytest.mark.native
def test_with_the_library(capsys):
    assert doctor.main(["--json", "--seconds", "0.02"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["library"]["loaded"] is True
    assert report["library"]["reason"] is None
    assert report["versions"]["torch"] == torch.__version__
    # Triton's interpreter, in which these tests run, is a path of its own.
    assert [p for p in report["paths"]["tied_conv2d"]["cpu"] if p != "triton"] == ["native", "reference"]
    assert set(report["paths"]) == set(doctor.OPERATIONS)
    assert report["cpu"]["isa"] in report["build"]["isa"]
    assert all(value > 0 for peaks in report["measured"].values() for value in peaks.values())


@pytest.mark.native
def test_text(capsys):
    assert doctor.main(["--seconds", "0.02"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("compiled library   loaded, ")
    assert "FMA peak" in text
    assert "conv2d_add_act            cpu: native, " in text


def test_bad_arguments(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--seconds", "0"])
    assert "--seconds must be positive" in capsys.readouterr().err


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "lmser_kernels.doctor", "--seconds", "0.02"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("compiled library")
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["--device", "cuda:99"], ["--device", "gpu"], ["--device", "meta"]])
def test_device_that_is_not_there_is_told_in_one_sentence(words, capsys):
    with pytest.raises(SystemExit):
        doctor.main(words)
    *_, said = capsys.readouterr().err.splitlines()
    assert f"--device: {words[1]!r} is " in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--measure"])
    assert "--measure: expected a GPU to measure: " in capsys.readouterr().err
    assert "gpu" not in doctor.examine(0.02)


def test_gpu_is_described(monkeypatch):
    stated = {
        "name": "NVIDIA H200",
        "capability": "9.0",
        "memory_gib": 139.8,
        "multiprocessors": 132,
        "driver": None,
    }
    rates = {"copy_gbs": 4300.0, "bfloat16_gflops": 790e3, "tf32_gflops": 400e3, "float32_gflops": 60e3}
    monkeypatch.setattr(chips, "facts", lambda device: dict(stated))
    monkeypatch.setattr(chips, "chip_of", lambda device: chips.chip_named("NVIDIA H200"))
    monkeypatch.setattr(chips, "measure", lambda device, seconds: rates)
    report = doctor.examine(0.02, torch.device("cuda", 0), measure=True)
    text = doctor.render(report)
    assert "NVIDIA H200 (cuda:0), capability 9.0, 132 multiprocessors, 139.8 GiB, driver unknown" in text
    assert "bfloat16 989, tf32 494, float32 67, float64 67 TFLOP/s, copy 4800 GB/s" in text
    assert "bfloat16 790.0, tf32 400.0, float32 60.0 TFLOP/s, copy 4300 GB/s" in text
    json.dumps(report)


@pytest.mark.parametrize(
    ("name", "arch", "gbs"),
    [
        ("NVIDIA H200", 90, 4800),
        ("NVIDIA H100 80GB HBM3", 90, 3350),
        ("NVIDIA H100 PCIe", 90, 2000),
        ("NVIDIA A100-SXM4-80GB", 80, 2039),
        ("NVIDIA A100-SXM4-40GB", 80, 1555),
        ("NVIDIA B200", 100, 8000),
    ],
)
def test_chips_are_found_by_the_name_that_torch_gives(name, arch, gbs):
    found = chips.chip_named(name)
    assert found is not None
    assert (found.arch, found.gbs) == (arch, gbs)
    rate = found.gflops
    assert rate(torch.float16) == rate(torch.bfloat16) > rate(torch.float32, "tf32")
    assert rate(torch.float32, "tf32") == pytest.approx(3 * rate(torch.float32, "tf32x3"))
    assert rate(torch.float32, "tf32x3") > rate(torch.float32) >= rate(torch.float64)


def test_unknown_chips_have_no_rates():
    assert chips.chip_named("Some other accelerator") is None


def test_rates_are_measured_under_switches_that_are_put_back(monkeypatch):
    """Without a GPU: what is asked of it, not what it answers."""
    seen = []

    def product(device, dtype, seconds):
        seen.append((dtype, torch.backends.cuda.matmul.fp32_precision))
        return 1.0

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(chips, "_copy_gbs", lambda device, seconds: 2.0)
    monkeypatch.setattr(chips, "_matmul_gflops", product)
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision
    found = chips.measure(torch.device("cuda"))
    assert list(found) == ["copy_gbs", "bfloat16_gflops", "tf32_gflops", "float32_gflops"]
    assert seen == [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
    assert (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision) == before


def test_time_of_one_call_is_that_of_many(monkeypatch):
    class Event:
        """A device that takes 1 ms for a call."""

        calls, elapsed = 0, 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = Event.calls

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return float(end.at - self.at)

    def work():
        Event.calls += 1

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert chips._seconds_each(work, 0.1) == pytest.approx(1e-3)
    assert 50 <= Event.calls < 400
