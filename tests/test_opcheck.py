"""`torch.library.opcheck` on every operator: schema, fake, autograd registration, dynamic sizes."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from lmser_kernels import conv2d_add_act, conv_transpose2d_add_act

pytestmark = pytest.mark.native


def tensor(*shape, channels_last=False, requires_grad=True):
    value = torch.randn(shape)
    if channels_last:
        value = value.to(memory_format=torch.channels_last)
    return value.requires_grad_(requires_grad)


def conv(activation, drive, channels_last):
    x, weight = tensor(2, 3, 9, 8, channels_last=channels_last), tensor(5, 3, 3, 2)
    add, bias = (tensor(2, 5, 2, 7), None) if channels_last else (None, tensor(5))
    return x, weight, add, bias, (2, 1), (1, 0), (2, 1), activation, 0.0, drive


def conv_backward(activation, drive, channels_last):
    x, weight, *_ = conv(activation, drive, channels_last)
    grad, h = tensor(2, 5, 2, 7), tensor(2, 5, 2, 7, channels_last=channels_last)
    needs = [True, True, not drive, True]
    return grad, grad if drive else None, h, x, weight, (2, 1), (1, 0), (2, 1), activation, 0.0, needs


def conv_transpose(activation, drive, channels_last):
    z, weight = tensor(2, 5, 3, 4, channels_last=channels_last), tensor(5, 3, 3, 2)
    add, gate = tensor(2, 3, 6, 10), tensor(2, 3, 6, 10, requires_grad=False)
    return (
        *(z, weight, add, tensor(3), gate if drive else None),
        *((2, 1), (1, 0), (6, 5), (1, 2), activation, 0.0, drive, 0.0 if activation == "tanh" else 0.1),
        *(torch.randn(2, 5, 3, 4) if drive else None, 0.2, not drive),
    )


def conv_transpose_backward(activation, drive, channels_last):
    z, weight, grad, _, gate, *_ = conv_transpose(activation, drive, channels_last)
    h = tensor(2, 3, 6, 10, channels_last=channels_last)
    needs = [drive, True, not drive, True]
    return (
        *(grad if drive else None, grad, h, z, weight, gate),
        *((2, 1), (1, 0), (1, 2), activation, 0.0, needs, 0.0 if activation == "tanh" else 0.1),
        *(torch.randn(2, 5, 3, 4) if drive else None, 0.2, not drive),
    )


def tied(activation, drive, channels_last):
    x, weight = tensor(2, 3, 9, 8, channels_last=channels_last), tensor(5, 3, 3, 2)
    return x, tensor(2, 5, 5, 7), weight, (2, 1), (1, 0)


def tied_weight_grad(activation, drive, channels_last):
    x, z, *_ = tied(activation, drive, channels_last)
    return x, z, x if drive else None, z if drive else None, (3, 2), (2, 1), (1, 0)


def add_act(activation, drive, channels_last):
    y = tensor(2, 3, 4, 5, channels_last=channels_last)
    return y, tensor(2, 3, 4, 5) if drive else None, None if drive else tensor(3), activation, 0.0


def add_act_backward(activation, drive, channels_last):
    return tensor(2, 3, 4, 5), tensor(2, 3, 4, 5, channels_last=channels_last), activation, 0.0, drive


WINDOWS = ((3, 2), (2, 1), (1, 0))


def max_pool(activation, drive, channels_last):
    return tensor(2, 3, 7, 6, channels_last=channels_last), *WINDOWS, activation, 0.0


def winners(activation, channels_last):
    x, *windows, _, _ = max_pool(activation, False, channels_last)
    with torch.no_grad():
        h, places = torch.ops.lmser.max_pool2d_act(x, *windows, activation, 0.0)
    return places, None if activation == "identity" else h.requires_grad_()


def max_unpool(activation, drive, channels_last):
    z = tensor(2, 3, 4, 5, channels_last=channels_last)
    return z, *winners(activation, channels_last), (7, 6), *WINDOWS, activation, 0.0


def max_select(activation, drive, channels_last):
    x = tensor(2, 3, 7, 6, channels_last=channels_last)
    return x, *winners(activation, channels_last), *WINDOWS, activation, 0.0


def network(channels_last):
    states = [tensor(2, 2, 6, 4, channels_last=channels_last), tensor(2, 3, 6, 4), tensor(2, 4, 3, 2)]
    return states, [tensor(3, 2, 3, 3), tensor(4, 3, 3, 3)], [tensor(2), tensor(3), tensor(4)]


def settle(activation, drive, channels_last):
    states, weights, biases = network(channels_last)
    evidence, hold = tensor(2, 2, 6, 4), torch.rand(2, 2, 6, 4)
    how = (
        activation,
        0.0,
        "up_down",
        0.0,
        3,
        False,
        drive,
        drive and channels_last,
        drive,
        1e-3,
        0 if drive else 50,
        "ignore",
    )
    given = (evidence, hold) if drive else (None, None)
    return states, weights, [], biases, *given, None, (1, 1, 2, 2), (1, 1, 1, 1), *how


def settle_step(activation, drive, channels_last):
    below, above = tensor(2, 3, 6, 4, channels_last=channels_last), tensor(2, 5, 3, 2)
    evidence, hold, previous = (
        tensor(2, 4, 6, 4),
        torch.randint(0, 2, (2, 4, 6, 4)).float(),
        torch.randn(2, 4, 6, 4),
    )
    given = (evidence, hold, previous) if drive else (None, None, None)
    sides = (below, above, tensor(4, 3, 3, 3), tensor(5, 4, 3, 3), tensor(4))
    return *sides, *given, (1, 1), (1, 1), (1, 1), (2, 2), activation, 0.0


def settle_backward(activation, drive, channels_last):
    states, weights, _ = network(channels_last)
    with torch.no_grad():
        arguments = settle(activation, True, channels_last)
        _, readouts, trajectory, *_ = torch.ops.lmser.settle(*arguments)
    plain = [[t.detach() for t in part] for part in (states, weights)]
    grads, held = [torch.randn(t.shape) for t in states], [t.detach() for t in arguments[4:6]]
    how = ((1, 1, 2, 2), (1, 1, 1, 1), activation, 0.0, "up_down", [True, drive, True, True, False])
    return grads, torch.randn(readouts.shape), *plain, [], *held, False, readouts, trajectory, *how


def settle_adjoint(activation, drive, channels_last):
    states, weights, _ = network(channels_last)
    plain = [[t.detach() for t in part] for part in (states, [0.1 * w for w in weights])]
    grads = [torch.randn(t.shape) for t in states]
    held = (torch.randn(2, 2, 6, 4), torch.rand(2, 2, 6, 4)) if drive else (None, None)
    how = (activation, 0.0, "odd_even", 1e-3, 20, [False, True, drive, drive, False])
    return grads, grads[0], *plain, [], *held, False, plain[0][0], (1, 1, 2, 2), (1, 1, 1, 1), *how


def reflect(activation, drive, channels_last):
    x = tensor(2, 3, 7, 6, channels_last=channels_last)
    weights = [tensor(4, 3, 3, 3), tensor(5, 4, 3, 3), tensor(4, 5, 3, 3)]
    back = [tensor(*w.shape) for w in weights] if drive else []
    biases, noise = [tensor(c) for c in (3, 4, 5, 4)], torch.randn(2, 1, 2, 2) if drive else None
    how = ((1, 1, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1), (1, 1), not channels_last, 2, activation, 0.0, True)
    return x, weights, back, biases, noise, *how


def reflect_backward(activation, drive, channels_last):
    x, weights, back, biases, noise, *how, keep = reflect(activation, drive, channels_last)
    with torch.no_grad():
        reconstruction, code, states = torch.ops.lmser.reflect(x, weights, back, biases, noise, *how, keep)
    plain = [[t.detach() for t in part] for part in (weights, back)]
    grad_code = torch.randn(code.shape) if drive else None
    needs = [channels_last, True, drive]
    return torch.randn(reconstruction.shape), grad_code, x.detach(), *plain, states, *how, needs


def reflect_loss(activation, drive, channels_last):
    x, weights, back, biases, noise, *how, _ = reflect(activation, drive, channels_last)
    target = torch.randn(x.shape) if drive else None
    return x.detach(), target, weights, back, biases, noise, *how, [True, True]


OPERATORS = {
    "reflect": reflect,
    "reflect_backward": reflect_backward,
    "reflect_loss": reflect_loss,
    "conv2d_add_act": conv,
    "conv2d_add_act_backward": conv_backward,
    "conv_transpose2d_add_act": conv_transpose,
    "conv_transpose2d_add_act_backward": conv_transpose_backward,
    "tied_conv2d": tied,
    "tied_conv2d_weight_grad": tied_weight_grad,
    "add_act": add_act,
    "add_act_backward": add_act_backward,
    "settle_step": settle_step,
    "max_pool2d_act": max_pool,
    "max_unpool2d": max_unpool,
    "max_select2d": max_select,
    "settle": settle,
    "settle_backward": settle_backward,
    "settle_adjoint": settle_adjoint,
}


@pytest.mark.parametrize(
    ("activation", "drive", "channels_last"),
    [("tanh", False, True), ("identity", True, False), ("relu", True, True)],
)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, activation, drive, channels_last):
    opcheck(getattr(torch.ops.lmser, name).default, OPERATORS[name](activation, drive, channels_last))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_pixel_takes_the_layout_of_what_joins_it(gated, channels_last):
    z, weight = tensor(2, 5, 1, 1), tensor(5, 3, 3, 3)
    other = tensor(2, 3, 6, 6, channels_last=channels_last, requires_grad=False)
    add, gate = (None, other) if gated else (other, None)
    call = ((1, 1), (0, 0), (3, 3), (2, 2), "identity", 0.0, False, 0.0, None, 0.0, True)
    operator = torch.ops.lmser.conv_transpose2d_add_act.default
    opcheck(operator, (z, weight, add, None, gate, *call))
    h, _ = operator(z, weight, add, None, gate, *call)
    assert h.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_plain_channel_takes_the_layout_of_what_joins_it(down, channels_last):
    source, weight = tensor(2, 1, 6, 6), tensor(*((1, 5) if down else (5, 1)), 3, 3)
    add = tensor(2, 5, 6, 6, channels_last=channels_last, requires_grad=False)
    tail = ((1, 1), "tanh", 0.0, False)
    if down:
        call = (None, (1, 1), (1, 1), (6, 6), *tail, 0.0, None, 0.0, False)
        operator = torch.ops.lmser.conv_transpose2d_add_act.default
    else:
        call = ((1, 1), (1, 1), *tail)
        operator = torch.ops.lmser.conv2d_add_act.default
    opcheck(operator, (source, weight, add, None, *call))
    h, _ = operator(source, weight, add, None, *call)
    assert h.is_contiguous(memory_format=torch.channels_last) == channels_last
    said, _ = operator(source.detach().to(memory_format=torch.channels_last), weight, add, None, *call)
    assert said.is_contiguous(memory_format=torch.channels_last)
    function = conv_transpose2d_add_act if down else conv2d_add_act
    with torch.no_grad():  # without the dispatcher
        h = function(source, weight, add, padding=1)
    assert h.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_every_operator_is_covered():
    from lmser_kernels import _library

    assert set(OPERATORS) == {*_library.OPERATORS, *_library.CPU_OPERATORS}
