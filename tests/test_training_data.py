"""Data that is read while the network trains: order, workers, what is waited for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_cases import Crash, assert_same_run, crash_after
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser.training import ConfigMismatch, Dataset, Interrupted, Run, Sampler, TrainConfig, train

CONFIG = TrainConfig(steps=13, batch_size=4, lr=0.01, seed=5, checkpoint_every=4)


def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (18, 6), dtype=torch.uint8, generator=generator), torch.arange(18)


class Stored(torch.utils.data.Dataset):
    """The tensors above, read one by one, each after `seconds`; `noisy`: with noise on every reading."""

    def __init__(self, seconds: float = 0.0, noisy: bool = False, changed: int = 0) -> None:
        self.images, self.numbers = tensors()
        self.images[0, 0] += changed
        self.seconds, self.noisy = seconds, noisy

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.seconds)
        image = self.images[index]
        if self.noisy:
            image = image + torch.randint(0, 9, (6,), dtype=torch.uint8) + int(np.random.randint(9))
        return image, self.numbers[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()


def to_float(images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    return images.float() / 255, numbers


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 6))


def loss_fn(model: nn.Module, x: Tensor, numbers: Tensor) -> Tensor:
    return (model(x) - x).square().mean()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def workers(count: int) -> TrainConfig:
    return dataclasses.replace(CONFIG, workers=count)


def test_equals_the_tensors_whatever_the_number_of_workers():
    assert isinstance(Stored(), Dataset)
    expected = network()
    curve = train(expected, loss_fn, tensors(), CONFIG, transform=to_float).curve
    for count in (0, 1, 2):
        model = network()
        before = torch.get_rng_state()
        assert train(model, loss_fn, Stored(), workers(count), transform=to_float).curve == curve
        assert torch.equal(weights(model), weights(expected))
        assert torch.equal(torch.get_rng_state(), before)


def test_reads_in_the_samplers_order():
    seen = []

    def loss(model: nn.Module, x: Tensor, numbers: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        seen.append(numbers.tolist())
        return model(x.float()).square().mean()

    train(network(), loss, Stored(), workers(2))
    sampler = Sampler(18, 4, seed=5)
    assert seen == [sampler.indices(step).tolist() for step in range(13)]


def test_what_a_data_set_draws_hangs_on_seed_and_step_alone():
    curves = [
        train(network(), loss_fn, Stored(noisy=True), workers(count), transform=to_float).curve
        for count in (0, 2)
    ]
    assert curves[0] == curves[1]
    other = dataclasses.replace(CONFIG, seed=6)
    assert train(network(), loss_fn, Stored(noisy=True), other, transform=to_float).curve != curves[0]
    assert train(network(), loss_fn, Stored(), CONFIG, transform=to_float).curve != curves[0]


def test_resumes_to_the_same_bits_with_other_workers(tmp_path):
    def part(name: str, count: int, **kwargs: object) -> None:
        model, data = network(), Stored(noisy=True)
        train(
            model, loss_fn, data, workers(count), transform=to_float, run_dir=tmp_path / name, resume=True,
            **kwargs,
        )  # fmt: skip

    part("whole", 0)
    for count, crash in ((0, 6), (2, 11)):
        with pytest.raises(Crash):
            part("parts", count, on_step=crash_after(crash))
    assert Run(tmp_path / "parts").step == 8
    part("parts", 1)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_refuses_to_resume_on_other_samples(tmp_path):
    def begin(data: Stored, **kwargs: object) -> None:
        train(network(), loss_fn, data, CONFIG, transform=to_float, run_dir=tmp_path, **kwargs)

    with pytest.raises(Crash):
        begin(Stored(), on_step=crash_after(2))
    with pytest.raises(ConfigMismatch, match="data was"):
        begin(Stored(changed=1), resume=True)


def test_workers_hide_the_reading():
    def loss(model: nn.Module, x: Tensor, numbers: Tensor) -> Tensor:
        time.sleep(0.1)  # an accelerator at work
        return loss_fn(model, x, numbers)

    # Long enough that the start of two processes, a second on a busy machine, is not what is measured.
    config = dataclasses.replace(CONFIG, steps=40)
    data = Stored(seconds=0.02)  # 0.08 s for a whole batch
    alone = train(network(), loss, data, config, transform=to_float)
    helped = train(network(), loss, data, dataclasses.replace(config, workers=2), transform=to_float)
    assert alone.curve == helped.curve
    assert 8 * 18 * 0.02 <= alone.seconds_waiting < alone.seconds - 40 * 0.1
    # Reading sleeps, so that it can be hidden on one core; the first batch cannot.
    assert 0.08 <= helped.seconds_waiting < alone.seconds_waiting / 2


def test_waiting_is_added_up_over_sessions(tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=1)
    with pytest.raises(Crash):
        train(
            network(), loss_fn, Stored(0.005), config, transform=to_float, run_dir=tmp_path,
            on_step=crash_after(9),
        )  # fmt: skip
    first = Run(tmp_path).result().seconds_waiting
    assert first >= (7 * 4 + 2) * 0.005  # the fifth of eight steps ends an epoch of 18 images
    last = train(
        network(), loss_fn, Stored(), config, transform=to_float, run_dir=tmp_path, resume=True
    ).seconds_waiting
    assert last > first


def test_a_signal_to_the_whole_group_leaves_the_readers_at_work(tmp_path):
    def interrupt(step: int, loss: Tensor) -> None:
        if step == 6:
            children = torch.multiprocessing.active_children()
            assert len(children) == 2
            for child in children:  # Ctrl-C, and then whoever watches over the group
                os.kill(child.pid, signal.SIGINT)
                time.sleep(0.05)
                os.kill(child.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(network(), loss_fn, Stored(), CONFIG, transform=to_float, run_dir=whole)
    with pytest.raises(Interrupted) as caught:
        train(network(), loss_fn, Stored(), workers(2), transform=to_float, run_dir=parts, on_step=interrupt)
    assert caught.value.step == 6
    assert not torch.multiprocessing.active_children()
    train(network(), loss_fn, Stored(), CONFIG, transform=to_float, run_dir=parts, resume=True)
    assert_same_run(parts, whole)


def test_an_error_in_a_reader_is_told_and_ends_it():
    class Broken(Stored):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            raise OSError(f"picture {index} cannot be read")

    for count in (0, 1):
        with pytest.raises(OSError, match="cannot be read"):
            train(network(), loss_fn, Broken(), workers(count))
    assert not torch.multiprocessing.active_children()


def test_the_transform_may_draw_and_is_checked():
    def noise(images: Tensor, numbers: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images + torch.rand(images.shape)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()

    curves = [train(network(), loss, tensors(), CONFIG, transform=noise).curve for _ in range(2)]
    assert curves[0] == curves[1]
    with pytest.raises(TypeError, match="transform: expected it to return a tensor or several"):
        train(network(), loss, tensors(), CONFIG, transform=lambda *batch: [1.0])


def test_refuses_what_is_no_data_set(tmp_path):
    class Numbered(Stored):
        def fingerprint(self) -> int:  # type: ignore[override]
            return 3

    with pytest.raises(
        TypeError, match=r"data: TensorDataset needs __len__, __getitem__ and fingerprint\(\)"
    ):
        train(network(), loss_fn, TensorDataset(*tensors()), CONFIG)
    with pytest.raises(TypeError, match=r"data: expected fingerprint\(\) to be a string, got int"):
        train(network(), loss_fn, Numbered(), CONFIG, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
