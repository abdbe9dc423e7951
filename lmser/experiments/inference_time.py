"""001 Table 6: milliseconds per frame of 256x256 pixels to complete an image, by every network of its Table 5.

Nothing is trained: the time does not depend on what the weights are. Before anything is timed the fused
networks and their eager twins are held against float64, and so are PConv and PEN-Net; PICNet draws random
numbers, which differ between the types, and is held against itself drawn again. Contenders then run in turn on
the same images, after a round that is not counted (`lmser.contest`); a time ends when the device is done. On
CUDA convolutions are in full float32, as on the paper's 2080 Ti, which has no TF32.

001 does not say how many images it passed at once. Its numbers stand beside those of one image at a time; the
best of the batch sizes tried is given as well. "Eager" is the same network in plain PyTorch, what 001's own
code must have been like.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmser.baselines import EagerCLmser
from lmser.contest import Contender, Timing, contest, full_float32
from lmser.data.masks import point_masks
from lmser.experiments import Request
from lmser.experiments.completions import complete
from lmser.experiments.networks import build_network
from lmser.experiments.paper import paper_table
from lmser.experiments.progress import ExperimentProgress
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Results, write_json
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.run_directory import open_run_directory
from lmser.experiments.tables import Cell, Row, Table
from lmser.models import CLmser

__all__ = ["run"]

NAME = "inference-time"

# float32 through up to forty layers, against float64.
_TOLERANCE = 1e-3
# Of a larger batch so many images are verified: they take every code path that the others do.
_VERIFIED = 2
# What "in real time" means where a claim needs a number: 25 frames per second.
_REAL_TIME_MS = 40.0
# Repeats that spread by more than this share of their median are pointed out.
_STEADY = 0.2

Timings = dict[str, dict[int, Timing]]  # row's path -> batch size -> seconds of each repeat


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones). Every seed draws weights,
    images and masks anew and is a session of its own: a run that is continued keeps the finished ones.

    Raises RunRefused, with a message for the user; ArithmeticError where a network's result is wrong.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    plan = {
        "experiment": NAME,
        "scale": request.scale,
        "rows": [{"path": row.path, **row.identity()} for row in rows],
        "seeds": list(request.seeds),
        "machine": machine(request.device),
    }
    open_run_directory(request.out, plan, resume=request.resume)
    batches = rows[0].evaluation["batches"]
    sessions = []
    with ExperimentProgress(
        len(request.seeds), len(request.seeds) * len(batches), shown=request.progress
    ) as bar:
        for seed in request.seeds:
            on_step = bar.job(f"seed {seed}", len(batches))
            sessions.append(_session(request, rows, seed, on_step))
    facts = machine(request.device)
    table = _table(rows, sessions, facts)
    results = Results(
        experiment=NAME,
        title="Inference time per frame",
        summary=(
            f"Milliseconds to complete one image of {rows[0].data['side']}x{rows[0].data['side']} pixels, "
            f"float32, median of {rows[0].evaluation['repeats']} repeats, contenders in turn. Passed at once: "
            f"{', '.join(map(str, batches))} images."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(table,),
        figures=(),
        seconds=sum(
            sum(timing.seconds) for found in sessions for times in found.values() for timing in times.values()
        ),
        machine=facts,
        data={"data": "random images", "configuration files sha256": checksum(rows)},
        claims=_claims(table),
    )
    results.write(request.out)
    return results


# Measuring.


def _session(
    request: Request, rows: Sequence[RowConfig], seed: int, on_step: Callable[[int, Tensor], None]
) -> Timings:
    """The timings of one seed, read where they are there already."""
    path = request.out / f"seed-{seed}.json"
    if path.exists():
        return _read(path)
    device = torch.device(request.device)
    networks: dict[str, nn.Module] = {}
    for row in rows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # a network and its eager twin get the same weights
            networks[row.path] = build_network(row.model).to(device).eval()
    side, repeats = rows[0].data["side"], rows[0].evaluation["repeats"]
    timings: Timings = {row.path: {} for row in rows}
    for number, batch in enumerate(rows[0].evaluation["batches"], 1):
        images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
        masks = point_masks(batch, side, seed=seed).to(device)
        with torch.no_grad(), full_float32(device):
            contenders = [_contender(row, networks[row.path], images, masks) for row in rows]
            found = contest(contenders, (), tolerance=_TOLERANCE, repeats=repeats)
        for name, timing in found.items():
            timings[name][batch] = timing
        on_step(number, images)
    write_json(path, {name: _plain(times) for name, times in timings.items()})
    return timings


def _plain(times: Mapping[int, Timing]) -> dict[str, Any]:
    return {str(batch): dataclasses.asdict(timing) for batch, timing in times.items()}


def _read(path: Path) -> Timings:
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {
            int(batch): Timing(timing["name"], tuple(timing["seconds"]), timing["error"])
            for batch, timing in times.items()
        }
        for name, times in saved.items()
    }


def _contender(row: RowConfig, network: nn.Module, images: Tensor, masks: Tensor) -> Contender:
    samples = row.evaluation.get("samples")
    some, some_masks = images[:_VERIFIED], masks[:_VERIFIED]

    def step() -> None:
        complete(network, images, masks, samples)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)

    return Contender(
        row.path,
        run=lambda: [complete(network, some, some_masks, samples)],
        step=step,
        wanted=[_wanted(row, network, some, some_masks)],
    )


def _wanted(row: RowConfig, network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """What the network's result is to agree with."""
    samples = row.evaluation.get("samples")
    if samples is not None:
        return complete(network, images, masks, samples)
    if isinstance(network, CLmser):
        oracle: nn.Module = EagerCLmser(
            **{name: value for name, value in row.model.items() if name != "kind"}
        )
        oracle.load_state_dict(network.state_dict())
    else:
        oracle = copy.deepcopy(network)
    oracle = oracle.to(images.device, torch.float64).eval()
    return complete(oracle, images.double(), masks)


# Telling.


def _table(rows: Sequence[RowConfig], sessions: Sequence[Timings], facts: Mapping[str, str]) -> Table:
    paper = paper_table("001", "table 6")
    eager = {row.label: row.path for row in rows if row.model["kind"] == "EagerCLmser"}
    lines = []
    for row in rows:
        first = min(row.evaluation["batches"])
        single = [found[row.path][first] for found in sessions]
        best = [_best(found[row.path]) for found in sessions]
        gains: tuple[float, ...] = ()
        if row.model["kind"] == "CLmser" and row.label in eager:
            gains = tuple(
                found[eager[row.label]][first].median / found[row.path][first].median for found in sessions
            )
        differs = ", ".join(filter(None, (row.differs, f"{facts['device']} in place of a 2080 Ti")))
        lines.append(
            Row(
                row.label,
                (
                    Cell(tuple(_ms(t.median) / first for t in single), _printed(paper, row), digits=3),
                    Cell(tuple(_ms(max(t.seconds) - min(t.seconds)) / first for t in single), digits=3),
                    Cell(gains, digits=2),
                    Cell(tuple(_ms(seconds) for _, seconds in best), digits=3),
                    Cell(tuple(float(batch) for batch, _ in best), digits=0),
                    Cell(
                        tuple(max(t.error for t in found[row.path].values()) * 1e6 for found in sessions),
                        digits=1,
                    ),
                ),
                group=row.group,
                differs=differs,
            )
        )
    return Table(
        title="Milliseconds per frame",
        columns=(
            "one at a time",
            "max - min",
            "speed-up over eager",
            "best",
            "best batch size",
            "error x 1e6",
        ),
        rows=tuple(lines),
        source="001 Table 6",
        notes=(
            f"{facts['device']}, {facts['processor']}, {facts['threads']} threads, kernels {facts['kernels']}. "
            "The paper's device is a 2080 Ti, so that only ratios within a column compare. Error: of the "
            "reconstruction, relative to float64; of PICNet, to itself drawn again from the same numbers.",
            *_unsteady(rows, sessions),
        ),
    )


def _unsteady(rows: Sequence[RowConfig], sessions: Sequence[Timings]) -> tuple[str, ...]:
    """A note that names the rows whose repeats disagree, or nothing."""
    named = [
        f"{row.label} ({row.group})"
        for row in rows
        if any(timing.spread > _STEADY for found in sessions for timing in found[row.path].values())
    ]
    if not named:
        return ()
    return (
        f"The machine was busy with other things: repeats of {', '.join(named)} differ by more than "
        f"{100 * _STEADY:.0f} % of their median, and what these times say about the networks is not reliable.",
    )


def _ms(seconds: float) -> float:
    return 1e3 * seconds


def _best(times: Mapping[int, Timing]) -> tuple[int, float]:
    """``(batch size, seconds per frame)`` of the fastest."""
    return min(((batch, timing.median / batch) for batch, timing in times.items()), key=lambda pair: pair[1])


def _printed(paper: Mapping[str, Any], row: RowConfig) -> float | None:
    if "samples" not in row.evaluation:
        return paper.get(row.label)
    one, twenty = paper["PICNet"]
    return {1: one, 20: twenty}.get(row.evaluation["samples"])


def _claims(table: Table) -> tuple[Claim, ...]:
    """001's sentences on Table 6, for one frame at a time."""
    times = {(row.group, row.label): row.cells[0].mean for row in table.rows}
    if None in times.values() or not {"PConv", "PEN-Net"} <= {label for _, label in times}:
        return ()
    found = {
        f"{label} ({group})" if group.startswith("CLmsers") else label: time
        for (group, label), time in times.items()
        if time is not None
    }
    clmsers = {name: time for name, time in found.items() if "CLmsers" in name}
    shown = ", ".join(
        f"{name} {time:.2f} ms" for name, time in sorted(found.items(), key=lambda item: item[1])
    )
    slower = found["PEN-Net"] / max(found["PConv"], *clmsers.values())
    slowest = max(clmsers, key=clmsers.__getitem__)
    nearest = min(abs(time / found["PConv"]) for time in clmsers.values())
    farthest = max(abs(time / found["PConv"]) for time in clmsers.values())
    return (
        Claim(
            "PConv has the least inference time per frame",
            "001 Sect. 5.3, Table 6",
            min(found, key=found.__getitem__) == "PConv",
            shown,
        ),
        Claim(
            "CLmsers run in real time, like PConv",
            "001 Sect. 5.3, Table 6",
            clmsers[slowest] < _REAL_TIME_MS,
            f"the slowest, {slowest}, takes {clmsers[slowest]:.2f} ms, real time being under {_REAL_TIME_MS:.0f} ms; "
            f"CLmsers take {nearest:.2f} to {farthest:.2f} times as long as PConv",
        ),
        Claim(
            "PEN-Net takes much more time than CLmsers and PConv (read as twice as long or more)",
            "001 Sect. 5.3, Table 6",
            slower >= 2,
            f"PEN-Net takes {slower:.2f} times as long as the slowest of them",
        ),
    )
