"""Where a result came from: machine, versions, commit. No path, user or host name is recorded."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from lmser_kernels import _library

__all__ = ["commit", "machine"]


def machine(device: torch.device | str = "cpu") -> dict[str, str]:
    """What decides speed and rounding on this machine, each as a short text for a report."""
    chosen = torch.device(device)
    facts = {
        "device": f"{torch.cuda.get_device_name(chosen)} ({chosen})"
        if chosen.type == "cuda"
        else str(chosen),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "kernels": _kernels(chosen),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "lmser": _version("lmser"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    revision = commit()
    if revision is not None:
        facts["commit"] = revision
    return facts


def _kernels(device: torch.device) -> str:
    if not _library.available:
        return f"reference ({_library.error})"
    if device.type != "cuda":
        return "compiled"
    return "Triton" if _library.triton_error is None else f"compiled ({_library.triton_error})"


def commit() -> str | None:
    """The commit of the checkout that this package is imported from, marked where files differ from it.

    None for an installed copy, even where that lies inside somebody else's repository.
    """
    root = Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    revision = _git(root, "rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{revision} with uncommitted changes" if changed else revision


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (run from a checkout)"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
