"""Networks, their training and what says what runs, on the device that ``--device`` names (the CPU by default)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from training_cases import Crash, assert_same_run, crash_after, flat
from training_cases import few_objects_to_collect as few_objects_to_collect

from lmser import CLmser, Lmser
from lmser.baselines import EBGAN, InpaintingLoss, PConvUNet, SmallCNN, UNet
from lmser.inversion import SemiSupervised
from lmser.models import CBAN, FBAN
from lmser.training import NotCapturable, TrainConfig, train
from lmser_kernels import _library, add_act, chips, doctor, explain

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def _nothing_is_there_by_default() -> Iterator[None]:
    """What is on the device was put there: with the default device elsewhere."""
    with torch.device("cpu"):
        yield


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    return device


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def masks(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


Case = tuple[nn.Module, Callable[..., Tensor], tuple[Tensor, ...]]

# The network, its loss, and what that takes.
CASES: dict[str, Callable[[], Case]] = {
    "Lmser": lambda: (
        Lmser((16, 9, 6), num_classes=3),
        lambda m, x, y: m.loss(x, y),
        (pictures(5, 16), torch.arange(5) % 3),
    ),
    "CLmser": lambda: (
        CLmser(3, (4, 6), (2, 2), reflections=2),
        lambda m, x: m.loss(x),
        (pictures(2, 3, 9, 8),),
    ),
    "FBAN": lambda: (
        FBAN((12, 7), theta=0.0, max_steps=6),
        lambda m, x, seen: m.loss(x, seen, kind="delta_e"),
        (0.9 * pictures(4, 12), masks(4, 12)),
    ),
    "FBAN, implicit": lambda: (
        FBAN((12, 7), theta=1e-9, max_steps=200, backward="implicit", unconverged="ignore"),
        lambda m, x, seen: m.loss(x, seen),
        (0.9 * pictures(4, 12), masks(4, 12)),
    ),
    "CBAN": lambda: (
        CBAN((2, 5), pools=(2,), theta=0.0, max_steps=4),
        lambda m, x, seen: m.loss(x, seen, td=0.5),
        (pictures(2, 2, 6, 6) - 0.5, masks(2, 2, 6, 6)),
    ),
    "UNet": lambda: (UNet(1, (4, 6), (2, 2)), lambda m, x: m.loss(x), (pictures(2, 1, 8, 8),)),
    "PConvUNet": lambda: (
        PConvUNet(3, depth=3, width=0.1),
        lambda m, x, gone: InpaintingLoss(None)(m(x, gone), x, gone),
        (pictures(2, 3, 16, 16), masks(2, 1, 16, 16)),
    ),
    "EBGAN": lambda: (
        EBGAN(width=2, noise=4, code=4),
        lambda m, x: m.discriminator_loss(x, shared={"fake": x.flip(0)}),
        (pictures(3, 1, 28, 28),),
    ),
    "SemiSupervised": lambda: (
        SemiSupervised(SmallCNN(in_channels=1, num_classes=3)),
        lambda m, x, y: m.loss(x, y),
        (pictures(4, 1, 28, 28), torch.arange(4) - 1),
    ),
}


def gradients(
    model: nn.Module,
    loss: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The loss and the gradients, on the CPU in float64."""
    model = copy.deepcopy(model).to(device, dtype).train()
    found = loss(model, *(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in given))
    found.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.device.type == device.type for grad in grads)
    return [t.detach().cpu().double() for t in (found, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_cpu_in_float64(device, name):
    torch.manual_seed(3)
    model, loss, given = CASES[name]()
    wanted = gradients(model, loss, given, torch.device("cpu"), torch.float64)
    # float64 of two alone: a GPU's kernels are compiled anew for it.
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        if dtype == torch.float64 and name not in ("CLmser", "FBAN"):
            continue
        found = gradients(model, loss, given, device, dtype)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, w, rtol=tolerance, atol=tolerance * max(1.0, float(w.abs().max())))


# Training.


class Noisy(nn.Module):
    """Noise of the device's generator, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 16)
        )

    def loss(self, x: Tensor) -> Tensor:
        return (self.inner(x) - x - 0.01 * torch.randn_like(x)).square().mean()


BUILDS = {
    "Noisy": Noisy,
    "Lmser": lambda: Lmser((16, 9, 6), reflections=2),
    "FBAN": lambda: FBAN((16, 9), theta=0.0, max_steps=5),
}


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model.loss(x)


def damaged(x: Tensor) -> Tensor:
    """On the host, as the masks of the experiments are drawn."""
    keep = torch.rand(x.shape) > 0.1
    return torch.where(keep.to(x.device), x, 0.0) + 0 * float(x.cpu().sum())


def trained(device: torch.device, build: Callable[[], nn.Module], *, loss=loss_of, on=None, **changes):
    options = {
        name: changes.pop(name) for name in ("run_dir", "resume", "on_step", "transform") if name in changes
    }
    config = TrainConfig(**{"steps": 13, "batch_size": 6, "lr": 0.01, "gamma": 0.99, **changes})
    torch.manual_seed(5)
    model = build().to(device)
    data = torch.rand(22, 16, generator=torch.Generator().manual_seed(1))
    result = train(model, loss, data if on is None else data.to(on), config, **options)
    return flat({name: t.cpu() for name, t in model.state_dict().items()}), result


@pytest.mark.parametrize("optimizer", ["adam", "sgd-l2"])
@pytest.mark.parametrize("name", BUILDS)
def test_a_replayed_run_gives_the_bits_of_an_ordinary_one(gpu, caplog, name, optimizer):
    momentum = 0.0 if optimizer == "adam" else 0.9
    settings = {"optimizer": optimizer, "momentum": momentum, "transform": damaged}
    plain, first = trained(gpu, BUILDS[name], cuda_graph=False, **settings)
    graphed, second = trained(gpu, BUILDS[name], cuda_graph=True, **settings)
    assert plain == graphed
    assert first.curve == second.curve
    assert not caplog.messages


def test_autocast_is_recorded_too(gpu):
    plain, _ = trained(gpu, BUILDS["Lmser"], cuda_graph=False, precision="bfloat16")
    assert plain == trained(gpu, BUILDS["Lmser"], cuda_graph=True, precision="bfloat16")[0]


def test_generator_of_ones_own_is_recorded_too(gpu):
    def run(graph: bool):
        own = torch.Generator(gpu).manual_seed(4)

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            return model.loss(x + 0.1 * torch.randn(x.shape, generator=own, device=x.device))

        return trained(gpu, BUILDS["Noisy"], loss=loss, cuda_graph=graph)[0], own.get_state().tolist()

    assert run(False) == run(True)


def test_a_capture_that_fails_leaves_an_ordinary_run(gpu, caplog):
    def waiting(model: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = model.loss(x)
        torch.cuda.current_stream().synchronize()  # no operator, so nothing that is seen beforehand
        return found

    plain, _ = trained(gpu, BUILDS["Noisy"], loss=waiting, cuda_graph=False)
    with caplog.at_level(logging.WARNING):
        again, _ = trained(gpu, BUILDS["Noisy"], loss=waiting)
    assert plain == again
    assert "the capture failed" in caplog.text
    with pytest.raises(NotCapturable, match="the capture failed"):
        trained(gpu, BUILDS["Noisy"], loss=waiting, cuda_graph=True)
    assert plain == trained(gpu, BUILDS["Noisy"], cuda_graph=True)[0]  # the device is none the worse for it


@pytest.mark.parametrize("on", ["cpu", "device"])
def test_resumed_run_equals_an_uninterrupted_one(device, tmp_path, on):
    where = device if on == "device" else None
    settings = {"transform": damaged, "on": where}
    whole, _ = trained(device, BUILDS["Noisy"], run_dir=tmp_path / "whole", **settings)
    with pytest.raises(Crash):
        trained(
            device, BUILDS["Noisy"], run_dir=tmp_path / "parts", checkpoint_every=5, on_step=crash_after(8), **settings
        )  # fmt: skip
    parts, _ = trained(device, BUILDS["Noisy"], run_dir=tmp_path / "parts", resume=True, **settings)
    assert whole == parts
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_settling_is_captured_in_a_graph_of_ones_own(gpu):
    torch.manual_seed(2)
    network = FBAN((12, 7), theta=1e-4, max_steps=40, init=0.4).to(gpu)
    given, seen = (2 * pictures(4, 12) - 1).to(gpu, torch.float32), masks(4, 12).to(gpu)
    other = given.flip(0).contiguous()
    with torch.no_grad():
        wanted = network.read(network.complete(other, seen))
        side = torch.cuda.Stream(gpu)
        side.wait_stream(torch.cuda.current_stream(gpu))
        with torch.cuda.stream(side):
            network.complete(given, seen)
        torch.cuda.current_stream(gpu).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = network.read(network.complete(given, seen))
        given.copy_(other)
        graph.replay()
    torch.testing.assert_close(found, wanted)


# What says what runs.


def test_explain_knows_the_device(device):
    x = torch.rand(2, 3, 8, 6, device=device)
    found = explain(add_act, x, x)
    if device.type == "cuda" and _library.available:
        assert found.implementation == "triton"
        assert found.plans["launch 1"]["grid"]
        assert found.source
    if _library.available:
        assert found.bound == "memory"


def test_doctor_measures_the_gpu(gpu, capsys):
    assert doctor.main(["--device", str(gpu), "--seconds", "0.02", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "GPU measured now" in shown
    assert torch.cuda.get_device_name(gpu) in shown


def test_rates_are_those_of_a_gpu(gpu):
    found = chips.measure(gpu, 0.02)
    assert found["bfloat16_gflops"] > found["float32_gflops"] > 100
    assert found["copy_gbs"] > 100
