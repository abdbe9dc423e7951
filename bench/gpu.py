"""``python -m bench.gpu [--only STAGE …] [--skip STAGE …] [--json FILE] [--minutes N]``: everything that needs a GPU, in one
command and under ten minutes, without a network; ``make gpu``.

The stages run in turn, each in a process of its own with a limit; one that fails loses only itself. The one JSON is
written anew whenever something is known, so that whoever stops this finds what was done until then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from lmser._atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "bench/results/gpu.json"
HEAD, TAIL = 3000, 6000  # characters of a stage's output that are kept: the first error, and how it ended
LOOK = 2.0  # seconds between two looks at what a stage has written


@dataclass(frozen=True)
class Stage:
    """A command with a limit in seconds, of which `kept` are left to it by those before.

    `part`: it writes a JSON of its own, whose path is added to the command. `needs`: a program without which there is
    nothing to run. `elsewhere`: it runs in an empty folder, not in the checkout's.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    kept: float = 10.0
    part: bool = False
    needs: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    elsewhere: bool = False
    instead_of: str | None = None  # run only where that stage was not ok


def stages(arch: str | None = None) -> list[Stage]:
    """All of them; `arch` is what the CUDA sources are compiled for, the GPU's own if None."""
    python = sys.executable
    architecture = arch or capability()
    sanitizer = find_sanitizer() or "compute-sanitizer"
    watched = (python, "-m", "bench.gpu_smoke", "--short")
    # No error of an API call, of which PyTorch makes some on purpose; few, each with the kernel's own lines.
    brief = (
        "--report-api-errors",
        "no",
        "--print-limit",
        "20",
        "--show-backtrace",
        "device",
        "--error-exitcode",
        "9",
    )
    toolkit = Path("/usr/local/cuda")
    cuda = {"LMSER_CUDA": "1"}  # a toolkit that is not found is an error
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ and (toolkit / "bin/nvcc").exists():
        cuda["CUDA_HOME"] = str(toolkit)
    # Of memory that PyTorch keeps for later use the tool does not see who owns it.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Stage("facts", (python, "-m", "bench.gpu", "--facts"), 60, part=True),
        Stage(
            # Not from the checkout's folder: a setuptools before 77 refuses the pyproject.toml that it finds there.
            "build", (python, str(ROOT / "setup.py"), "-q", "build_ext", "--build-lib", str(ROOT),
             "--build-temp", str(ROOT / "build/gpu")), 240, kept=60,
            environment={**cuda, "LMSER_CUDA_ARCH": architecture} if architecture else cuda, elsewhere=True,
        ),
        # Triton's kernels need none of the CUDA sources: without those everything else is still measured.
        Stage(
            "build without CUDA", (python, str(ROOT / "setup.py"), "-q", "build_ext", "--build-lib", str(ROOT),
             "--build-temp", str(ROOT / "build/gpu")), 120, kept=0, environment={"LMSER_CUDA": "0"}, elsewhere=True,
            instead_of="build",
        ),
        # All kernels of the next stages on all cores: one after the other they would take minutes.
        Stage("compile", (python, "-m", "bench.gpu_warm", "--arch", architecture or "90"), 120, kept=30),
        Stage("smoke", (python, "-m", "bench.gpu_smoke", "--jobs", "8"), 90, kept=20),
        Stage("tests", (python, "-m", "bench.gpu_tests"), 180, kept=60, part=True),
        Stage("bench", (python, "-m", "bench.gpu_bench", "--compile-seconds", "160"), 400, kept=240, part=True),
        Stage(
            "memcheck", (sanitizer, "--tool", "memcheck", *brief, *watched), 90, kept=45,
            needs=sanitizer, environment=uncached,
        ),
        Stage(
            "racecheck", (sanitizer, "--tool", "racecheck", *brief, *watched), 90, kept=45,
            needs=sanitizer, environment=uncached,
        ),
    ]  # fmt: skip


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH or in CUDA_HOME."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for folder in (None, f"{home}/bin", f"{home}/compute-sanitizer"):
        found = shutil.which("compute-sanitizer", path=folder)
        if found:
            return found
    return None


def capability() -> str | None:
    """Of the first GPU as nvidia-smi tells it, "90" of a Hopper; nothing of CUDA is started in this process."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    said = done.stdout.strip().replace(".", "")
    return said if said.isdigit() else None


class Record:
    """The JSON: always whole, always what is known by now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": False,
            "stages": {},
        }

    def write(self) -> None:
        with atomic_write(self.path, "w") as file:
            json.dump(self.content, file, indent=1, ensure_ascii=False)

    def stage(self, name: str, **what: Any) -> None:
        self.content["stages"].setdefault(name, {}).update(what)
        self.write()

    def results(self, name: str, part: Path) -> bool:
        """Take over what the stage has written so far."""
        try:
            found = json.loads(part.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if self.content.get(name) != found:
            self.content[name] = found
            self.write()
        return True


def run(stage: Stage, limit: float, record: Record, folder: Path) -> str:
    """Run one stage: "ok", "failed", "too slow", or "not there" where a program is missing."""
    if stage.needs is not None and shutil.which(stage.needs) is None:
        record.stage(stage.name, status="not there", output=f"{stage.needs} was not found")
        return "not there"
    part = folder / f"{stage.name}.json"
    command = [*stage.command, *(("--json", str(part)) if stage.part else ())]
    if stage.name == "tests":
        command += ["--seconds", str(max(20.0, limit - 5.0))]  # parts that have begun are stopped
    if stage.name == "bench":
        command += ["--seconds", str(max(10.0, limit - 25.0))]  # rows that have begun are finished
    log = folder / f"{stage.name}.log"
    place = folder / f"{stage.name}-elsewhere" if stage.elsewhere else ROOT
    place.mkdir(exist_ok=True)
    environment = {**os.environ, **stage.environment}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    record.stage(stage.name, status="running", command=" ".join(command), limit=round(limit))
    began = monotonic()
    status = "too slow"
    with log.open("wb") as output:
        # A session of its own, so that what it starts ends with it.
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while monotonic() - began < limit:
                code = process.poll()
                if stage.part:
                    record.results(stage.name, part)
                if code is not None:
                    status = "ok" if code == 0 else "failed"
                    break
                sleep(min(LOOK, 0.05 + (monotonic() - began) / 10))
        finally:
            _end(process)
    if stage.part:
        record.results(stage.name, part)
    said = log.read_text(encoding="utf-8", errors="replace")
    record.stage(
        stage.name, status=status, code=process.returncode, seconds=round(monotonic() - began, 1), output=shortened(said)
    )  # fmt: skip
    return status


def shortened(said: str) -> str:
    """The beginning and the end."""
    return said if len(said) <= HEAD + TAIL else f"{said[:HEAD]}\n[...]\n{said[-TAIL:]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started, also where it has ended itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
        sleep(0.1)  # for its children to go
    process.wait()


def _say(line: str) -> None:
    print(line, flush=True)


def run_all(
    chosen: Sequence[Stage],
    record: Record,
    minutes: float,
    say: Callable[[str], None] = _say,
) -> dict[str, str]:
    """Every stage in its turn, none with more time than leaves the later ones what is kept for them."""
    deadline = monotonic() + 60 * minutes
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="lmser-gpu-") as folder:
        for place, stage in enumerate(chosen):
            if stage.instead_of is not None and found.get(stage.instead_of, "ok") == "ok":
                continue
            left = deadline - monotonic()
            later = chosen[place + 1 :]
            limit = min(stage.limit, max(left - sum(s.kept for s in later), left / (1 + len(later))))
            if limit < 5:
                record.stage(stage.name, status="not reached")
                found[stage.name] = "not reached"
            else:
                found[stage.name] = run(stage, limit, record, Path(folder))
            passed = 60 * minutes - (deadline - monotonic())
            say(f"{stage.name}: {found[stage.name]}, {passed:.0f} s since the start")
    record.content["finished"] = True
    record.write()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages, write the JSON."""
    names = [stage.name for stage in stages("90")]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names)
    )
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STAGE")
    parser.add_argument("--json", type=Path, default=DEFAULT)
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    parser.add_argument("--facts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.facts:
        return _facts(options.json)
    if shutil.which("nvidia-smi") is None:
        parser.error("there is no GPU: nvidia-smi is not there")
    record = Record(options.json)
    record.write()
    # Stopped from outside: the stage that runs is ended with this process, and the JSON stands as it is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [s for s in stages() if s.name in options.only and s.name not in options.skip]
    found = run_all(chosen, record, options.minutes)
    print(f"{options.json}: " + ", ".join(f"{name} {status}" for name, status in found.items()))
    return any(status != "ok" for status in found.values())


def _facts(path: Path) -> int:
    """What the figures depend on, measured in a process of its own."""
    from bench.gpu_clock import CudaClock
    from bench.gpu_facts import copy_bandwidth, facts, matmul_rates

    clock = CudaClock()
    found = facts("cuda") | {"copy_bandwidth": copy_bandwidth(clock), "matmul_rates": matmul_rates(clock)}
    with atomic_write(path, "w") as file:
        json.dump(found, file, indent=1)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
