"""``python -m bench.gpu_tests [--jobs N] [--json FILE] [-k EXPRESSION]``: the tests of the operations on the GPU, parts of
files, several at a time: most of their time a processor compiles kernels.

The result, part by part, is written as it comes. A part that is not through in time is asked to stop and tells of the
tests that it had made. Exit code 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from lmser._atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
NOTHING_COLLECTED = 5  # pytest's exit code
PART = 2500  # bytes of a file in one part
LAST_WORDS = 8.0  # seconds to stop in: a compilation is finished first


def files(root: Path = ROOT) -> list[Path]:
    """Those that are about the operations, or run on devices, the longest first as far as their size tells."""
    found = [
        path
        for path in (root / "tests").glob("test_*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("mark.operators", "mark.device"))
    ]
    return sorted(found, key=lambda path: -path.stat().st_size)


def parts(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file in parts, as pytest's option --part names them; the first parts of all files first."""
    counted = [(path, max(1, round(path.stat().st_size / PART))) for path in paths]
    most = max((count for _, count in counted), default=0)
    return [
        (path, f"{part}/{count}") for part in range(1, most + 1) for path, count in counted if part <= count
    ]


def run_file(
    path: Path, device: str, expression: str | None, limit: float, part: str = "1/1"
) -> dict[str, Any]:
    """Counts, failures and time of one part of a file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", str(path), "--device", device, "--part", part, "-p", "no:cacheprovider",
            "--require-native", "--tb=short", f"--junitxml={report}",
        ]  # fmt: skip
        command += ["-k", expression] if expression else []
        start = perf_counter()
        found: dict[str, Any] = {"file": path.name, "part": part}
        if limit <= 0:
            return found | {"problem": "not reached"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, errors="replace"
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            output = _stopped(process)
            found |= {"problem": f"not finished in {limit:.0f} s", "output": output[-2000:]}
        found["seconds"] = perf_counter() - start
        if process.returncode == NOTHING_COLLECTED:
            return found | {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
        if report.exists():
            made = counts(report)
            if "problem" in found:  # the one that was interrupted is in the report as if it had passed
                made["passed"] = max(0, made["passed"] - 1)
            return found | made
        said = {"problem": f"pytest ended with {process.returncode}", "output": output[-2000:]}
        return said | found


def _stopped(process: subprocess.Popen[str]) -> str:
    """The output of a pytest that was interrupted, which then writes its report."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=LAST_WORDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def counts(report: Path) -> dict[str, Any]:
    """What a JUnit report says."""
    passed = skipped = 0
    failures = []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            text = " ".join((wrong[0].get("message") or wrong[0].text or "").split())
            failures.append({"test": case.get("name"), "message": text[:500]})
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, say how it went."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_tests", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="write results here, part by part")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all, at most")
    parser.add_argument("-k", dest="expression", help="pytest's")
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    end = monotonic() + options.seconds - LAST_WORDS

    def made(path: Path, part: str) -> dict[str, Any]:
        return run_file(path, options.device, options.expression, end - monotonic(), part)

    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(made, path, part) for path, part in parts(files())]
        for future in as_completed(running):
            result = future.result()
            results.append(result)
            said = [result["problem"]] if "problem" in result else []
            said += [f"{result['passed']} passed, {result['failed']} failed"] if "passed" in result else []
            print(f"{result['file']} {result['part']}: {', '.join(said)}", flush=True)
            for failure in result.get("failures", ()):
                print(f"  {failure['test']}: {failure['message'][:200]}", flush=True)
            if options.json:
                with atomic_write(options.json, "w") as file:
                    json.dump(results, file, indent=1)
    wrong = sum("problem" in r or r["failed"] > 0 for r in results)
    print(f"{len(results)} parts of files, {wrong} with failures")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
