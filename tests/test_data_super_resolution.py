"""Super-resolution sets as made-up folders, the bicubic filter against its definition, and pairs of patches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lmser.data import BadData, MissingData, PatchPairs, load_super_resolution
from lmser.data.super_resolution import SuperResolutionSet, bicubic_low
from lmser.metrics import luminance_psnr, luminance_ssim, psnr, ssim

Image = pytest.importorskip("PIL.Image", reason="images are decoded by pillow, of the extra 'experiments'")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Bytes that are neither flat nor at the ends of their range, where rounding would hide the filter."""
    coarse = torch.rand(1, 3, height // 2 + 1, width // 2 + 1, generator=generator(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (64 + 128 * smooth).round().to(torch.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def weights(size_in: int, size_out: int) -> Tensor:
    """Keys' cubic convolution with a = -1/2, `(size_out, size_in)`: pixels' centres aligned, widened by the
    factor of a reduction, cut at the edge and normalised."""
    factor = size_in / size_out
    widening = max(factor, 1.0)
    result = torch.zeros(size_out, size_in, dtype=torch.float64)
    for i in range(size_out):
        for j in range(size_in):
            t = abs((j + 0.5 - (i + 0.5) * factor) / widening)
            if t < 1:
                result[i, j] = 1.5 * t**3 - 2.5 * t**2 + 1
            elif t < 2:
                result[i, j] = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return result / result.sum(dim=1, keepdim=True)


def test_the_filter_is_bicubic() -> None:
    image = picture(20, 26)
    down = weights(20, 10) @ image.double() @ weights(26, 13).T
    expected = weights(10, 20) @ down @ weights(13, 26).T
    found = bicubic_low(image)
    assert found.shape == (3, 20, 26)
    assert found.dtype == torch.uint8
    error = (found.double() - expected).abs()
    assert float(error.max()) < 2  # bytes after each of four passes
    assert float(error.mean()) < 0.5  # with a = -0.6: 0.85
    assert float((image.double() - expected).abs().mean()) > 1  # the filter does something


def test_load_super_resolution(tmp_path: Path) -> None:
    first, second = picture(13, 21), picture(12, 9, seed=1)
    save(tmp_path / "sr" / "Set5" / "b.png", first.permute(1, 2, 0).numpy())
    save(tmp_path / "sr" / "Set5" / "a.png", second[0].numpy())
    (tmp_path / "sr" / "Set5" / ".DS_Store").write_bytes(b"")
    found = load_super_resolution(tmp_path, "Set5")
    assert found.names == ("a.png", "b.png")
    assert len(found) == 2
    assert found.name == "Set5, 2 images, scale 2 by pillow's bicubic filter"
    assert torch.equal(found.high[0], second[:1, :12, :8].expand(3, 12, 8))  # grey becomes RGB
    assert torch.equal(found.high[1], first[:, :12, :20])
    for high, low in zip(found.high, found.low, strict=True):
        assert high.is_contiguous()
        assert torch.equal(low, bicubic_low(high))


def test_places_and_errors(tmp_path: Path) -> None:
    with pytest.raises(
        MissingData, match=r"Urban100 was not found: .*sr/Urban100.*; put the full-resolution images"
    ):
        load_super_resolution(tmp_path, "Urban100")
    folder = tmp_path / "Urban100"
    folder.mkdir()
    with pytest.raises(BadData, match="Urban100: it holds no image"):
        load_super_resolution(tmp_path, "Urban100")
    save(folder / "img.png", np.zeros((8, 8, 3), np.uint8))
    assert len(load_super_resolution(tmp_path, "Urban100")) == 1
    (folder / "img.txt").write_text("text")
    with pytest.raises(BadData, match=r"img\.txt: expected only image files \(\.png, \.jpg, \.jpeg\)"):
        load_super_resolution(tmp_path, "Urban100")
    (folder / "img.txt").rename(folder / "text.png")
    with pytest.raises(BadData, match=r"text\.png: it is not a JPEG or PNG image"):
        load_super_resolution(tmp_path, "Urban100")
    save(folder / "text.png", np.zeros((1, 8, 3), np.uint8))
    with pytest.raises(BadData, match=r"text\.png: the image is 1x8, too small to be halved"):
        load_super_resolution(tmp_path, "Urban100")
    with pytest.raises(
        ValueError, match="name must be one of T91, Set5, Set14, BSD100, Urban100, got 'set5'"
    ):
        load_super_resolution(tmp_path, "set5")
    with pytest.raises(MissingData, match="load_super_resolution: the data folder"):
        load_super_resolution(tmp_path / "x", "Set5")


def numbered(*sizes: tuple[int, int]) -> SuperResolutionSet:
    """Images whose red is the image's number, green the row and blue the column; the low ones 100 more."""
    high = []
    for number, (height, width) in enumerate(sizes):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        high.append(torch.stack([torch.full_like(rows, number), rows, columns]).to(torch.uint8))
    low = tuple(image + 100 for image in high)
    return SuperResolutionSet(tuple(high), low, tuple(f"{i}.png" for i in range(len(sizes))), "numbered")


def test_patches_are_cut_from_one_place() -> None:
    pairs = PatchPairs(numbered((12, 20), (8, 8), (30, 10)), size=6)
    assert pairs.places == 7 * 15 + 3 * 3 + 25 * 5
    low, high = pairs.draw(500, generator())
    assert low.shape == high.shape == (500, 3, 6, 6)
    assert low.dtype == high.dtype == torch.uint8
    assert torch.equal(low, high + 100)
    side = torch.arange(6)
    for patch in high.long():
        image, top, left = patch[:, 0, 0].tolist()
        height, width = ((12, 20), (8, 8), (30, 10))[image]
        assert 0 <= top <= height - 6
        assert 0 <= left <= width - 6
        assert bool((patch[0] == image).all())
        assert torch.equal(patch[1], (top + side)[:, None].expand(6, 6))
        assert torch.equal(patch[2], (left + side).expand(6, 6))


def test_every_place_is_equally_likely() -> None:
    pairs = PatchPairs(numbered((4, 6), (4, 4), (6, 4)), size=4)
    assert pairs.places == 3 + 1 + 3
    _, high = pairs.draw(7000, generator())
    counts: dict[tuple[int, ...], int] = {}
    for corner in high[:, :, 0, 0].tolist():
        counts[tuple(corner)] = counts.get(tuple(corner), 0) + 1
    assert sorted(counts) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0)]
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations of 29


def test_a_function_of_the_generator_alone() -> None:
    pairs = PatchPairs(numbered((60, 50)))
    stream = generator(1)
    first = pairs.draw(4, stream)[1]
    torch.manual_seed(3)
    assert torch.equal(pairs.draw(4, generator(1))[1], first)
    assert not torch.equal(pairs.draw(4, stream)[1], first)


def test_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"size must be at most a side of every image, got 40 and 1\.png of 50x38"
    ):
        PatchPairs(numbered((40, 40), (50, 38)))
    with pytest.raises(ValueError, match="PatchPairs: size must be at least 1, got 0"):
        PatchPairs(numbered((40, 40)), 0)
    pairs = PatchPairs(numbered((40, 40)))
    with pytest.raises(ValueError, match=r"PatchPairs\.draw: count must be at least 1, got 0"):
        pairs.draw(0, generator())
    with pytest.raises(TypeError, match=r"PatchPairs\.draw: generator must be a torch\.Generator, got int"):
        pairs.draw(1, 0)  # type: ignore[arg-type]
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"bicubic_low: image must be uint8 of shape \(3, H, W\), got"):
            bicubic_low(wrong)
    for height, width in ((3, 4), (4, 5), (0, 4)):
        with pytest.raises(ValueError, match=f"both sides must be even and positive, got {height}x{width}"):
            bicubic_low(torch.zeros(3, height, width, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("T91", 91, None),
        ("Set5", 5, (33.67, 0.9303, 31.79, 0.9088)),
        ("Set14", 14, (30.32, 0.8698, 28.30, 0.8426)),
        ("BSD100", 100, (29.56, 0.8434, 28.23, 0.8299)),
    ],
)
def test_real_data(
    request: pytest.FixtureRequest, name: str, count: int, expected: tuple[float, ...] | None
) -> None:
    """The baseline, as the module's docstring has it."""
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads real photographs; give their folder with --data DIR")
    try:
        found = load_super_resolution(data, name)
    except MissingData as error:
        pytest.skip(str(error))
    assert len(found) == count
    if expected is None:
        low, high = PatchPairs(found).draw(64, generator())
        assert 25 < luminance_psnr(low, high, 255.0) < 40
        return
    for metric, value in zip((luminance_psnr, luminance_ssim, psnr, ssim), expected, strict=True):
        values = [metric(a[None], b[None], 255.0) for a, b in zip(found.low, found.high, strict=True)]
        assert math.fsum(values) / count == pytest.approx(value, abs=0.006 if value > 1 else 0.0006)
