"""Inference time at a tiny scale: that wrong results are not timed, and what is told about the right ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lmser.baselines import EagerCLmser
from lmser.contest import Contender, Timing, contest
from lmser.experiments import Request, inference_time
from lmser.experiments.rows import RowConfig, load_rows
from lmser.models import CLmser

FACTS = {"device": "cpu", "processor": "a processor", "threads": "1", "kernels": "compiled"}

TINY_MODELS = {
    "CLmser": {"channels": [4, 4], "strides": [1, 2]},
    "EagerCLmser": {"channels": [4, 4], "strides": [1, 2]},
    "PConvUNet": {"depth": 2, "width": 0.05},
    "PENNet": {"size": 32, "width": 0.05},
    "PICNet": {"size": 32, "width": 0.05},
}


def tiny_rows() -> list[RowConfig]:
    return [
        dataclasses.replace(
            row,
            data={"side": 32},
            model={**row.model, **TINY_MODELS[row.model["kind"]]},
            evaluation={**row.evaluation, "batches": [1, 3], "repeats": 2},
        )
        for row in load_rows("inference-time", "paper")
    ]


def request(out: Path, *, resume: bool = False) -> Request:
    return Request(out, "cpu", "quick", (0, 1), out, resume=resume, progress=False)


def test_a_contender_may_have_results_of_its_own() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    common, own = Contender("a", lambda: [one]), Contender("b", lambda: [two], wanted=[two.double()])
    timings = contest([common, own], [one.double()], tolerance=1e-3, repeats=2)
    assert [timing.error for timing in timings.values()] == [0.0, 0.0]
    with pytest.raises(ArithmeticError, match="'b'"):
        contest([common, dataclasses.replace(own, wanted=None)], [one.double()], tolerance=1e-3, repeats=2)


def test_times_every_network_and_keeps_finished_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_rows()
    results = inference_time.run(request(tmp_path), rows)
    (table,) = results.tables
    assert [row.label for row in table.rows if row.group == "CLmsers, fused"] == [
        row.label for row in table.rows if row.group == "CLmsers, eager"
    ]
    assert [row.cells[0].paper for row in table.rows[-4:]] == [2.198, 32.18, 5.074, 75.69]
    for row in table.rows:
        single, spread, gain, best, batch, error = row.cells
        assert min(single.ours) > 0
        assert min(spread.ours) >= 0
        assert len(gain.ours) == (2 if row.group == "CLmsers, fused" else 0)
        assert all(b <= s for b, s in zip(best.ours, single.ours, strict=True))
        assert set(batch.ours) <= {1.0, 3.0}
        assert max(error.ours) < 100
        assert "in place of a 2080 Ti" in row.differs
    assert len(results.claims) == 3

    # The second seed is lost, the first is read again and not measured.
    (tmp_path / "seed-1.json").unlink()
    measured = []
    measure = inference_time.contest

    def counting(*args: object, **kwargs: object) -> object:
        measured.append(0)
        return measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(inference_time, "contest", counting)
    again = inference_time.run(request(tmp_path, resume=True), rows)
    assert len(measured) == 2  # two batch sizes
    assert [row.cells[0].ours[0] for row in again.tables[0].rows] == [
        row.cells[0].ours[0] for row in table.rows
    ]


def test_a_wrong_network_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CLmser.forward

    def wrong(self: CLmser, x: torch.Tensor, **kwargs: object) -> object:
        found = forward(self, x, **kwargs)  # type: ignore[arg-type]
        return found._replace(reconstruction=found.reconstruction * 1.01)

    assert EagerCLmser.forward is not forward
    monkeypatch.setattr(CLmser, "forward", wrong)
    with pytest.raises(ArithmeticError, match="fused/CLmser"):
        inference_time.run(request(tmp_path), tiny_rows())
    assert not list(tmp_path.glob("seed-*.json"))
    assert not (tmp_path / "results.json").exists()


def _timings(rows: list[RowConfig], **ms: float) -> inference_time.Timings:
    """``{kind: milliseconds at batch 1}``; three frames at once take twice that."""
    return {
        row.path: {
            batch: Timing(row.path, tuple(1e-3 * scale * ms[row.model["kind"]] for _ in range(3)), 0.0)
            for batch, scale in ((1, 1), (3, 2))
        }
        for row in rows
    }


def test_claims_and_gains_are_decided_by_the_times() -> None:
    rows = tiny_rows()
    paper_like = {"CLmser": 2.0, "EagerCLmser": 3.0, "PConvUNet": 1.0, "PENNet": 30.0, "PICNet": 5.0}
    for changed, confirmed in (
        ({}, [True, True, True]),
        ({"PConvUNet": 2.5}, [False, True, True]),
        ({"EagerCLmser": 41.0}, [True, False, False]),
        ({"PENNet": 5.0}, [True, True, False]),
    ):
        table = inference_time._table(rows, [_timings(rows, **{**paper_like, **changed})], FACTS)
        assert [claim.confirmed for claim in inference_time._claims(table)] == confirmed
    table = inference_time._table(rows, [_timings(rows, **paper_like)], FACTS)
    assert table.rows[0].cells[2].ours == (pytest.approx(1.5),)
    assert table.rows[0].cells[3].ours == (pytest.approx(2.0 * 2 / 3),)
    assert table.rows[0].cells[4].ours == (3.0,)


def test_repeats_that_disagree_are_pointed_out() -> None:
    rows = tiny_rows()
    steady = _timings(rows, CLmser=1.0, EagerCLmser=1.0, PConvUNet=1.0, PENNet=1.0, PICNet=1.0)
    assert len(inference_time._table(rows, [steady], FACTS).notes) == 1
    shaken = {
        **steady,
        "others/PConv": {1: Timing("others/PConv", (1.0, 1.0, 1.5), 0.0), 3: steady["others/PConv"][3]},
    }
    note = inference_time._table(rows, [steady, shaken], FACTS).notes[1]
    assert "repeats of PConv (other networks) differ" in note


def test_timings_survive_the_file(tmp_path: Path) -> None:
    found = _timings(tiny_rows(), CLmser=1.0, EagerCLmser=1.0, PConvUNet=1.0, PENNet=1.0, PICNet=1.0)
    plain = {name: inference_time._plain(times) for name, times in found.items()}
    (tmp_path / "seed-0.json").write_text(json.dumps(plain))
    assert inference_time._read(tmp_path / "seed-0.json") == found


def test_paper_scale_is_the_papers() -> None:
    rows = load_rows("inference-time", "paper")
    for row in rows:
        assert row.data["side"] == 256
        assert row.evaluation["repeats"] == 5
        assert row.evaluation["batches"] == [1, 2, 4, 8, 16]
    assert [row.evaluation.get("samples") for row in rows][-2:] == [1, 20]
