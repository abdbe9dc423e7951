"""Stopping and resuming: after a signal or a kill at any moment the run ends in the same bits."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_cases import Crash, assert_same_run, crash_after
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser import Lmser
from lmser.training import ConfigMismatch, Interrupted, Run, TrainConfig, load_checkpoint, train

STEPS = 60
CONFIG = TrainConfig(
    steps=STEPS, batch_size=7, lr=0.01, gamma=0.99, seed=5, checkpoint_every=8, checkpoint_seconds=0
)


class Noisy(nn.Module):
    """A network whose training draws random numbers: style units and dropout."""

    def __init__(self, sizes: tuple[int, ...] = (6, 5, 3)) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.dropout, self.network = nn.Dropout(0.2), Lmser(sizes, style_units=2)

    def loss(self, x: Tensor) -> Tensor:
        return self.network.loss(self.dropout(x))


def data() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def evaluate(model: Noisy) -> dict[str, object]:
    return {"norm": model.network.weights[0].norm(), "noise": torch.randn(()).item()}


def run(
    path: Path, config: TrainConfig = CONFIG, model: nn.Module | None = None, **kwargs: object
) -> nn.Module:
    model = model or Noisy()
    options = {"data": data(), "eval_at": (0, 20, STEPS), "evaluate": evaluate, "identity": {"variant": "un"}}
    options.update(kwargs)
    train(model, lambda model, x: model.loss(x), config=config, run_dir=path, **options)
    return model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted")
    run(path)
    return path


@pytest.mark.parametrize("crashes", [(1,), (7, 8, 9), (20,), (21, 33, 50), (STEPS,)])
def test_resumes_to_the_same_bits(tmp_path, uninterrupted, crashes):
    for step in crashes:
        with pytest.raises(Crash):
            # Fresh initial weights each time: what counts is what is in the directory.
            run(tmp_path, resume=True, on_step=crash_after(step))
        assert Run(tmp_path).step == max(s for s in (20, *range(0, STEPS, 8)) if s < step or s == 0)
    model = run(tmp_path, model=Noisy().apply(scramble) if crashes == (20,) else None, resume=True)
    assert_same_run(tmp_path, uninterrupted)
    assert all(torch.equal(Run(tmp_path).weights()[k], v) for k, v in model.state_dict().items())


def scramble(module: nn.Module) -> None:
    if isinstance(module, Lmser):
        module.reset_parameters()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resumes_the_optimiser(tmp_path, optimizer):
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = TrainConfig(
        steps=30, batch_size=7, lr=0.01, optimizer=optimizer, momentum=momentum, schedule="cosine", warmup=5,
        checkpoint_every=4,
    )  # fmt: skip
    kwargs = {"eval_at": None, "evaluate": None}
    run(tmp_path / "whole", config, **kwargs)
    with pytest.raises(Crash):
        run(tmp_path / "parts", config, on_step=crash_after(19), **kwargs)
    run(tmp_path / "parts", config, resume=True, **kwargs)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_checkpoint_settings_may_change(tmp_path, uninterrupted):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(30))
    changed = TrainConfig(**{**CONFIG.deciding(), "checkpoint_every": 11, "checkpoint_seconds": 0.001})
    run(tmp_path, changed, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_is_not_run_again(tmp_path):
    run(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def forbidden(*_: object) -> None:
        raise AssertionError("called for a finished run")

    model = Noisy().apply(scramble)
    result = train(
        model, forbidden, data(), CONFIG, run_dir=tmp_path, resume=True, eval_at=(0, 20, STEPS),
        evaluate=forbidden, on_step=forbidden, identity={"variant": "un"},
    )  # fmt: skip
    assert result.resumed_from == result.steps == STEPS
    assert result.curve == Run(tmp_path).result().curve
    assert len(result.curve) == STEPS
    assert sorted(result.evaluations) == [0, 20, STEPS]
    assert all(torch.equal(Run(tmp_path).weights()[k], v) for k, v in model.state_dict().items())
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_run_is_not_written_over(tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(10))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"run_dir: .* holds a run"):
        run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def changed(**fields: object) -> TrainConfig:
    return TrainConfig(**{**CONFIG.deciding(), **fields})


@pytest.mark.parametrize(
    ("key", "kwargs"),
    [
        ("lr", {"config": changed(lr=0.02)}),
        ("steps", {"config": changed(steps=70)}),
        ("seed", {"config": changed(seed=6)}),
        ("optimizer", {"config": changed(optimizer="sgd")}),
        ("log_every", {"config": changed(log_every=2)}),
        ("eval_at", {"eval_at": (0, 21, STEPS)}),
        ("identity.variant", {"identity": {"variant": "sup"}}),
        ("identity.variant", {"identity": {}}),
        ("identity.init", {"identity": {"variant": "un", "init": "default"}}),
        ("model.network.weights.0", {"model": Noisy((6, 4, 3))}),
        ("model.network.reconstruction_bias", {"model": Noisy().double()}),
        ("data[0]", {"data": data() + 1e-6}),
        ("data[1]", {"data": (data(), torch.zeros(40))}),
    ],
)
def test_refuses_another_configuration_by_name(tmp_path, key, kwargs):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(10))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ConfigMismatch, match=rf"cannot resume .*: {re.escape(key)} was .* and is .* now"
    ) as caught:
        run(tmp_path, resume=True, **kwargs)
    assert caught.value.key == key
    assert caught.value.was != caught.value.now
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text"]
)
def test_refuses_a_damaged_checkpoint_by_name(tmp_path, damage):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(10))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a readable checkpoint"):
        run(tmp_path, resume=True)


def test_refuses_a_foreign_checkpoint_by_name(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a checkpoint of a training run"):
        run(tmp_path, resume=True)


def test_warns_where_the_bits_may_differ(tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(10))
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["environment"]["torch"] = "1.0"
    torch.save(state, path)
    with pytest.warns(UserWarning, match="its bits may differ"):
        run(tmp_path, resume=True)


def test_leftovers_of_a_kill_are_removed(tmp_path, uninterrupted):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(10))
    for name in (".checkpoint.pt.abc.tmp", ".log.jsonl.abc.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 11, "lo')
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_checkpoint_by_time(tmp_path):
    config = changed(checkpoint_every=0, checkpoint_seconds=0.02)

    def slow(step: int, loss: Tensor) -> None:
        time.sleep(0.01)
        crash_after(30)(step, loss)

    with pytest.raises(Crash):
        run(tmp_path, config, on_step=slow, eval_at=None, evaluate=None)
    assert 20 < Run(tmp_path).step < 30


def test_continues_a_run_of_the_first_format(tmp_path, uninterrupted):
    with pytest.raises(Crash):
        run(tmp_path, on_step=crash_after(30))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    state.update(format=1, optimizer=state["optimizers"]["loss"], generators=state["generators"][0])
    for key in ("optimizers", "extras", "seconds_waiting"):
        del state[key]
    del state["identity"]["processes"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert Run(tmp_path).step == 24
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_refuses_a_later_format_by_number(tmp_path):
    run(tmp_path, changed(steps=2), eval_at=())
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    torch.save({**state, "format": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: checkpoint format 3, this version reads 2"):
        run(tmp_path, changed(steps=2), resume=True, eval_at=())


# Signals, in the process of the test and in processes of their own.


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 13, 20, STEPS])
def test_a_signal_saves_the_step_and_says_so(tmp_path, uninterrupted, signum, step):
    def on_step(done: int, loss: Tensor) -> None:
        if done == step:
            signal.raise_signal(signum)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path, on_step=on_step)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (caught.value.step, caught.value.signum) == (step, signum)
    assert caught.value.checkpoint == tmp_path / "checkpoint.pt"
    message = (
        f"stopped by {signal.Signals(signum).name} after step {step} of {STEPS}; everything up to there is in"
    )
    assert message in str(caught.value)
    assert Run(tmp_path).step == step
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_signal_acts_at_once(tmp_path, uninterrupted):
    def on_step(done: int, loss: Tensor) -> None:
        if done == 13:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal was swallowed")

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path, on_step=on_step)
    assert not isinstance(caught.value, Interrupted)
    assert Run(tmp_path).step == 8
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_without_a_directory_signals_are_left_alone():
    def on_step(done: int, loss: Tensor) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(Noisy(), lambda model, x: model.loss(x), data(), CONFIG, on_step=on_step)
    assert not isinstance(caught.value, Interrupted)


CHILD = textwrap.dedent(
    """
    import sys, time
    sys.path[:0] = [{tests!r}, {root!r}]
    from pathlib import Path
    import torch
    torch.set_num_threads({threads})
    from lmser.training import Interrupted
    from test_resume import run

    def on_step(step, loss):
        print(step, flush=True)
        time.sleep(0.002)

    try:
        run(Path(sys.argv[1]), resume=True, on_step=on_step)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signum)
    """
)


def start(path: Path) -> subprocess.Popen[str]:
    here = Path(__file__).resolve().parent
    source = CHILD.format(tests=str(here), root=str(here.parent), threads=torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-c", source, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def steps_seen(child: subprocess.Popen[str], count: int) -> int:
    """Wait until the child has taken `count` steps; the last one it told of, 0 if it ended first."""
    assert child.stdout is not None
    last = 0
    for _ in range(count):
        line = child.stdout.readline()
        if not line:
            break
        last = int(line)
    return last


def test_killed_at_random_moments(tmp_path, uninterrupted):
    draw = random.Random(4)
    for _ in range(3):
        child = start(tmp_path)
        steps_seen(child, draw.randrange(1, 25))
        time.sleep(draw.random() * 0.01)
        child.kill()
        child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0)
        assert Run(tmp_path).step >= 0  # whatever was being done: the checkpoint is whole
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_from_outside(tmp_path, uninterrupted, signum):
    child = start(tmp_path)
    steps_seen(child, 11)
    child.send_signal(signum)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + signum
    assert f"stopped by {signal.Signals(signum).name} after step" in errors
    assert "Traceback" not in errors
    assert 11 <= Run(tmp_path).step < STEPS
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted)
