"""``python -m bench.gpu_tests [--jobs N] [--json FILE] [-k EXPRESSION]``: the tests of the operations on the GPU, several
files at a time: most of their time a processor compiles kernels.

The result, file by file, is written as it comes. Exit code 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import perf_counter
from typing import Any

from lmser._atomic import atomic_write

ROOT = Path(__file__).resolve().parents[1]
NOTHING_COLLECTED = 5  # pytest's exit code


def files(root: Path = ROOT) -> list[Path]:
    """Those that are about the operations, or run on devices, the longest first as far as their size tells."""
    found = [
        path
        for path in (root / "tests").glob("test_*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("operators", "mark.device"))
    ]
    return sorted(found, key=lambda path: -path.stat().st_size)


def run_file(path: Path, device: str, expression: str | None, limit: float) -> dict[str, Any]:
    """Counts, failures and time of one file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", str(path), "--device", device, "-p", "no:cacheprovider", "--tb=short",
            f"--junitxml={report}",
        ]  # fmt: skip
        command += ["-k", expression] if expression else []
        start = perf_counter()
        found: dict[str, Any] = {"file": path.name}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=limit
            )
        except subprocess.TimeoutExpired as late:
            output = (
                late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
            )
            return found | {"problem": f"not finished in {limit:.0f} s", "output": output[-2000:]}
        found["seconds"] = perf_counter() - start
        if done.returncode == NOTHING_COLLECTED:
            return found | {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
        if not report.exists():
            return found | {"problem": f"pytest ended with {done.returncode}", "output": _tail(done)}
        return found | counts(report)


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr)[-2000:]


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
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, help="write results here, file by file")
    parser.add_argument("--seconds", type=float, default=600.0, help="of a file, at most")
    parser.add_argument("-k", dest="expression", help="pytest's")
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(run_file, path, options.device, options.expression, options.seconds)
            for path in files()
        ]
        for future in as_completed(running):
            result = future.result()
            results.append(result)
            said = result.get("problem") or f"{result['passed']} passed, {result['failed']} failed"
            print(f"{result['file']}: {said}", flush=True)
            for failure in result.get("failures", ()):
                print(f"  {failure['test']}: {failure['message'][:200]}", flush=True)
            if options.json:
                with atomic_write(options.json, "w") as file:
                    json.dump(results, file, indent=1)
    wrong = sum(bool(r.get("problem")) or r["failed"] > 0 for r in results)
    print(f"{len(results)} files, {wrong} with failures")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
