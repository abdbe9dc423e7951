"""VGG-16's features: torchvision's network by its file, a stated substitute without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lmser import features
from lmser.data import BadData, MissingData
from lmser.features import VGG16Features, find_weights

SHAPES = {
    "0": (64, 3), "2": (64, 64), "5": (128, 64), "7": (128, 128), "10": (256, 128), "12": (256, 256),
    "14": (256, 256),
}  # fmt: skip


def a_state() -> dict[str, torch.Tensor]:
    """torchvision's names and shapes, with layers that are not used here and random values."""
    state = {"classifier.0.weight": torch.zeros(3, 3), "features.17.weight": torch.zeros(512, 256, 3, 3)}
    for number, (above, below) in SHAPES.items():
        state[f"features.{number}.weight"] = torch.randn(above, below, 3, 3) / (3 * below**0.5)
        state[f"features.{number}.bias"] = torch.randn(above)
    return state


def pools_by_hand(state: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """Configuration D of the paper up to the third pool, on normalised images."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, pools = (images - mean[:, None, None]) / std[:, None, None], []
    for block in (("0", "2"), ("5", "7"), ("10", "12", "14")):
        for number in block:
            x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
            x = F.relu(x)
        x = F.max_pool2d(x, 2, 2)
        pools.append(x)
    return pools


def test_weights_of_a_file(tmp_path: Path) -> None:
    state, images = a_state(), torch.rand(2, 3, 17, 8)
    torch.save(state, tmp_path / "mine.pth")
    network = VGG16Features(weights=tmp_path / "mine.pth")
    for pool, expected in zip(network(images), pools_by_hand(state, images), strict=True):
        torch.testing.assert_close(pool, expected)
    assert [tuple(pool.shape[1:]) for pool in network(images)] == [(64, 8, 4), (128, 4, 2), (256, 2, 1)]
    assert network.name == "VGG-16, weights of mine.pth"
    assert network.name in repr(network)
    assert network.file == tmp_path / "mine.pth"


def test_torchvisions_file_is_found_and_told_by_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "vgg16-397923af.pth"
    torch.save(a_state(), file)
    assert find_weights(tmp_path, file.name) == file
    with pytest.raises(BadData, match=r"its sha256 should start with 397923af but is .* not torchvision's"):
        VGG16Features(tmp_path)
    monkeypatch.setattr(features, "sha256_of", lambda path: "397923af" + "0" * 56)
    network = VGG16Features(tmp_path)
    assert network.name == "VGG-16, ImageNet weights"
    assert network.sha256 == "397923af" + "0" * 56
    assert torch.equal(network.layers["2"].weight, torch.load(file)["features.2.weight"])


def test_the_substitute_says_so_and_is_the_same_every_time(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16)
    state = torch.get_rng_state()
    network = VGG16Features(tmp_path)
    assert network.name == "VGG-16, random weights (seed 0)"
    assert (network.file, network.sha256) == (None, None)
    for pool, again in zip(network(images), VGG16Features()(images), strict=True):
        assert torch.equal(pool, again)
    assert not torch.equal(network(images).pool3, VGG16Features(seed=1)(images).pool3)
    assert VGG16Features(seed=1).name == "VGG-16, random weights (seed 1)"
    for layer in network.layers.values():
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not layer.bias.any()
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator


def test_gradient_reaches_the_images_and_not_the_weights() -> None:
    network, images = VGG16Features(), torch.rand(1, 3, 8, 8, requires_grad=True)
    sum(pool.sum() for pool in network(images)).backward()
    assert images.grad.abs().min() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("features.7.bias"), r"features\.7\.bias: expected \(128,\), got nothing"),
        (
            lambda state: state.update({"features.2.weight": torch.zeros(64, 3, 3, 3)}),
            r"features\.2\.weight: expected \(64, 64, 3, 3\), got \(64, 3, 3, 3\)",
        ),
    ],
)
def test_refuses_foreign_files(tmp_path: Path, spoil, message: str) -> None:
    state = a_state()
    spoil(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(BadData, match=r"x\.pth: " + message):
        VGG16Features(weights=tmp_path / "x.pth")


def test_refuses_files_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(BadData, match=r"text\.pth: not a file of weights"):
        VGG16Features(weights=tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(BadData, match=r"empty\.pth: not a file of weights"):
        VGG16Features(weights=tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BadData, match=r"list\.pth: expected a state_dict, got list"):
        VGG16Features(weights=tmp_path / "list.pth")
    torch.save(test_weights_of_a_file, tmp_path / "code.pth")  # a pickled function must not be called
    with pytest.raises(BadData, match=r"code\.pth: not a file of weights"):
        VGG16Features(weights=tmp_path / "code.pth")
    with pytest.raises(MissingData, match="weights: there is no file"):
        VGG16Features(weights=tmp_path / "nowhere.pth")


def test_refuses_bad_images() -> None:
    network = VGG16Features()
    with pytest.raises(ValueError, match=r"images: expected shape \(N, 3, H, W\), got \(1, 1, 8, 8\)"):
        network(torch.rand(1, 1, 8, 8))
    with pytest.raises(TypeError, match=r"images: expected floating point values on \[0, 1\]"):
        network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images: expected at least 8x8 pixels, got 7x9"):
        network(torch.rand(1, 3, 7, 9))
