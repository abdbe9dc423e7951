"""Convolutional reflection networks: against the eager twin, in every shape and layout, and at the edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from lmser import CLmser, Lmser, reflection_loss
from lmser.baselines import EagerCLmser

CHANNELS, STRIDES = (8, 6, 5), (1, 2, 2)
VARIANTS = {
    "CLmser": {},
    "CLmser-w": {"dcw": False},
    "CLmser-n": {"dpn": False},
    "CAE": {"dcw": False, "dpn": False},
}


def relative(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).detach())


def assert_agree(fused: nn.Module, eager: nn.Module, x: Tensor, y: Tensor | None, tolerance: float) -> None:
    """Outputs, loss and the gradient of every parameter and of the input."""
    eager.load_state_dict(fused.state_dict())
    results = []
    for network in (fused, eager):
        seen = x.clone().requires_grad_()
        output = network(seen)
        loss = reflection_loss(output, seen, y)
        grads = torch.autograd.grad(loss + output.code.square().sum(), [seen, *network.parameters()])
        results.append((output.reconstruction, output.code, loss, *grads))
        if output.logits is not None:
            results[-1] += (output.logits,)
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        assert relative(got, expected) < tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reflections", [1, 2, 3])
@pytest.mark.parametrize("num_classes", [None, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_equals_eager_twin(variant, reflections, num_classes, dtype, tolerance, impl):
    kwargs = {**VARIANTS[variant], "reflections": reflections, "num_classes": num_classes, "dtype": dtype}
    y = None if num_classes is None else torch.tensor([0, 2, 1, 1])
    fused = CLmser(3, CHANNELS, STRIDES, impl=impl, **kwargs)
    x = torch.randn(4, 3, 11, 8, dtype=dtype)
    assert_agree(fused, EagerCLmser(3, CHANNELS, STRIDES, **kwargs), x, y, tolerance)


SHAPES = {
    "one channel": ((1, (16, 32), (1, 2)), {}, (2, 1, 12, 12)),
    "odd": ((3, (4, 5, 6), (1, 2, 2)), {}, (2, 3, 13, 9)),
    "one pixel": ((3, (4, 5), (1, 2)), {}, (2, 3, 1, 1)),
    "down to one pixel": ((2, (4, 5, 6), (2, 2, 2)), {}, (2, 2, 8, 5)),
    "kernel 5, stride 3": ((2, (4, 5), (3, 3)), {"kernel_size": 5}, (2, 2, 20, 17)),
    "kernel 4, stride 2": ((2, (4, 5), (2, 2)), {"kernel_size": 4}, (2, 2, 11, 12)),
    "kernel 1": ((2, (4, 5), (1, 1)), {"kernel_size": 1}, (2, 2, 5, 6)),
    "a signal": ((1, (4, 5), ((1, 2), (1, 4))), {"kernel_size": (1, 9)}, (2, 1, 1, 101)),
    "no sample": ((3, (4, 5), (1, 2)), {}, (0, 3, 8, 8)),
}


@pytest.mark.parametrize("reflections", [1, 3])
@pytest.mark.parametrize("case", SHAPES)
def test_any_shape(case, reflections, impl):
    args, kwargs, shape = SHAPES[case]
    kwargs = {**kwargs, "reflections": reflections, "dtype": torch.float64}
    fused, eager = CLmser(*args, impl=impl, **kwargs), EagerCLmser(*args, **kwargs)
    x = torch.randn(shape, dtype=torch.float64)
    if shape[0] == 0:
        eager.load_state_dict(fused.state_dict())
        assert fused(x).reconstruction.shape == eager(x).reconstruction.shape == x.shape
    else:
        assert_agree(fused, eager, x, None, 1e-10)


@pytest.mark.parametrize("size", [(96, 96), (97, 97), (95, 98)])
def test_reconstruction_has_the_size_of_the_image(size):
    network = CLmser(3, (4, 6, 8, 10, 12), (1, 2, 2, 2, 2))
    output = network(torch.randn(1, 3, *size))
    assert output.reconstruction.shape == (1, 3, *size)
    assert output.code.shape == (1, 12, *network.layer_sizes(size)[-1])
    assert output.code.shape[2:] == tuple(-(-n // 16) for n in size)


def views(x: Tensor) -> dict[str, Tensor]:
    wide = torch.randn(x.shape[0], x.shape[1], 2 * x.shape[2], x.shape[3] + 3)
    wide[:, :, ::2, 1:-2] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": wide[:, :, ::2, 1:-2],
        "transposed": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_same_result_and_channels_last_in_every_layout(channels, impl):
    network = CLmser(channels, CHANNELS, STRIDES, reflections=2, impl=impl)
    reference = None
    for x in views(torch.randn(2, channels, 9, 12)).values():
        output = network(x)
        loss = network.loss(x)
        assert output.reconstruction.is_contiguous(memory_format=torch.channels_last)
        assert output.code.is_contiguous(memory_format=torch.channels_last)
        if reference is not None:
            # PyTorch's own kernels go by the strides even where a size is 1, and then round otherwise.
            exact = {"rtol": 0, "atol": 0} if impl == "native" else {}
            torch.testing.assert_close(output.reconstruction, reference[0], **exact)
            torch.testing.assert_close(loss, reference[1], **exact)
        reference = (output.reconstruction, loss)


def test_fully_connected_is_the_one_pixel_case():
    wide = Lmser((12, 8, 5), num_classes=2, reflections=2, dtype=torch.float64)
    deep = CLmser(12, (8, 5), (1, 1), kernel_size=1, num_classes=2, reflections=2, dtype=torch.float64)
    deep.load_state_dict(
        {k: v[:, :, None, None] if v.dim() == 2 else v for k, v in wide.state_dict().items()}
    )
    x = torch.randn(3, 12, dtype=torch.float64)
    for a, b in zip(wide(x), deep(x[:, :, None, None]), strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape))


def test_logits_are_channels_averaged_over_positions():
    network = CLmser(3, CHANNELS, STRIDES, num_classes=2)
    output = network(torch.randn(2, 3, 12, 12))
    torch.testing.assert_close(output.logits, output.code[:, :2].mean((2, 3)))
    assert (output.code[:, 2:] >= 0).all()
    assert (output.code[:, :2] < 0).any()


def test_reflections_converge_on_small_weights():
    network = CLmser(2, CHANNELS, STRIDES, init="isometric", dtype=torch.float64)
    with torch.no_grad():
        for weight in network.weights:
            weight.mul_(0.3)
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    outputs = []
    for k in range(1, 6):
        network.reflections = k
        outputs.append(network(x).reconstruction.detach())
    steps = [float((b - a).abs().max()) for a, b in itertools.pairwise(outputs)]
    assert steps[0] > 1e-9
    for earlier, later in itertools.pairwise(steps):
        assert later < 0.2 * earlier


@pytest.mark.parametrize("size", [None, (24, 32), (23, 29)])
def test_decode(size):
    network = CLmser(3, CHANNELS, STRIDES, dpn=False, dtype=torch.float64)
    twin = EagerCLmser(3, CHANNELS, STRIDES, dpn=False, dtype=torch.float64)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, *(size or (24, 32)), dtype=torch.float64)
    output = network(x)
    decoded = network.decode(output.code, size)
    torch.testing.assert_close(decoded, output.reconstruction)
    torch.testing.assert_close(decoded, twin.decode(output.code, size))
    paired = CLmser(3, CHANNELS, STRIDES, dtype=torch.float64)
    paired.load_state_dict(network.state_dict())
    torch.testing.assert_close(paired.decode(output.code, size), decoded)


@pytest.mark.parametrize("size", [(28, 28), (13, 22)])
def test_decode_with_an_image_holds_its_drives(size):
    network = CLmser(2, (3, 4, 5), (1, 2, 2), reflections=2, dtype=torch.float64)
    twin = EagerCLmser(2, (3, 4, 5), (1, 2, 2), reflections=2, dtype=torch.float64)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    output = network(x)
    torch.testing.assert_close(network.decode(output.code, image=x), output.reconstruction)
    code = torch.randn_like(output.code)
    decoded = network.decode(code, size, image=x)
    assert (decoded - network.decode(code, size)).abs().max() > 1e-3
    torch.testing.assert_close(decoded, twin.decode(code, image=x), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="image: expected one for each of the 3 codes, got 2"):
        network.decode(code, image=x[:2])
    with pytest.raises(ValueError, match="size: expected that of the image"):
        network.decode(code, (size[0] + 1, size[1]), image=x)
    with pytest.raises(ValueError, match="but this code is"):
        network.decode(code[:, :, :2], image=x)


def test_decode_refuses_a_size_that_has_another_code():
    network = CLmser(3, CHANNELS, STRIDES)
    with pytest.raises(ValueError, match=r"size: images of \(28, 40\) have codes of \(7, 10\)"):
        network.decode(torch.randn(1, 5, 7, 7), (28, 40))
    with pytest.raises(ValueError, match=r"code: expected shape \(N, 5, H, W\)"):
        network.decode(torch.randn(1, 4, 7, 7))


def test_style_channels(impl):
    kwargs = {"num_classes": 3, "style_units": 2, "dtype": torch.float64}
    network, twin = (
        CLmser(3, CHANNELS, STRIDES, impl=impl, **kwargs),
        EagerCLmser(3, CHANNELS, STRIDES, **kwargs),
    )
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for training in (True, False):
        outputs = [
            model.train(training)(x, generator=torch.Generator().manual_seed(1)) for model in (network, twin)
        ]
        torch.testing.assert_close(outputs[0], outputs[1])
    assert outputs[0].code.shape[1] == 7


def test_state_dict_names_are_those_of_the_twin():
    for variant in VARIANTS.values():
        network, twin = CLmser(3, CHANNELS, STRIDES, **variant), EagerCLmser(3, CHANNELS, STRIDES, **variant)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in twin.state_dict().items()
        }
    assert network.state_dict()["decoder_weights.1"].shape == (6, 8, 3, 3)


def test_isometric_start_is_orthonormal_over_the_patch():
    network = CLmser(3, (16, 32, 400), (1, 2, 3), init="isometric")
    for weight, stride in zip(network.weights, network.strides, strict=True):
        matrix = weight.detach().flatten(1) * 3 / stride[0]
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


def test_autocast(impl):
    network = CLmser(3, CHANNELS, STRIDES, reflections=2, impl=impl)
    x = torch.randn(2, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(x)
        loss = network.loss(x)
    assert output.reconstruction.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert relative(output.reconstruction.float(), network(x).reconstruction) < 0.05
    loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


def test_compiles_without_a_graph_break(impl):
    network = CLmser(3, CHANNELS, STRIDES, num_classes=3, reflections=2, impl=impl)
    x = torch.randn(2, 3, 11, 12)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_learns():
    torch.manual_seed(0)
    network = CLmser(3, (8, 12), (1, 2), init="isometric")
    x = torch.rand(16, 3, 12, 12) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = network.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


BAD = {
    "in_channels: expected at least 1": ((0, (4,), (1,)), {}),
    "channels: expected at least one layer": ((3, (), ()), {}),
    "channels: expected at least 1, got 0": ((3, (4, 0), (1, 1)), {}),
    "strides: expected one for each of the 2 layers, got 1": ((3, (4, 5), (1,)), {}),
    "strides: expected at least 1": ((3, (4,), (0,)), {}),
    "strides: expected an int or a pair": ((3, (4,), ((1, 2, 3),)), {}),
    "kernel_size: expected an int or a pair": ((3, (4,), (1,)), {"kernel_size": 3.0}),
    "kernel_size: expected at least 1": ((3, (4,), (1,)), {"kernel_size": (3, 0)}),
    "num_classes: 5 class units": ((3, (4,), (1,)), {"num_classes": 5}),
}


@pytest.mark.parametrize("message", BAD)
def test_refuses_bad_arguments(message):
    args, kwargs = BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        CLmser(*args, **kwargs)


def test_refuses_bad_input():
    network = CLmser(3, CHANNELS, STRIDES)
    for call in (network, network.loss):
        with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
            call(torch.randn(2, 1, 8, 8))
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
