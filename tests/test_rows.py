"""Configuration files: every one is complete and can be built, and a wrong one is refused by name."""

from __future__ import annotations

import re

import pytest

from lmser.experiments import EXPERIMENTS
from lmser.experiments.networks import build_network
from lmser.experiments.rows import RowConfig, checksum, load_rows, parse_row

ROW = """
position = 1
table = "t"
label = "AE"
differs = "lr 0.001"
[model]
kind = "Lmser"
sizes = [4, 2]
[training]
lr = 0.001
batch_size = 10
warmup = 0.25
[scale.paper.training]
epochs = 3
[scale.quick]
differs = "8 steps"
training = { steps = 8 }
"""


def parsed(text: str, scale: str = "quick") -> RowConfig:
    row = parse_row(text, "t/AE", scale)
    assert row is not None
    return row


@pytest.mark.parametrize("scale", ["quick", "paper"])
@pytest.mark.parametrize("experiment", [e.name for e in EXPERIMENTS])
def test_every_file_gives_a_run(experiment: str, scale: str) -> None:
    rows = load_rows(experiment, scale)
    assert rows
    assert len({row.path for row in rows}) == len(rows)
    assert len({(row.table, row.group, row.label, str(row.identity())) for row in rows}) == len(rows)
    for row in rows:
        if row.training:
            config = row.train_config(seed=0, samples=1000)
            assert config.steps == row.steps(1000) >= 1
    assert re.fullmatch("[0-9a-f]{64}", checksum(rows))


def test_a_scale_is_put_over_the_common_part() -> None:
    quick, paper = parsed(ROW), parsed(ROW, "paper")
    assert quick.training == {"lr": 0.001, "batch_size": 10, "warmup": 0.25, "steps": 8}
    assert (quick.differs, paper.differs) == ("lr 0.001, 8 steps", "lr 0.001")
    assert quick.sha256 == paper.sha256
    assert (quick.steps(95), quick.train_config(0, 95).warmup) == (8, 2)
    # 95 samples make ten batches, the last one of five.
    assert (paper.steps(95), paper.train_config(7, 95).warmup, paper.train_config(7, 95).seed) == (30, 8, 7)
    dropped = parsed(ROW.replace("epochs = 3", "epochs = 3\ndrop_last = true"), "paper")
    assert dropped.steps(95) == 27


def test_milestones_may_be_fractions_of_the_steps() -> None:
    text = ROW.replace("warmup = 0.25", 'schedule = "step"\nmilestones = [0.5, 0.75]')
    assert parsed(text).train_config(0, 95).milestones == (4, 6)


def test_a_row_can_be_left_out_at_a_scale() -> None:
    assert parse_row(ROW.replace("[scale.quick]", "[scale.quick]\nskip = true"), "t/AE", "quick") is None
    assert parse_row(ROW.replace("[scale.quick]", "[scale.quick]\nskip = true"), "t/AE", "paper") is not None


def test_the_words_do_not_decide_the_numbers() -> None:
    other = parsed(ROW.replace('"AE"', '"AE, renamed"'))
    assert other.identity() == parsed(ROW).identity()
    assert checksum([other]) != checksum([parsed(ROW)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("position = 1", "", "t/AE: position is missing"),
        ("position = 1", 'position = "1"', "position: expected int, got '1'"),
        ("position = 1", "position = 1\nlabels = 3", "t/AE: labels is not known"),
        ("lr = 0.001\nbatch", "learning_rate = 1\nbatch", "training.learning_rate is not known"),
        ("[scale.quick]", "[scale.big]", "scale.big is not known"),
        ('differs = "8 steps"', "sizes = [1]", "scale.quick.sizes is not known"),
        ("[model]", "[model", "t/AE: not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_row(ROW.replace(old, new), "t/AE", "quick")


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="scale: expected 'quick' or 'paper', got 'big'"):
        parse_row(ROW, "t/AE", "big")
    with pytest.raises(ValueError, match="there are no configuration files for 'nothing'"):
        load_rows("nothing", "quick")
    with pytest.raises(ValueError, match=r"model.kind: expected one of .*CLmser.*, got 'Lmsr'"):
        build_network({"kind": "Lmsr"})


def test_the_command_lines_settings_are_put_over_every_row() -> None:
    plain = load_rows("mnist-reconstruction", "quick")
    other = load_rows(
        "mnist-reconstruction", "quick", {"precision": "bfloat16", "compile": True, "workers": 3}
    )
    for before, after in zip(plain, other, strict=True):
        config = after.train_config(0, 100)
        assert (config.precision, config.compile, config.workers) == ("bfloat16", True, 3)
        assert after.differs == ", ".join(
            filter(None, (before.differs, "bfloat16 autocast", "torch.compile"))
        )
        assert after.identity() != before.identity()
    # Neither how many processes decode nor a CUDA graph touches the numbers: such a run continues one without.
    decoding = load_rows("mnist-reconstruction", "quick", {"workers": 3, "cuda_graph": False})
    assert decoding[0].train_config(0, 100).cuda_graph is False
    assert [row.identity() for row in decoding] == [row.identity() for row in plain]
    assert [row.differs for row in decoding] == [row.differs for row in plain]
    timed = load_rows("inference-time", "quick", {"precision": "bfloat16"})
    assert not any("bfloat16" in row.differs for row in timed)
    with pytest.raises(
        ValueError, match="training: expected precision, compile, workers, cuda_graph, got lr"
    ):
        load_rows("mnist-reconstruction", "quick", {"lr": 1.0})


def test_a_network_is_built_from_its_section() -> None:
    network = build_network({"kind": "Lmser", "sizes": [4, 3, 2], "dpn": False})
    assert type(network).__name__ == "Lmser"
    assert network.sizes == (4, 3, 2)
    assert network.dpn is False
