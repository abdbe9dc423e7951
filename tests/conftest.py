"""What every test gets: a fixed seed, empty memory poisoned with NaN, the implementations to compare."""

from __future__ import annotations

import os

# Before torch starts its threads, and for the processes that tests start: small cases spread over threads only
# wait for one another, and bits are compared between processes. A test about threads asks for them.
os.environ["OMP_NUM_THREADS"] = "1"

import gc
import random
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from lmser_kernels import _library

settings.register_profile(
    "lmser",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("lmser")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-native",
        action="store_true",
        help="fail instead of skip where the compiled library is missing",
    )
    parser.addoption(
        "--device",
        default="cpu",
        help="where the operations are tested (cpu, cuda); elsewhere than on cpu only tests marked operators or device run",
    )
    parser.addoption(
        "--part",
        default="1/1",
        help="which of several equal parts of the tests to run, 2/3 for every third from the second on",
    )
    parser.addoption(
        "--fused",
        choices=["native", "triton"],
        default=None,
        help="the kernels that tests of the operations are about: native (the default on cpu), or triton (the only "
        "one on cuda), which on cpu runs in Triton's interpreter",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: needs the compiled library")
    config.addinivalue_line(
        "markers", "operators: of the operations themselves; --fused and --device are about these"
    )
    config.addinivalue_line("markers", "many_calls: numerical derivatives and the like")
    config.addinivalue_line("markers", "device: of networks and training; runs on --device too")
    device = config.getoption("--device")
    # Read by tests/implementations.py when the tests are imported.
    os.environ["LMSER_TEST_DEVICE"] = device
    os.environ["LMSER_TEST_FUSED"] = config.getoption("--fused") or (
        "native" if device == "cpu" else "triton"
    )
    if device == "cpu":
        # Triton reads its switch when it is imported, and when kernels are defined.
        assert "triton" not in sys.modules
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        # cuBLAS refuses to be deterministic without; read when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False
    # A shell starts what runs in its background with SIGINT ignored, and python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = items[:] if config.getoption("--device") == "cpu" else [i for i in items if _on_devices(i)]
    part, parts = map(int, config.getoption("--part").split("/"))
    chosen = chosen[part - 1 :: parts]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def _on_devices(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("operators", "device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    options = item.config.option
    if item.get_closest_marker("many_calls") and (options.device, options.fused) == ("cpu", "triton"):
        pytest.skip("hundreds of calls take minutes in Triton's interpreter")
    if item.get_closest_marker("native") is None or _library.available:
        return
    if item.config.getoption("--require-native"):
        pytest.fail(f"the compiled library is required: {_library.error}")
    pytest.skip(str(_library.error))


@pytest.fixture(params=_library.module.cpu_info()["runs_here"] if _library.module else ["none"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that runs here, in turn, for `native` tests."""
    assert _library.module is not None
    before = _library.module.choose_isa(request.param)
    yield request.param
    _library.module.choose_isa(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that asks for threads gives them back."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _poisoned_empties() -> Iterator[None]:
    """Every `empty` tensor, Python's or a compiled kernel's, starts as NaN: what is not written shows."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="module")
def light_collections() -> Iterator[None]:
    """Measuring memory collects garbage, several times a run: not through all that pytest and torch hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["reference", pytest.param("fused", marks=pytest.mark.native)])
def impl(request: pytest.FixtureRequest) -> str:
    """The reference, and the kernels that the tests are about."""
    if request.param == "reference":
        return "reference"
    fused: str = os.environ["LMSER_TEST_FUSED"]
    return fused


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that `--device` names."""
    return torch.device(request.config.getoption("--device"))
