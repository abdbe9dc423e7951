"""The folder of one experiment: refused when it holds something else, continued when it holds the same.

``plan.json`` is written first and says what was asked for. A later call with ``--resume`` must ask for the
same, so that a folder never mixes the results of two configurations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmser.experiments.results import write_json
from lmser.training.distributed import on_main

__all__ = ["RunRefused", "open_run_directory"]

_PLAN = "plan.json"


class RunRefused(ValueError):
    """What was asked for cannot be run, or not in that directory; the message is one sentence for the user."""


def open_run_directory(path: Path, plan: Mapping[str, Any], *, resume: bool) -> Path:
    """Make `path` a run directory for `plan` and return it; of several processes the first one does.

    Args:
        path: made with its parents where missing.
        plan: plain JSON values that decide the numbers (experiment, scale, seeds, configurations, device
        kind).
        resume: continue what is there; an empty or missing folder is started. Without it a folder that is
            not empty is refused.

    Raises:
        RunRefused: the folder is not empty and `resume` is False, it was not made by this package, or its
            plan differs (the message names the first difference). NotADirectoryError where `path` is a file.
            Nothing is written.
    """
    return on_main(lambda: _open(path, plan, resume))


def _open(path: Path, plan: Mapping[str, Any], resume: bool) -> Path:
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, expected a folder for the run")
    wanted = json.loads(json.dumps(plan))  # tuples become lists, as they come back from the file
    # A kill between the folder's creation and its first file leaves nothing, or a temporary file that nobody
    # reads.
    entries = [entry.name for entry in path.iterdir() if not _temporary(entry.name)] if path.exists() else []
    if not entries:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / _PLAN, wanted)
        return path
    if not resume:
        raise RunRefused(
            f"{path} is not empty: continue that run with --resume, or choose another folder with --out"
        )
    found = _read_plan(path)
    difference = _first_difference(found, wanted)
    if difference is not None:
        raise RunRefused(
            f"{path} holds a run with other settings ({difference}): choose another folder with --out"
        )
    for left_by_a_kill in path.rglob(".*.tmp"):
        left_by_a_kill.unlink(missing_ok=True)
    return path


def _temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _read_plan(path: Path) -> Any:
    try:
        return json.loads((path / _PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunRefused(
            f"{path} is not empty and not a run of lmser (no {_PLAN}): choose another with --out"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunRefused(f"{path / _PLAN} is damaged ({error}): choose another folder with --out") from error


def _first_difference(found: Any, wanted: Any, name: str = "") -> str | None:
    """``"rows.CLmser.lr: 0.01 there, 0.001 asked for"`` of the first place where two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys((*found, *wanted)):
            inner = f"{name}.{key}" if name else key
            if key not in found or key not in wanted:
                return f"{inner}: only {'asked for' if key in wanted else 'there'}"
            difference = _first_difference(found[key], wanted[key], inner)
            if difference is not None:
                return difference
        return None
    return None if found == wanted else f"{name or 'plan'}: {found!r} there, {wanted!r} asked for"
