"""Fully connected reflection networks: against the eager twin, the papers' equations, and at the edges."""

from __future__ import annotations

import copy
import gzip
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmser import Lmser, reflection_loss
from lmser.baselines import EagerLmser
from lmser.models.initialisation import balanced_gains

SIZES = (13, 9, 7, 5)
VARIANTS = {
    "Lmser": {},
    "Lmser-w": {"dcw": False},
    "Lmser-n": {"dpn": False},
    "AE": {"dcw": False, "dpn": False},
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
        # The code gets a gradient of its own: without labels no other reaches it directly.
        grads = torch.autograd.grad(loss + output.code.square().sum(), [seen, *network.parameters()])
        results.append((output.reconstruction, output.code, loss, *grads))
        assert (output.logits is None) == (network.num_classes is None)
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
    x = torch.randn(4, SIZES[0], dtype=dtype)
    assert_agree(Lmser(SIZES, impl=impl, **kwargs), EagerLmser(SIZES, **kwargs), x, y, tolerance)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "sigmoid", "tanh", "leaky_sigmoid"])
@pytest.mark.parametrize("num_classes", [None, 2])
def test_equals_eager_twin_for_every_activation(activation, num_classes, impl):
    slope = 0.3 if activation.startswith("leaky") else None
    kwargs = {
        "activation": activation, "slope": slope, "reflections": 2, "num_classes": num_classes,
        "dtype": torch.float64,
    }  # fmt: skip
    x = 3 * torch.randn(4, SIZES[0], dtype=torch.float64)
    assert_agree(Lmser(SIZES, impl=impl, **kwargs), EagerLmser(SIZES, **kwargs), x, None, 1e-10)


@pytest.mark.parametrize("sizes", [(6, 4), (6, 1), (1, 1, 1), (4, 8, 16)])
@pytest.mark.parametrize("reflections", [1, 3])
def test_any_depth_and_width(sizes, reflections):
    kwargs = {"reflections": reflections, "dtype": torch.float64}
    x = torch.randn(3, sizes[0], dtype=torch.float64)
    assert_agree(Lmser(sizes, **kwargs), EagerLmser(sizes, **kwargs), x, None, 1e-10)


def test_two_reflections_by_hand():
    # 001 Eqs. (3)-(5) written out for t = 0 ... 4, with the readings of the docstring.
    torch.manual_seed(1)
    network = Lmser((4, 3, 2), reflections=2, activation="tanh", dtype=torch.float64)
    w1, w2 = (w.detach().numpy() for w in network.weights)
    b1, b2 = (b.detach().numpy() for b in network.biases)
    b0 = network.reconstruction_bias.detach().numpy()
    x = np.random.randn(5, 4)
    y1 = x @ w1.T
    h1 = np.tanh(y1 + b1)  # t = 0, u = 0
    h2 = np.tanh(h1 @ w2.T + b2)
    h1 = np.tanh(y1 + h2 @ w2 + b1)  # t = 1, down with y_1 held
    h2 = np.tanh(h1 @ w2.T + b2)  # t = 2, up with u_1 held: h_1 stays; nothing is above layer 2
    h1 = np.tanh(y1 + h2 @ w2 + b1)  # t = 3
    output = network(torch.from_numpy(x))
    np.testing.assert_allclose(output.reconstruction.detach(), h1 @ w1 + b0, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(output.code.detach(), h2, rtol=1e-12)


# The gradients that 001 derives (one reflection). Index conventions of the paper: W_ijk joins unit i of layer
# k-1 and unit j of layer k; z^e and z^d are a unit's values on the way up and down, s' the derivative of its
# activation there (1 for the reconstruction, layer 0), and z^d_L = z^e_L at the top. Biases are inside s.
# What is wrong in print:
#
# - Eqs. (8), (10), (11), (15) have a minus sign before dJ/dW on the left of some lines and not of others.
#   With the dJ/dz of Eq. (7) there is none.
# - Eq. (15), last term: sum_j s'_jk delta_jq z^e_p(k-1) W_ijk from Eqs. (12) and (14) leaves a factor
#   W_iqk, which the printed formula has lost.
# - At the top, k = L, there is no top-down signal u_L: there the unit is driven by y_L alone, in Lmser-n as
#   well.


class PaperGradients:
    """dJ/dW by the formulas, in loops over the paper's indices."""

    def __init__(self, network: Lmser, x: np.ndarray) -> None:
        self.network, self.depth = network, network.depth
        # w[k][p, q] is W_pqk: the transpose of the parameter.
        self.w = [None, *(w.detach().numpy().T for w in network.weights)]
        free = network.decoder_weights
        self.wd = self.w if free is None else [None, *(w.detach().numpy().T for w in free)]
        bias = [b.detach().numpy() for b in (network.reconstruction_bias, *network.biases)]
        top = self.depth
        self.ze, y = [x], [None]
        for k in range(1, top + 1):
            y.append(self.ze[k - 1] @ self.w[k])
            self.ze.append(self.s(y[k] + bias[k]))
        self.zd = [None] * top + [self.ze[top]]
        for k in range(top - 1, 0, -1):
            u = self.zd[k + 1] @ self.wd[k + 1].T
            self.zd[k] = self.s(u + bias[k] + (y[k] if network.dpn else 0))
        self.zd[0] = self.zd[1] @ self.wd[1].T + bias[0]
        # Eq. (7), from J = 1/2 E|x - z^d_0|²; the top's z^d and z^e are one.
        self.dzd = [(self.zd[0] - x) / len(x)]
        for k in range(1, top + 1):
            self.dzd.append((self.dzd[k - 1] * self.slope_d(k - 1)) @ self.wd[k])
        self.dze = [None] * top + [self.dzd[top]]
        for k in range(top - 1, 0, -1):
            self.dze[k] = (self.dze[k + 1] * self.slope(self.ze[k + 1])) @ self.w[k + 1].T

    def s(self, z: np.ndarray) -> np.ndarray:
        return np.maximum(z, 0) if self.network.activation == "relu" else np.tanh(z)

    def slope(self, h: np.ndarray) -> np.ndarray:
        return (h > 0) * 1.0 if self.network.activation == "relu" else 1 - h * h

    def slope_d(self, k: int) -> np.ndarray:
        return np.ones_like(self.zd[0]) if k == 0 else self.slope(self.zd[k])

    def decoder(self, k: int, p: int, q: int) -> float:
        """Eq. (10), left: dJ/dW^d_pqk of AE."""
        return float(np.sum(self.dzd[k - 1][:, p] * self.slope_d(k - 1)[:, p] * self.zd[k][:, q]))

    def encoder(self, k: int, p: int, q: int) -> float:
        """Eq. (10), right: dJ/dW^e_pqk of AE."""
        return float(np.sum(self.dze[k][:, q] * self.slope(self.ze[k])[:, q] * self.ze[k - 1][:, p]))

    def drive_derivatives(self, k: int, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
        """du^d_jk/dW_pqk and dy_jk/dW_pqk for all j, both through what W_k does on the way up."""
        n, top = len(self.ze[0]), self.depth
        dy = [None] * (top + 1)
        dy[k] = np.zeros((n, self.w[k].shape[1]))
        dy[k][:, q] = self.ze[k - 1][:, p]  # Eq. (14): delta_jq z^e_p(k-1)
        for layer in range(k + 1, top + 1):
            dy[layer] = (dy[layer - 1] * self.slope(self.ze[layer - 1])) @ self.w[layer]
        du = np.zeros_like(dy[top])
        for layer in range(top, k, -1):
            driven = du + (dy[layer] if self.network.dpn or layer == top else 0)
            du = (driven * self.slope(self.zd[layer])) @ self.wd[layer].T
        return du, dy[k]

    def tied(self, k: int, p: int, q: int) -> float:
        """Eq. (13) without paired neurons, Eq. (15) with them."""
        du, dy = self.drive_derivatives(k, p, q)
        paired = self.network.dpn or k == self.depth
        below = self.dzd[k - 1] * self.slope_d(k - 1)
        total = float(np.sum(below[:, p] * self.zd[k][:, q]))
        for i in range(below.shape[1]):
            for j in range(du.shape[1]):
                s_jk = self.slope(self.zd[k])[:, j]
                total += float(np.sum(below[:, i] * s_jk * du[:, j])) * self.wd[k][i, j]
            if paired:
                s_qk = self.slope(self.zd[k])[:, q]
                total += float(np.sum(below[:, i] * s_qk * dy[:, q])) * self.wd[k][i, q]
        return total


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("variant", ["AE", "Lmser-n", "Lmser"])
def test_analytic_gradients_of_001(variant, activation, impl):
    network = Lmser((6, 5, 4, 3), activation=activation, dtype=torch.float64, impl=impl, **VARIANTS[variant])
    x = torch.randn(7, 6, dtype=torch.float64)
    network.loss(x).backward()
    paper = PaperGradients(network, x.numpy())
    for k in range(1, network.depth + 1):
        shape = paper.w[k].shape
        formulas = {"weights": paper.tied if network.dcw else paper.encoder}
        if not network.dcw:
            formulas["decoder_weights"] = paper.decoder
        for name, formula in formulas.items():
            grad = getattr(network, name)[k - 1].grad.numpy().T
            expected = [[formula(k, p, q) for q in range(shape[1])] for p in range(shape[0])]
            assert np.abs(grad).max() > 1e-6  # units are alive: the comparison says something
            np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_sigmoid"])
def test_reflections_converge_on_small_weights(activation):
    network = Lmser((20, 16, 12, 8), activation=activation, dtype=torch.float64)
    with torch.no_grad():
        for weight in network.weights:
            weight.mul_(0.4 / torch.linalg.matrix_norm(weight, 2))
    x = torch.randn(10, 20, dtype=torch.float64)
    outputs = []
    for k in range(1, 6):
        network.reflections = k
        outputs.append(network(x).reconstruction)
    steps = [float((b - a).abs().max().detach()) for a, b in itertools.pairwise(outputs)]
    assert steps[0] > 1e-9
    for earlier, later in itertools.pairwise(steps):
        assert later < 0.2 * earlier


def test_without_pairing_reflections_change_nothing():
    torch.manual_seed(3)
    network = Lmser(SIZES, dpn=False)
    x = torch.randn(4, SIZES[0])
    once = network(x)
    network.reflections = 4
    for a, b in zip(once, network(x), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_reflections_beyond_the_first_do_something():
    torch.manual_seed(3)
    network = Lmser(SIZES, reflections=1)
    x = torch.randn(4, SIZES[0])
    once = network(x).reconstruction
    network.reflections = 2
    assert (network(x).reconstruction - once).abs().max() > 1e-5


def test_shapes_and_flattening():
    network = Lmser((784, 30, 10), num_classes=4)
    x = torch.rand(3, 1, 28, 28)
    output = network(x)
    assert output.reconstruction.shape == x.shape
    assert output.code.shape == (3, 10)
    assert output.logits.shape == (3, 4)
    assert torch.equal(output.reconstruction.flatten(1), network(x.flatten(1)).reconstruction)
    assert network(torch.rand(0, 784)).reconstruction.shape == (0, 784)


def test_activation_on_the_code_but_not_on_the_logits():
    torch.manual_seed(0)
    network = Lmser(SIZES, num_classes=3)
    with torch.no_grad():
        network.biases[-1].fill_(-10.0)  # every unit of the top is driven far below zero
    output = network(torch.randn(4, SIZES[0]))
    assert (output.logits < -5).all()
    assert torch.equal(output.code[:, :3], output.logits)
    assert torch.equal(output.code[:, 3:], torch.zeros(4, 2))
    # Logits go down as they are: raising them by the bias moves the reconstruction.
    with torch.no_grad():
        network.biases[-1][:3] += 1
    assert not torch.equal(network(torch.randn(4, SIZES[0])).reconstruction, output.reconstruction)


def test_loss_is_half_the_squared_error_summed_and_cross_entropy():
    network = Lmser(SIZES, num_classes=5, dtype=torch.float64)
    x, y = torch.randn(6, SIZES[0], dtype=torch.float64), torch.randint(0, 5, (6,))
    output = network(x)
    squares = 0.5 * ((x - output.reconstruction) ** 2).sum(1).mean()
    surprise = -torch.log_softmax(output.logits, 1)[torch.arange(6), y].mean()
    torch.testing.assert_close(network.loss(x, y), squares + surprise)
    torch.testing.assert_close(network.loss(x), squares)


def test_half_precision_loss_is_summed_in_float32():
    network = Lmser((4096, 8), dtype=torch.bfloat16)
    x = torch.full((2, 4096), 8.0, dtype=torch.bfloat16)
    loss = network.loss(x)
    assert loss.dtype == torch.float32
    expected = 0.5 * (x.double() - network(x).reconstruction.double()).square().sum() / 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_decode_of_the_own_code_is_the_reconstruction_without_pairing():
    network = Lmser(SIZES, dpn=False, num_classes=2, dtype=torch.float64)
    x = torch.randn(4, SIZES[0], dtype=torch.float64)
    output = network(x)
    torch.testing.assert_close(network.decode(output.code), output.reconstruction)


def test_decode_drives_paired_neurons_from_above_alone():
    network = Lmser(SIZES, dtype=torch.float64)
    unpaired = Lmser(SIZES, dpn=False, dtype=torch.float64)
    unpaired.load_state_dict(network.state_dict())
    twin = EagerLmser(SIZES, dtype=torch.float64)
    twin.load_state_dict(network.state_dict())
    code = torch.randn(4, SIZES[-1], dtype=torch.float64)
    torch.testing.assert_close(network.decode(code), unpaired.decode(code))
    torch.testing.assert_close(network.decode(code), twin.decode(code))
    assert network.decode(code).shape == (4, SIZES[0])


@pytest.mark.parametrize("reflections", [1, 3])
def test_decode_with_an_image_holds_its_drives(reflections, impl):
    kwargs = {"reflections": reflections, "num_classes": 2, "dtype": torch.float64}
    network = Lmser(SIZES, impl=impl, **kwargs)
    twin = EagerLmser(SIZES, **kwargs)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(4, 1, SIZES[0], dtype=torch.float64)
    output = network(x)
    torch.testing.assert_close(
        network.decode(output.code, image=x), output.reconstruction.flatten(1), rtol=1e-12, atol=1e-14
    )
    code = torch.randn(4, SIZES[-1], dtype=torch.float64)
    decoded = network.decode(code, image=x)
    assert (decoded - network.decode(code)).abs().max() > 1e-3
    torch.testing.assert_close(decoded, twin.decode(code, image=x), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="image: expected one for each of the 4 codes, got 3"):
        network.decode(code, image=x[:3])
    with pytest.raises(ValueError, match=r"image: expected shape \(N, 13\)"):
        network.decode(code, image=x[..., :5])


def test_decode_with_an_image_is_plain_decoding_without_pairing():
    network = Lmser(SIZES, dpn=False, dtype=torch.float64)
    code, x = (torch.randn(4, size, dtype=torch.float64) for size in (SIZES[-1], SIZES[0]))
    torch.testing.assert_close(network.decode(code, image=x), network.decode(code))


def test_style_units_get_noise_in_training_only():
    network = Lmser(SIZES, num_classes=5, style_units=2)
    x = torch.randn(200, SIZES[0])
    network.eval()
    quiet = network(x)
    assert quiet.code.shape == (200, 7)
    assert torch.equal(network(x).code, quiet.code)
    assert (quiet.code[:, 5:] < 0).any()  # linear: the mean of a Gaussian may be negative
    network.train()
    noise = network(x).code - quiet.code
    assert torch.equal(noise[:, :5], torch.zeros(200, 5))
    assert 0.8 < noise[:, 5:].std() < 1.2
    assert abs(noise[:, 5:].mean()) < 0.2


def test_style_noise_reaches_the_reconstruction_and_obeys_the_generator(impl):
    network = Lmser(SIZES, style_units=3, reflections=2, impl=impl, dtype=torch.float64)
    twin = EagerLmser(SIZES, style_units=3, reflections=2, dtype=torch.float64)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(4, SIZES[0], dtype=torch.float64)

    def run(network: nn.Module, seed: int) -> Tensor:
        return network(x, generator=torch.Generator().manual_seed(seed)).reconstruction

    assert torch.equal(run(network, 1), run(network, 1))
    assert (run(network, 1) - run(network, 2)).abs().max() > 1e-3
    torch.testing.assert_close(run(network, 1), run(twin, 1))
    before = torch.get_rng_state()
    run(network, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_names():
    shapes = {name: tuple(value.shape) for name, value in Lmser((6, 4, 2), dcw=False).state_dict().items()}
    assert shapes == {
        "weights.0": (4, 6), "weights.1": (2, 4), "biases.0": (4,), "biases.1": (2,),
        "reconstruction_bias": (6,), "decoder_weights.0": (4, 6), "decoder_weights.1": (2, 4),
    }  # fmt: skip
    assert "decoder_weights.0" not in Lmser((6, 4, 2)).state_dict()


def test_copies_and_device_and_dtype():
    network = Lmser(SIZES, num_classes=2, dtype=torch.float64)
    twin = copy.deepcopy(network)
    x = torch.randn(2, SIZES[0])
    assert torch.equal(twin(x.double()).reconstruction, network(x.double()).reconstruction)
    assert network.float()(x).reconstruction.dtype == torch.float32
    assert Lmser(SIZES, device="meta").weights[0].device.type == "meta"


def test_default_initialisation_is_that_of_a_stack_of_linears():
    torch.manual_seed(5)
    network = Lmser((20, 10, 5))
    torch.manual_seed(5)
    first, second = nn.Linear(20, 10), nn.Linear(10, 5)
    for got, expected in zip(
        (*network.weights, *network.biases),
        (first.weight, second.weight, first.bias, second.bias),
        strict=True,
    ):
        assert torch.equal(got, expected)
    assert network.reconstruction_bias.abs().max() <= 1 / math.sqrt(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_isometric_start(dtype):
    network = Lmser((20, 10, 15), dcw=False, init="isometric", dtype=dtype)
    tolerance = {"atol": 5e-2 if dtype == torch.bfloat16 else 1e-5, "rtol": 0}
    first, second = (weight.detach().float() for weight in network.weights)
    torch.testing.assert_close(first @ first.T, torch.eye(10), **tolerance)
    torch.testing.assert_close(second.T @ second, torch.eye(10), **tolerance)
    for free, weight in zip(network.decoder_weights, network.weights, strict=True):
        assert torch.equal(free, weight)
        assert free is not weight
    assert not any(bias.any() for bias in (*network.biases, network.reconstruction_bias))


def test_balanced_start_reconstructs_with_gain_one():
    # What the rule promises: over the draw of W, E[reconstruction] = x for a signal symmetric about zero.
    torch.manual_seed(0)
    x = torch.randn(64, 60)
    gains = []
    for _ in range(40):
        network = Lmser((60, 40, 30), init="balanced")
        reconstruction = network(x).reconstruction.detach()
        gains.append(float((reconstruction * x).sum() / x.square().sum()))
    assert abs(np.mean(gains) - 1) < 0.05
    assert balanced_gains(network)[0] == balanced_gains(network)[1] > 1


def test_balanced_start_without_pairing_keeps_the_mean_square_up():
    torch.manual_seed(0)
    network = Lmser((400, 300, 200), dpn=False, init="balanced")
    x = torch.randn(64, 400)
    first = torch.relu(x @ network.weights[0].T)
    assert abs(float(first.detach().square().mean()) - 1) < 0.1


BAD = {
    "sizes: expected at least two": ((7,), {}),
    "sizes: expected at least 1, got 0": ((7, 0), {}),
    "sizes: expected an int": ((7, 2.0), {}),
    "reflections: expected at least 1": ((7, 3), {"reflections": 0}),
    "reflections: expected an int": ((7, 3), {"reflections": True}),
    "num_classes: expected at least 1": ((7, 3), {"num_classes": 0}),
    "num_classes: 4 class units": ((7, 3), {"num_classes": 4}),
    "style_units: expected at least 0": ((7, 3), {"style_units": -1}),
    "activation must be one of": ((7, 3), {"activation": "gelu"}),
    "slope is for": ((7, 3), {"slope": 0.1}),
    "init: expected one of 'default'": ((7, 3), {"init": "he"}),
}


@pytest.mark.parametrize("message", BAD)
def test_refuses_bad_arguments(message):
    sizes, kwargs = BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        Lmser(sizes, **kwargs)


def test_refuses_bad_input():
    network = Lmser(SIZES)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 13\).*got \(4, 12\)"):
        network(torch.randn(4, 12))
    with pytest.raises(ValueError, match=r"x: expected shape .*got \(13,\)"):
        network(torch.randn(13))
    with pytest.raises(ValueError, match=r"code: expected shape \(N, 5\)"):
        network.decode(torch.randn(2, 6))
    with pytest.raises(ValueError, match="y: labels were given"):
        network.loss(torch.randn(2, 13), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="x: expected the reconstruction's shape"):
        reflection_loss(network(torch.randn(2, 13)), torch.randn(2, 12))


def test_compiles_without_a_graph_break(impl):
    network = Lmser(SIZES, num_classes=3, reflections=2, impl=impl)
    x = torch.randn(4, SIZES[0])
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x), network(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_second_order_gradients(impl):
    network = Lmser((4, 3, 2), activation="tanh", reflections=2, dtype=torch.float64, impl=impl)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: network(x).reconstruction.sum(), (x,))


def test_import_is_light():
    code = (
        "import sys, lmser; assert 'torch' not in sys.modules; lmser.Lmser; assert 'torch' in sys.modules; "
        "assert not {'safetensors', 'matplotlib', 'PIL'} & set(sys.modules); "
        "assert 'CLmser' in dir(lmser) and not hasattr(lmser, 'lmsr')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)


@pytest.mark.slow
def test_readings_reproduce_the_order_of_000_table_1(request):
    folder = request.config.getoption("--data")
    if folder is None:
        pytest.skip("needs --data with a folder mnist")

    def images(name: str) -> Tensor:
        with gzip.open(Path(folder) / "mnist" / f"{name}-images-idx3-ubyte.gz") as file:
            raw = file.read()
        return torch.from_numpy(
            np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
        )

    train, test = images("train"), images("t10k")
    errors = {}
    for variant in ("AE", "Lmser-n", "Lmser"):
        torch.manual_seed(0)
        network = Lmser((784, 300, 100, 10), **VARIANTS[variant])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
        order = torch.randperm(len(train))
        for step in range(500):
            optimizer.param_groups[0]["lr"] = 0.001 * 0.9999**step
            optimizer.zero_grad()
            network.loss(train[order[50 * step : 50 * step + 50]]).backward()
            optimizer.step()
        with torch.no_grad():
            errors[variant] = float((network(test).reconstruction - test).square().mean())
    # In eager code, over seeds: 0.036-0.045, 0.028-0.031, 0.0045.
    assert 0.033 < errors["AE"] < 0.050
    assert 0.026 < errors["Lmser-n"] < 0.033
    assert 0.0040 < errors["Lmser"] < 0.0055
