"""A process of its own: a training step of every network on a device that is not the CPU, without any such device.

Tensors are fake ones, of a backend that knows nothing but its name. Operations between two devices are refused by
them as by a GPU, and so is reading a value, for which the host would wait. Prints what each network's step gave, "" for
a step that went through, as JSON.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lmser import CLmser, Lmser
from lmser.baselines import (
    CNN,
    EBGAN,
    FCN,
    TOPOLOGIES,
    AudioCNN,
    DenoisingVAE,
    InpaintingLoss,
    PConvUNet,
    PENNet,
    PICNet,
    UNet,
)
from lmser.inversion import SemiSupervised
from lmser.models import attractor_loss
from lmser.training import SGDL2
from lmser.training.obstacles import Watch

DEVICE = "faraway"


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, device=DEVICE)


def masks(*shape: int) -> Tensor:
    return torch.rand(shape, device=DEVICE) > 0.5


def labels(count: int) -> Tensor:
    return torch.randint(3, (count,), device=DEVICE)


def _adversarial(model: PENNet | PICNet) -> Tensor:
    image, mask = pictures(2, 3, 64, 64), masks(2, 1, 64, 64)
    return model.generator_loss(image, mask) + model.discriminator_loss(image, mask)


def _semi_supervised(network: nn.Module, *shape: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    return SemiSupervised(network), lambda model: model.loss(pictures(2, *shape), labels(2) - 1)


def _forgetful(x: Tensor) -> Tensor:
    return x * (2.0 if float(x.detach().mean()) > 0 else 1.0)


# name -> the network, on the CPU, and its loss. The last two are what must not go through.
CASES: dict[str, Callable[[], tuple[nn.Module, Callable[..., Tensor]]]] = {
    "Lmser": lambda: (
        Lmser((16, 8, 6), num_classes=3, style_units=1),
        lambda model: model.loss(pictures(3, 16), labels(3)),
    ),
    "CLmser": lambda: (
        CLmser(3, (4, 6), (2, 2), reflections=2, num_classes=3),
        lambda model: model.loss(pictures(3, 3, 8, 8), labels(3)),
    ),
    "attractor_loss": lambda: (
        nn.Linear(4, 4),
        lambda model: attractor_loss(
            model(pictures(5, 3, 4)).tanh(), pictures(3, 4), kind="delta_e_plus", td=0.5
        ),
    ),
    "FCN": lambda: (FCN((16, 8, 3)), lambda model: model.loss(pictures(3, 16), labels(3))),
    "CNN": lambda: (
        CNN(1, (4, 6), (2, 2), num_classes=3),
        lambda model: model.loss(pictures(3, 1, 8, 8), labels(3)),
    ),
    "UNet": lambda: (UNet(3, (4, 8), (2, 2)), lambda model: model.loss(pictures(2, 3, 8, 8))),
    "PConvUNet": lambda: (
        PConvUNet(3, depth=3, width=0.1),
        lambda model: InpaintingLoss(None)(
            model(pictures(2, 3, 16, 16), masks(2, 1, 16, 16)), pictures(2, 3, 16, 16), masks(2, 1, 16, 16)
        ),
    ),
    "DenoisingVAE": lambda: (
        DenoisingVAE(1, 8, channels=(4, 8)),
        lambda model: model.loss(pictures(2, 1, 8, 8), masks(2, 1, 8, 8)),
    ),
    "EBGAN": lambda: (
        EBGAN(width=2, noise=4, code=4),
        lambda model: model.generator_loss(pictures(4, 1, 28, 28))
        + model.discriminator_loss(pictures(4, 1, 28, 28)),
    ),
    "PENNet": lambda: (PENNet(size=64, width=0.1), _adversarial),
    "PICNet": lambda: (PICNet(size=64, width=0.1), _adversarial),
    "AudioCNN": lambda: _semi_supervised(AudioCNN(2048), 1, 1, 2048),
    **{
        name: lambda build=TOPOLOGIES[name]: _semi_supervised(build(in_channels=1, num_classes=3), 1, 28, 28)  # type: ignore[misc]
        for name in ("SmallCNNmean", "LargeCNNmax", "UResnet2-32")
    },
    "reads a value": lambda: (nn.Linear(4, 4), lambda model: _forgetful(model(pictures(2, 4))).sum()),
    "meets the CPU": lambda: (
        nn.Linear(4, 4),
        lambda model: (model(pictures(2, 4)) + torch.ones(2, 4)).sum(),
    ),
}


def _sent_away(model: nn.Module) -> nn.Module:
    """`model` with fake parameters and buffers; to be called under the fake mode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                far = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
                module._parameters[name] = nn.Parameter(far, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
    return model


def _step(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> str:
    watch = Watch(torch.device(DEVICE))
    try:
        with FakeTensorMode():
            _sent_away(model).train()
            with watch:
                found = loss(model)
                found.backward()
                torch.optim.Adam(model.parameters(), foreach=False, capturable=True).step()
                SGDL2(model.parameters(), 0.1, 0.9, foreach=False).step()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__}: {str(error)[:300]} ({where[-1].filename}:{where[-1].lineno})"
    if watch.obstacle is not None:
        return f"cannot be recorded: {watch.obstacle}"
    return "" if found.device.type == DEVICE else f"the loss is on {found.device}"


if __name__ == "__main__":
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(DEVICE)
    print(json.dumps({name: _step(*build()) for name, build in CASES.items()}))
