"""Steps that are recorded and replayed, on a stand-in for CUDA graphs that replays by calling."""

from __future__ import annotations

import contextlib
import copy
import logging
import random

import pytest
import torch
from torch import nn
from training_cases import Crash, assert_same_run, crash_after, flat
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser import CLmser, Lmser
from lmser.training import (
    NotCapturable,
    Objective,
    TrainConfig,
    load_checkpoint,
    not_capturable,
    objectives,
    step,
    train,
)
from lmser.training.graphed import WARM_UP, CudaGraph, GraphedStep, Rates
from lmser.training.obstacles import Watch, declared

CPU = torch.device("cpu")


class Recorder:
    """Records work by doing it and undoing all that it changed; replays it by doing it again, into the same tensors.

    Like a CUDA graph it reads the inputs where they lay at the recording, and writes losses and gradients there.
    """

    def __init__(self, made: Made) -> None:
        self.made = made
        made.recorders.append(self)
        self.replays = 0

    @contextlib.contextmanager
    def aside(self):
        self.made.warm += 1
        yield

    def record(self, work, generators):
        if self.made.failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.generators = generators
        before = self.made.state()
        states = [generator.get_state() for generator in generators]
        self.work, self.losses = work, work()
        self.gradients = [p.grad for p in self.made.model.parameters()]
        self.made.put_back(before)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for tensor in (*self.losses, *self.gradients):
            if tensor is not None:
                tensor.fill_(torch.nan)
        return self.losses

    def replay(self):
        self.replays += 1
        losses = self.work()
        with torch.no_grad():
            for recorded, new in zip(self.losses, losses, strict=True):
                recorded.copy_(new)
            for recorded, p in zip(self.gradients, self.made.model.parameters(), strict=True):
                assert (recorded is None) == (p.grad is None)
                if recorded is not None:
                    recorded.copy_(p.grad)
                p.grad = torch.full_like(
                    p, torch.nan
                )  # what a replay leaves in Python is not to be relied on


class Made:
    """All recorders of a test, and the run that they record of."""

    def __init__(self) -> None:
        self.recorders, self.optimizers, self.warm, self.failing = [], [], 0, False
        self.model: nn.Module = nn.Identity()

    @property
    def replays(self) -> int:
        return sum(recorder.replays for recorder in self.recorders)

    def state(self):
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        found = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers]
        return model, found, torch.get_rng_state(), random.getstate()

    def put_back(self, state) -> None:
        model, found, own, python = state
        self.model.load_state_dict(model)
        for optimizer, values in zip(self.optimizers, found, strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(values)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # a graph goes on reading where it read
        torch.set_rng_state(own)
        random.setstate(python)


@pytest.fixture
def made(monkeypatch):
    """The training loop takes this process's CPU for a device that has graphs."""
    made = Made()
    build = objectives._optimizer

    def noted(*args):
        made.optimizers.append(build(*args))
        return made.optimizers[-1]

    monkeypatch.setattr(objectives, "_optimizer", noted)
    monkeypatch.setattr(step, "recorder_for", lambda device: lambda: Recorder(made))
    return made


class Net(nn.Module):
    """Noise, a buffer that moves with every step, and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 4))
        self.alone = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.inner(x)


def squared(model, x):
    return (model(x) - x).square().mean()


def run(made, config, *, loss=squared, data=None, **options):
    model = Net()
    made.model, made.optimizers[:] = model, []
    data = torch.randn(22, 4, generator=torch.Generator().manual_seed(1)) if data is None else data
    try:
        return train(model, loss, data, config, **options), model
    finally:
        made.final = flat(model.state_dict())


def settings(**changes):
    return TrainConfig(**{"steps": 14, "batch_size": 6, "lr": 0.05, "gamma": 0.9, "warmup": 3, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_decay": 0.01, "precision": "bfloat16"},
        {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine"},
        {"optimizer": "sgd-l2", "momentum": 0.5, "schedule": "step", "milestones": (5, 9)},
        {"optimizer": "sgd-linf"},
    ],
    ids=lambda changes: changes.get("optimizer", "adam") + "-" + changes.get("schedule", "exponential"),
)
def test_replayed_run_equals_an_ordinary_one_to_the_bit(made, changes):
    kept = {}
    for graph in (False, None, True):
        gradients = []

        def norms(model, gradients=gradients):
            gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
            return {"norm": model.inner[0].weight.grad.norm()}

        seen = []
        result, _ = run(
            made, settings(cuda_graph=graph, **changes), extra=norms, evaluate=lambda model: {"at": model.alone},
            eval_at=(0, 6, 14), on_step=lambda step, loss, seen=seen: seen.append(loss),
        )  # fmt: skip
        # The losses handed out stay what they were, though the next replay writes over its own.
        assert [loss.item() for loss in seen] == [loss for _, loss in result.curve]
        kept[graph] = made.final, result.curve, result.extras, flat(gradients)
    assert kept[False] == kept[None] == kept[True]
    # 22 = 3 * 6 + 4: of 14 steps three are of the shorter batch, three of the others come before the recording.
    assert [recorder.replays for recorder in made.recorders] == [14 - 3 - WARM_UP] * 2
    assert made.warm == 2 * (WARM_UP + 1)  # the first short batch came while there was nothing recorded yet


@pytest.mark.parametrize(
    "model", [lambda: Lmser((4, 6, 3)), lambda: CLmser(1, (4, 6), (2, 2), reflections=2)]
)
def test_lmser_is_recorded(made, model):
    found = []
    for graph in (False, True):
        torch.manual_seed(0)
        made.model, made.optimizers[:] = model(), []
        images = torch.rand(6, 1, *((2, 2) if isinstance(made.model, Lmser) else (8, 8)))
        result = train(
            made.model, lambda m, x: m.loss(x), images, settings(steps=6, batch_size=3, cuda_graph=graph)
        )
        found.append((result.curve, flat(made.model.state_dict())))
    assert found[0] == found[1]
    assert made.replays == 6 - WARM_UP


def test_several_objectives_are_one_recording(made):
    def first(model, x, shared):
        shared["found"] = model(x)
        return shared["found"].square().mean() + model.alone.sum()

    def second(model, x, shared):
        return (shared["found"].detach() - model.inner[3](model.inner[0](x))).square().mean()

    parts = (
        Objective("first", lambda m: [m.alone, *m.inner[:3].parameters()], first, lr=0.01),
        Objective("second", lambda m: m.inner[3].parameters(), second, betas=(0.5, 0.9)),
    )
    results = []
    for graph in (False, True):
        result, _ = run(made, settings(cuda_graph=graph, drop_last=True), loss=None, objectives=parts)
        results.append((made.final, result.curve, result.extras))
    assert results[0] == results[1]
    assert made.replays == 14 - WARM_UP


@pytest.mark.parametrize("graphs", [(None, None), (False, None), (None, False)])
def test_resumed_run_equals_an_uninterrupted_one(made, tmp_path, graphs):
    run(made, settings(cuda_graph=None), run_dir=tmp_path / "whole")
    with pytest.raises(Crash):
        run(
            made, settings(cuda_graph=graphs[0], checkpoint_every=7), run_dir=tmp_path / "parts",
            on_step=crash_after(10),
        )  # fmt: skip
    run(made, settings(cuda_graph=graphs[1]), run_dir=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    (group,) = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["optimizers"]["loss"]["param_groups"]
    assert isinstance(group["lr"], float)


def test_other_batches_are_told_of_once(made, caplog):
    with caplog.at_level(logging.INFO, "lmser.training.graphed"):
        run(made, settings(steps=20))
    (said,) = caplog.messages
    assert "(4, 4)" in said
    assert "(6, 4)" in said


def reads(model, x):
    return squared(model, x) * (2.0 if float(x.mean()) > 9 else 1.0)


def draws_on_the_host(model, x):
    return squared(model, x) * (1 + random.random())


def counts_a_mask(model, x):
    return (model(x) - x)[x > 0].square().mean()


def replaces_a_buffer(model, x):
    model.inner[1].running_mean = model.inner[1].running_mean.clone()
    return squared(model, x)


@not_capturable("it says so")
def marked(model, x):
    return squared(model, x)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (reads, "_local_scalar_dense, test_training_graphed.py:"),
        (draws_on_the_host, "a generator of the host"),
        (counts_a_mask, "a mask selects"),
        (replaces_a_buffer, "running_mean of the model is another tensor"),
        (marked, "marked: it says so"),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_not_recorded(made, caplog, loss, reason):
    plain, _ = run(made, settings(cuda_graph=False), loss=loss)
    result, _ = run(made, settings(), loss=loss)
    assert made.replays == 0
    assert result.curve == plain.curve
    (said,) = caplog.messages
    assert reason in said
    with pytest.raises(NotCapturable, match="cuda_graph") as error:
        run(made, settings(cuda_graph=True), loss=loss)
    assert reason in str(error.value)


def test_capture_that_fails_leaves_an_ordinary_run(made, caplog):
    plain, _ = run(made, settings(cuda_graph=False))
    made.failing = True
    result, _ = run(made, settings())
    assert result.curve == plain.curve
    assert "operation not permitted" in caplog.text
    with pytest.raises(NotCapturable, match="operation not permitted"):
        run(made, settings(cuda_graph=True))


def test_module_of_the_model_can_say_no(made):
    model = nn.Sequential(nn.Linear(2, 2), Net())
    assert declared(model, [squared]) is None
    model[1].not_capturable = "it counts"
    assert declared(model, [squared]) == "Net: it counts"


def test_model_that_was_given_other_tensors_is_recorded_anew(made):
    def swap(model):
        model.inner[1].running_mean = model.inner[1].running_mean.clone()
        return {}

    plain, _ = run(made, settings(cuda_graph=False, drop_last=True), evaluate=swap, eval_at=(8,))
    first = made.final
    result, _ = run(made, settings(drop_last=True), evaluate=swap, eval_at=(8,))
    assert result.curve == plain.curve
    assert made.final == first
    assert [recorder.replays for recorder in made.recorders] == [8 - WARM_UP, 14 - 8 - WARM_UP]


def test_inputs_are_read_from_one_place_in_the_layout_of_the_batch():
    found = []

    class Noting:
        def aside(self):
            return contextlib.nullcontext()

        def record(self, work, generators):
            self.work = work
            return [torch.zeros(())]

        def replay(self):
            self.work()

    def work(batch):
        found.append([tensor.data_ptr() for tensor in batch])
        assert [tensor.stride() for tensor in batch] == [(60, 1, 15, 3), (8, 2), (0, 1)]
        return [sum(tensor.sum() for tensor in batch)]

    model = nn.Linear(1, 1)
    graphed = GraphedStep(work, model, Noting)
    for number in range(WARM_UP + 3):
        image = torch.full((2, 3, 4, 5), float(number)).contiguous(memory_format=torch.channels_last)
        batch = [image, torch.full((2, 8), float(number))[:, ::2], torch.arange(2.0).add(number).expand(3, 2)]
        before = model.weight._version
        graphed.take(batch)
        assert (model.weight._version > before) == (number >= WARM_UP)  # a replay is known to have written
        assert image.unique().item() == number
        if number >= WARM_UP - 1:
            (inputs,) = graphed._inputs.values()
            assert all(torch.equal(held.tensor, tensor) for held, tensor in zip(inputs, batch, strict=True))
    assert graphed.recorded
    assert graphed.obstacle is None
    assert len({tuple(places) for places in found[WARM_UP - 1 :]}) == 1


def test_rates_stay_where_they_are():
    rates = Rates(2, CPU)
    tensor = rates.set(0, 0.25)
    assert tensor.item() == 0.25
    assert rates.set(0, 0.5) is tensor
    assert tensor.item() == 0.5
    assert rates.set(1, 0.125) is not tensor
    assert tensor.item() == 0.5


def test_watch_knows_copies_between_devices():
    watch = Watch(CPU)
    with watch:
        torch.zeros(2).add(1).repeat_interleave(2)
    assert watch.obstacle is None
    with watch:
        torch.zeros(2).to("meta")
    assert watch.obstacle is not None
    assert "between cpu and meta" in watch.obstacle


def test_graph_is_asked_for_by_a_bool_and_a_device():
    with pytest.raises(TypeError, match="cuda_graph"):
        settings(cuda_graph=1)
    with pytest.raises(ValueError, match="cuda_graph: expected a model on a CUDA device, got cpu"):
        train(Net(), squared, torch.randn(6, 4), settings(cuda_graph=True))


class Cuda:
    """As much of torch.cuda as a capture touches; `log` is what was done to it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
        self.log: list[str] = []
        log, stream = self.log, self

        class Graph:
            def __getattr__(self, name):
                def note(*args, **kwargs):
                    log.append(name)
                    if name == "capture_end" and fails:
                        raise RuntimeError("capture is invalid")

                return note

        class Stream:
            def __init__(self, device=None) -> None:
                self.name = "side"

            def wait_stream(self, other) -> None:
                log.append(f"{self.name} waits for {other.name}")

        self.current = Stream()
        self.current.name = "default"

        @contextlib.contextmanager
        def on(other):
            before, stream.current = stream.current, other
            try:
                yield
            finally:
                stream.current = before

        fakes = {
            "CUDAGraph": Graph, "Stream": Stream, "stream": on, "current_stream": lambda device=None: stream.current,
            "device": lambda device: contextlib.nullcontext(), "synchronize": lambda: None, "empty_cache": lambda: None,
            "graph_pool_handle": lambda: (0, 1), "current_device": lambda: 0,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(
                torch._C, name, lambda index, pool, name=name: log.append(name), raising=False
            )


def test_capture_is_made_on_a_stream_of_its_own(monkeypatch):
    cuda = Cuda(monkeypatch, fails=False)
    graph = CudaGraph(torch.device("cuda"))
    with graph.aside():
        assert cuda.current.name == "side"
    made = graph.record(lambda: [cuda.log.append(f"work on {cuda.current.name}")], [torch.Generator()])
    graph.replay()
    assert made == [None]
    assert cuda.current.name == "default"
    assert cuda.log == [
        "side waits for default", "default waits for side", "register_generator_state", "capture_begin",
        "work on side", "capture_end", "replay",
    ]  # fmt: skip


def test_capture_that_fails_is_cleared_away(monkeypatch):
    cuda = Cuda(monkeypatch, fails=True)

    class Generator:
        """A CUDA generator: its state is an object of its own, which a capture can break."""

        def __init__(self, device=None, numbers="new") -> None:
            self.device, self.numbers, self.broken = device, numbers, numbers != "new"

        def get_state(self):
            return self.numbers

        def set_state(self, numbers):
            self.numbers = numbers

        def graphsafe_get_state(self):
            return self

        def graphsafe_set_state(self, other):
            self.numbers, self.broken = other.numbers, other.broken

    generators = [Generator("cuda", "default's"), Generator("cuda", "own")]
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "default_generators", generators[:1])

    def work():
        raise RuntimeError("operation not permitted")

    with pytest.raises(RuntimeError, match="operation not permitted"):
        CudaGraph(torch.device("cuda", 0)).record(work, generators[1:])
    assert cuda.current.name == "default"
    assert cuda.log[-3:] == ["capture_end", "_cuda_endAllocateToPool", "_cuda_releasePool"]
    assert [(g.numbers, g.broken) for g in generators] == [("default's", False), ("own", False)]
