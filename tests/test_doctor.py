"""`python -m lmser_kernels.doctor`: what it prints with and without the compiled library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lmser_kernels import _library, doctor


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
