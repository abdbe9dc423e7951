"""Tiles: the model's choice, measured tables before it, and tuning with a stopwatch that the test holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from lmser_kernels.gpu import tile_model, tile_table, tiles, tuning
from lmser_kernels.gpu.launch import launch, recording
from lmser_kernels.gpu.tiles import Problem, Tile

SIZES = ((1, 1, 1), (16, 3, 27), (1 << 20, 16, 27), (50176, 256, 2304), (64, 200, 812), (256, 256, 9216))
KINDS = (
    (torch.bfloat16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
    (torch.float32, "ieee"),
    (torch.float64, "ieee"),
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    tiles.forget()
    yield
    tiles.forget()


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
def test_every_tile_fits_the_chip_and_the_dot(dtype: torch.dtype, precision: str, arch: int) -> None:
    for m, n, k in SIZES:
        problem = Problem("conv_up", m, n, k, dtype, precision, arch)
        offered = tiles.candidates(problem)
        assert tiles.choose("conv_up", m, n, k, dtype, precision, arch) in offered
        for tile in offered:
            assert min(tile.m, tile.n, tile.k) >= 16
            assert all(size & (size - 1) == 0 for size in (tile.m, tile.n, tile.k))
            assert tile_model.shared_bytes(tile, dtype.itemsize) < tile_model.shared_limit(arch)


def test_tiles_are_no_larger_than_the_problem_asks() -> None:
    for m, n, k in SIZES:
        for tile in tiles.candidates(Problem("conv_up", m, n, k, torch.bfloat16, "ieee", 90)):
            assert tile.m < 2 * max(m, 16)
            assert tile.n < 2 * max(n, 16)
            assert tile.k < 2 * max(k, 16)


def test_few_rows_take_small_tiles_and_many_take_large_ones() -> None:
    """A tile of 128 x 128 for 256 x 256 would leave 128 of 132 multiprocessors idle."""
    few = tiles.choose("conv_pair", 256, 256, 2304, torch.bfloat16, "ieee", 90)
    many = tiles.choose("conv_up", 1 << 20, 256, 2304, torch.bfloat16, "ieee", 90)
    assert few.m * few.n <= 32 * 32
    assert many.m * many.n == 128 * 128


def test_a_sum_that_is_split_needs_no_small_tiles() -> None:
    whole = tiles.choose("conv_up", 256, 2304, 65536, torch.bfloat16, "ieee", 90)
    split = tiles.choose("weight_grad", 256, 2304, 65536, torch.bfloat16, "ieee", 90)
    assert split.m * split.n >= whole.m * whole.n


def test_a_long_sum_of_few_tiles_is_cut() -> None:
    few = tiles.choose("conv_up", 256, 256, 2304, torch.bfloat16, "ieee", 90)
    assert few.m * few.n >= 64 * 64
    assert tile_model.split(8, 72, 132) == 9
    assert tile_model.split(8, 16, 132) == tile_model.split(100, 72, 132) == 1


def test_the_shipped_table_can_be_read_and_says_what_it_is() -> None:
    table = tile_table.read(tile_table.SHIPPED)
    about = json.loads(tile_table.SHIPPED.read_text())["about"]
    assert ("None has been measured" in about) == (not table)


def test_a_measured_tile_comes_before_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("conv_up", 1000, 60, 500, torch.float32, "tf32", 90)
    other = next(t for t in tiles.candidates(problem) if t != tiles.predicted(problem))
    path = tmp_path / "tiles.json"
    tile_table.write(path, {tile_table.key_of(problem): other}, "of a test")
    monkeypatch.setattr(tile_table, "SHIPPED", path)
    tiles.forget()
    assert tiles.choose("conv_up", 1000, 60, 500, torch.float32, "tf32", 90) == other
    assert tiles.choose("conv_up", 513, 33, 257, torch.float32, "tf32", 90) == other  # the same bucket
    for changed in (("conv_down", 90, "tf32"), ("conv_up", 80, "tf32"), ("conv_up", 90, "ieee")):
        kernel, arch, precision = changed
        found = tiles.choose(kernel, 1000, 60, 500, torch.float32, precision, arch)
        assert found == tiles.predicted(Problem(kernel, 1000, 60, 500, torch.float32, precision, arch))


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiles.json"
    key: tile_table.Key = ("conv_up", 90, "bfloat16", 1024, 64, 512)
    table = {key: Tile(64, 64, 32, 4, 3)}
    tile_table.write(path, table, "first")
    assert tile_table.read(path) == table
    with pytest.raises(TypeError):
        tile_table.write(path, table, "second", fact=object())
    assert tile_table.read(path) == table
    assert [p.name for p in path.parent.iterdir()] == ["tiles.json"]


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=str(path)):
        tile_table.read(path)


def test_the_cache_is_named_after_gpu_and_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    path = tile_table.cache_file("NVIDIA H200")
    assert path.parent == tmp_path / ".cache" / "lmser"
    assert path.name.startswith("tiles-nvidia-h200-triton-3")


# tuning


class _Stopwatch:
    """The seconds of a launch are told by the tile that its problem has taken."""

    def __init__(self, cost: dict[Tile, float]) -> None:
        self.cost, self.last, self.times = cost, Tile(0, 0, 0, 0, 0), list[float]()

    def begin(self) -> None:
        self.times = []

    @contextmanager
    def around(self) -> Iterator[None]:
        yield
        self.times.append(100.0 if self.last == _ELSEWHERE else self.cost.get(self.last, 1.0))

    def seconds(self) -> list[float]:
        return self.times


_ELSEWHERE = Tile(1, 1, 1, 1, 1)  # stands for a launch that no tile has a part in, longer than all that have


class _Kernel:
    """Stands for a kernel in the interpreter."""

    def __getitem__(self, grid: tuple[int, ...]) -> _Kernel:
        return self

    def __call__(self, **arguments: object) -> None:
        pass


def _step(stopwatch: _Stopwatch, broken: frozenset[Tile] = frozenset(), wrong: frozenset[Tile] = frozenset()):  # type: ignore[no-untyped-def]
    from triton.runtime.errors import OutOfResources

    def step() -> torch.Tensor:
        total = torch.ones(4)
        for m in (4096, 64):
            tile = tiles.choose("conv_up", m, 64, 576, torch.float32, "tf32", 90)
            if tile in broken:
                raise OutOfResources(1, 2, "shared memory")
            stopwatch.last = tile
            launch(_Kernel(), (1,), x=total, BLOCK_K=32)
            stopwatch.last = _ELSEWHERE
            launch(_Kernel(), (1,), x=total, BLOCK=32)
            total = total + (5.0 if tile in wrong else 0.0)
        return total

    return step


@pytest.fixture
def _interpreted() -> None:
    from lmser_kernels.gpu.launch import interpreting

    if not interpreting():
        pytest.skip("launches need Triton's interpreter here")


@pytest.mark.usefixtures("_interpreted")
def test_tuning_finds_the_fastest_tile_that_fits() -> None:
    large = Problem("conv_up", 4096, 64, 576, torch.float32, "tf32", 90)
    offered = tiles.candidates(large)
    fast, fastest = offered[1], offered[2]
    watch = _Stopwatch({fast: 0.5, fastest: 0.1})
    found = {
        m.problem: m for m in tuning.tune(_step(watch, frozenset({fastest})), store=False, stopwatch=watch)
    }
    assert found[large].best == fast
    assert fastest not in found[large].seconds
    assert len(found[large].seconds) == len(offered) - 1
    assert found[large].before == tiles.predicted(large)
    assert len(found) == 2


@pytest.mark.usefixtures("_interpreted")
def test_tuning_keeps_the_prediction_where_nothing_is_faster() -> None:
    watch = _Stopwatch({})
    for measured in tuning.tune(_step(watch), store=False, stopwatch=watch):
        assert measured.best == tiles.predicted(measured.problem)


@pytest.mark.usefixtures("_interpreted")
def test_tuning_stores_nothing_where_results_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Problem("conv_up", 4096, 64, 576, torch.float32, "tf32", 90)
    other = next(t for t in tiles.candidates(large) if t != tiles.predicted(large))
    monkeypatch.setattr(tile_table, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "A GPU")
    watch = _Stopwatch({other: 0.1})
    with pytest.raises(ArithmeticError, match="change the step's results"):
        tuning.tune(_step(watch, wrong=frozenset({other})), stopwatch=watch)
    assert not list(tmp_path.iterdir())
    tuning.tune(_step(watch), stopwatch=watch)
    (path,) = tmp_path.iterdir()
    assert tile_table.read(path)[tile_table.key_of(large)] == other


@pytest.mark.usefixtures("_interpreted")
def test_tuning_keeps_backward_passes_in_its_thread() -> None:
    """Those of CUDA tensors have threads of their own otherwise, which do not see that tiles are being tuned."""
    seen = []

    def step() -> torch.Tensor:
        seen.append(torch._C._is_multithreading_enabled())
        return torch.ones(4)

    tuning.tune(step, store=False, stopwatch=_Stopwatch({}))
    assert seen == [False] * len(seen) != []
    assert torch._C._is_multithreading_enabled()


def test_tuning_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match="measures on a GPU"):
        tuning.tune(lambda: None)


def test_problems_of_one_bucket_share_the_tile_that_is_fastest_for_both() -> None:
    one = Problem("conv_up", 1000, 64, 500, torch.float32, "tf32", 90)
    two = Problem("conv_up", 900, 64, 500, torch.float32, "tf32", 90)
    a, b, c = Tile(64, 64, 32, 4, 3), Tile(32, 32, 32, 4, 3), Tile(16, 16, 32, 4, 3)
    found = tuning.by_bucket(
        [tuning.Measured(one, a, {a: 1.0, b: 1.2, c: 5.0}), tuning.Measured(two, a, {a: 3.0, b: 1.0, c: 0.9})]
    )
    assert found == {tile_table.key_of(one): b}


def test_recordings_take_no_machine_s_own_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked for the device"))
    with recording(90):
        tiles.choose("conv_up", 77, 64, 576, torch.float32, "tf32", 90)
