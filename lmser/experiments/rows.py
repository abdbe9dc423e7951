"""The rows of the papers' tables as files: one frozen TOML file each, ``configs/EXPERIMENT/TABLE/ROW.toml``.

    position = 2                  # rows are run and shown in this order
    table = "calibrated"          # the table the row is in
    group = ""                    # a heading within the table
    label = "Lmser(un)"
    source = "000 Table 1"        # the paper's table it stands beside
    differs = "lr 0.001"          # what is not the paper's setting

    [data]                        # [data], [objective] and [evaluation] are read by the experiment
    name = "mnist"
    [model]                       # a class of lmser.models or lmser.baselines, and its keyword arguments
    kind = "Lmser"
    sizes = [784, 300, 100, 10]
    [training]                    # fields of TrainConfig; `epochs` may stand for `steps`; a `warmup` and
    lr = 0.001                    # `milestones` below 1 are fractions of the steps
    batch_size = 50

    [scale.quick]                 # `skip = true` leaves the row out, `differs` is added to the one above
    differs = "2000 steps"
    [scale.quick.training]        # put over [training] at that scale; so with the other sections
    steps = 2000

A file is not changed once results were made from it: results hold the checksum of the files behind them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmser.experiments.run_directory import RunRefused
from lmser.training import TrainConfig, steps_per_epoch

__all__ = ["RowConfig", "checksum", "chosen_rows", "load_rows", "parse_row"]

_SECTIONS = ("data", "model", "objective", "training", "evaluation")
_WORDS = {"position": int, "table": str, "group": str, "label": str, "source": str, "differs": str}
_SCALES = ("quick", "paper")
_TRAINING = {f.name for f in dataclasses.fields(TrainConfig)} - {"seed"} | {"epochs"}
# What the command line may put over every row, and how a table says so.
_SAID = {"precision": "{} autocast", "compile": "torch.compile", "workers": "", "cuda_graph": ""}
_FREE = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata.get("free_on_resume", False)}


@dataclass(frozen=True, eq=False)
class RowConfig:
    """One row of one table at one scale.

    path:    the file's place without its ending, ``"calibrated/AE"``: also the folder of the row's runs.
    sha256:  of the file.  The others are what the file says (see the module), the scale's part put over it.
    """

    path: str
    position: int
    table: str
    label: str
    group: str = ""
    source: str = ""
    differs: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def steps(self, samples: int) -> int:
        """Optimiser steps of a run over `samples` training samples."""
        if "epochs" not in self.training:
            return int(self.training["steps"])
        each = steps_per_epoch(
            samples, self.training["batch_size"], bool(self.training.get("drop_last", False))
        )
        return int(self.training["epochs"]) * each

    def train_config(self, seed: int, samples: int) -> TrainConfig:
        """The settings of one run. Raises what `TrainConfig` raises."""
        given = {name: value for name, value in self.training.items() if name != "epochs"}
        steps = self.steps(samples)
        warmup = given.pop("warmup", 0)
        if isinstance(warmup, float):
            warmup = round(warmup * steps)
        if "milestones" in given:
            given["milestones"] = [
                round(at * steps) if isinstance(at, float) else at for at in given["milestones"]
            ]
        return TrainConfig(**{**given, "steps": steps, "warmup": warmup, "seed": seed})

    def identity(self) -> dict[str, Any]:
        """What of the row decides a run's numbers, as plain values; the words around it do not."""
        found = {name: _plain(getattr(self, name)) for name in _SECTIONS}
        found["training"] = {key: value for key, value in found["training"].items() if key not in _FREE}
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "path": self.path,
            **{name: getattr(self, name) for name in _WORDS},
            **self.identity(),
            "sha256": self.sha256,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def load_rows(experiment: str, scale: str, training: Mapping[str, Any] | None = None) -> list[RowConfig]:
    """The rows of an experiment that are run at a scale ("quick" or "paper"), in their order.

    training: precision, compile, workers or cuda_graph, put over every row that trains; `differs` then says so.

    Raises ValueError naming the file for what `parse_row` refuses, for two rows with one position, and
    where the experiment has no file.
    """
    root = importlib.resources.files("lmser.experiments").joinpath("configs", experiment)
    if not root.is_dir():
        raise ValueError(f"experiment: there are no configuration files for {experiment!r}")
    rows = [
        row
        for path, text in sorted(_files(root, ""))
        if (row := parse_row(text, path.removesuffix(".toml"), scale)) is not None
    ]
    rows.sort(key=lambda row: row.position)
    for before, after in itertools.pairwise(rows):
        if before.position == after.position:
            raise ValueError(
                f"{experiment}: {before.path} and {after.path} both have position {after.position}"
            )
    return [_with_training(row, training or {}) for row in rows]


def chosen_rows(rows: Sequence[RowConfig], parts: Sequence[str]) -> list[RowConfig]:
    """Those of `rows` whose path has one of `parts` in it, all without any. RunRefused where none is left."""
    left = [row for row in rows if not parts or any(part in row.path for part in parts)]
    if not left:
        raise RunRefused(
            f"rows: none has one of {', '.join(parts)} in its path; there are {', '.join(row.path for row in rows)}"
        )
    return left


def _with_training(row: RowConfig, training: Mapping[str, Any]) -> RowConfig:
    unknown = set(training) - set(_SAID)
    if unknown:
        raise ValueError(f"training: expected {', '.join(_SAID)}, got {', '.join(sorted(unknown))}")
    if not row.training or not training:
        return row
    said = [_SAID[name].format(value) for name, value in training.items()]
    return dataclasses.replace(
        row,
        training={**row.training, **training},
        differs=", ".join(filter(None, (row.differs, *said))),
    )


def _files(folder: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _files(entry, f"{name}/")
        elif entry.name.endswith(".toml"):
            yield name, entry.read_text(encoding="utf-8")


def parse_row(text: str, path: str, scale: str) -> RowConfig | None:
    """The row that a file's `text` describes at `scale`; None where it is left out there.

    Raises ValueError naming `path` and the key for what is not TOML, for a key that is not known, missing or
    of another type, and for a `scale` that is neither "quick" nor "paper".
    """
    if scale not in _SCALES:
        raise ValueError(f"scale: expected 'quick' or 'paper', got {scale!r}")
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from error
    scales = given.pop("scale", {})
    _only(path, "", given, {*_WORDS, *_SECTIONS})
    _only(path, "scale.", scales, _SCALES)
    for name, part in scales.items():
        _only(path, f"scale.{name}.", part, {*_SECTIONS, "skip", "differs"})
    for name, kind in _WORDS.items():
        if name in ("position", "table", "label") and name not in given:
            raise ValueError(f"{path}: {name} is missing")
        if name in given and not isinstance(given[name], kind):
            raise ValueError(f"{path}: {name}: expected {kind.__name__}, got {given[name]!r}")
    chosen = scales.get(scale, {})
    sections: dict[str, Any] = {name: {**given.get(name, {}), **chosen.get(name, {})} for name in _SECTIONS}
    _only(path, "training.", sections["training"], _TRAINING)
    words: dict[str, Any] = {name: given[name] for name in _WORDS if name in given}
    words["differs"] = ", ".join(filter(None, (given.get("differs", ""), chosen.get("differs", ""))))
    if chosen.get("skip", False):
        return None
    return RowConfig(path=path, **words, **sections, sha256=hashlib.sha256(text.encode("utf-8")).hexdigest())


def _only(path: str, where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{path}: {where}{key} is not known, expected {', '.join(sorted(known))}")


def checksum(rows: Iterable[RowConfig]) -> str:
    """One SHA-256 over the files of `rows`, for a result to say what it was made from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.path} {row.sha256}\n".encode())
    return digest.hexdigest()
