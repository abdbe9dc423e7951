"""`make gpu`: stages that fail, hang or are missing lose only themselves, and the JSON is whole at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bench import gpu, gpu_smoke, gpu_tests

PART = """
import json, sys, time
path = sys.argv[sys.argv.index("--json") + 1]
json.dump({"rows": [1, 2]}, open(path, "w"))
print("two rows", flush=True)
time.sleep(float(sys.argv[1]))
"""


def _python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def _run(tmp_path: Path, *chosen: gpu.Stage, minutes: float = 1.0) -> tuple[dict[str, str], dict[str, Any]]:
    path = tmp_path / "gpu.json"
    said: list[str] = []
    found = gpu.run_all(chosen, gpu.Record(path), minutes, said.append)
    assert len(said) == len(chosen)
    return found, json.loads(path.read_text())


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    found, written = _run(
        tmp_path,
        gpu.Stage("first", _python("print('done'); raise SystemExit(3)"), 30),
        gpu.Stage("second", ("no-such-program",), 30, needs="no-such-program"),
        gpu.Stage(
            "third", _python("import os; print(os.environ['WHERE'])", "x"), 30, environment={"WHERE": "here"}
        ),
    )
    assert found == {"first": "failed", "second": "not there", "third": "ok"}
    assert written["finished"]
    assert written["stages"]["first"]["code"] == 3
    assert written["stages"]["first"]["output"] == "done\n"
    assert written["stages"]["third"]["output"] == "here\n"


def test_a_stage_that_stands_in_for_another_runs_where_that_failed(tmp_path: Path) -> None:
    def made(code: int) -> dict[str, str]:
        first = gpu.Stage("first", _python(f"raise SystemExit({code})"), 30)
        second = gpu.Stage("second", _python("pass"), 30, instead_of="first")
        return gpu.run_all([first, second], gpu.Record(tmp_path / "gpu.json"), 1.0, lambda line: None)

    assert made(3) == {"first": "failed", "second": "ok"}
    assert made(0) == {"first": "ok"}
    alone = gpu.Stage("second", _python("pass"), 30, instead_of="first")
    assert gpu.run_all([alone], gpu.Record(tmp_path / "gpu.json"), 1.0, lambda line: None) == {}


def test_of_a_long_output_the_beginning_and_the_end_are_kept() -> None:
    said = gpu.shortened("first" + "x" * 100_000 + "last")
    assert said.startswith("first")
    assert said.endswith("last")
    assert len(said) < 10_000
    assert gpu.shortened("short") == "short"


def test_what_a_stage_wrote_before_its_time_was_up_is_kept(tmp_path: Path) -> None:
    found, written = _run(tmp_path, gpu.Stage("slow", _python(PART, "60"), 6, part=True))
    assert found == {"slow": "too slow"}
    assert written["slow"] == {"rows": [1, 2]}
    assert written["stages"]["slow"]["output"] == "two rows\n"
    assert written["stages"]["slow"]["seconds"] < 30


def test_stages_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    found, written = _run(tmp_path, gpu.Stage("late", _python("pass"), 30), minutes=0.0)
    assert found == {"late": "not reached"}
    assert written["stages"]["late"] == {"status": "not reached"}


def test_stopped_from_outside_it_leaves_a_whole_file_and_no_process(tmp_path: Path) -> None:
    path, alive = tmp_path / "gpu.json", tmp_path / "alive"
    child = f"import pathlib, os, time; pathlib.Path({str(alive)!r}).write_text(str(os.getpid())); time.sleep(120)"
    code = (
        "import sys, shutil; from pathlib import Path; from bench import gpu\n"
        "shutil.which = lambda *a, **k: 'there'\n"
        f"gpu.stages = lambda *a: [gpu.Stage('facts', (sys.executable, '-c', {child!r}), 100)]\n"
        f"gpu.main(['--json', {str(path)!r}])\n"
    )
    root = Path(gpu.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    try:
        for _ in range(600):
            if alive.exists() and alive.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
    written = json.loads(path.read_text())
    assert written["stages"]["facts"]["status"] == "running"
    assert not written["finished"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)


def test_a_stage_leaves_the_later_ones_what_is_kept_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def run(stage: gpu.Stage, limit: float, *rest: Any) -> str:
        given[stage.name] = limit
        return "ok"

    monkeypatch.setattr(gpu, "run", run)
    chosen = [
        gpu.Stage("a", (), 300, kept=1),
        gpu.Stage("b", (), 100, kept=50),
        gpu.Stage("c", (), 500, kept=40),
    ]
    gpu.run_all(chosen, gpu.Record(tmp_path / "gpu.json"), 3.0, lambda line: None)
    assert given["a"] == pytest.approx(90, abs=2)
    assert given["b"] == 100
    assert given["c"] == pytest.approx(180, abs=2)
    gpu.run_all(chosen, gpu.Record(tmp_path / "gpu.json"), 1.0, lambda line: None)
    assert given["a"] == pytest.approx(20, abs=1)
    assert sum(stage.kept for stage in gpu.stages("90")) < 60 * 9.5


def test_the_stages_are_those_asked_for() -> None:
    found = {stage.name: stage for stage in gpu.stages("90")}
    assert list(found) == [
        "facts", "build", "build without CUDA", "compile", "smoke", "tests", "bench", "memcheck", "racecheck",
    ]  # fmt: skip
    # A toolkit that is not found, or a source that does not compile, is an error there, and the next stage's matter.
    assert {"LMSER_CUDA_ARCH": "90", "LMSER_CUDA": "1"}.items() <= found["build"].environment.items()
    assert found["build without CUDA"].instead_of == "build"
    for name in ("facts", "tests", "bench"):
        assert found[name].part
    for name in ("memcheck", "racecheck"):
        assert found[name].needs is not None
        assert name in found[name].command


def test_test_files_are_counted_from_their_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure message='off by\n one'>x</failure>"
        "</testcase><testcase name='c'><skipped/></testcase><testcase name='d'><error>broken</error></testcase>"
        "</testsuite></testsuites>"
    )
    found = gpu_tests.counts(report)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"][0] == {"test": "b", "message": "off by one"}
    names = {path.name for path in gpu_tests.files()}
    cut = gpu_tests.parts(gpu_tests.files())
    assert {path.name for path, _ in cut[: len(names)]} == names
    of_one = [part for path, part in cut if path.name == "test_settle.py"]
    assert of_one == [f"{number}/{len(of_one)}" for number in range(1, len(of_one) + 1)]
    assert len(of_one) > 1
    assert {"test_add_act.py", "test_conv2d_add_act.py", "test_settle.py"} <= names
    assert "test_data_idx.py" not in names


def test_a_part_that_is_stopped_tells_what_it_had_made(tmp_path: Path) -> None:
    options = "".join(f"    parser.addoption('--{name}')\n" for name in ("device", "part"))
    options += "    parser.addoption('--require-native', action='store_true')\n"
    (tmp_path / "conftest.py").write_text(f"def pytest_addoption(parser):\n{options}")
    path = tmp_path / "test_slow.py"
    path.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    found = gpu_tests.run_file(path, "cpu", None, 4.0)
    assert found["problem"] == "not finished in 4 s"
    assert found["passed"] == 1
    assert gpu_tests.run_file(path, "cpu", None, 0.0)["problem"] == "not reached"


@pytest.mark.native
@pytest.mark.parametrize("name", gpu_smoke.cases())
def test_the_smoke_test_agrees_with_float64(name: str) -> None:
    for kind in ("float64", "bfloat16"):
        assert gpu_smoke.run(name, kind, "cpu") < gpu_smoke.TOLERANCE[kind]


@pytest.mark.native
def test_operations_of_the_smoke_test_run_apart(capsys: Any) -> None:
    given = ["--short", "--device", "cpu", "--only", "add_act, ", "--jobs", "2"]
    assert gpu_smoke.main(given) == 0
    said = capsys.readouterr().out
    assert said.count("ok") >= 2
    assert "0 of" in said


@pytest.mark.native
def test_the_smoke_test_can_fail(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(gpu_smoke, "run", lambda name, kind, device: 1.0 if kind == "bfloat16" else 0.0)
    assert gpu_smoke.main(["--short", "--device", "cpu", "--only", "add_act, "]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said
    assert "ok" in said
