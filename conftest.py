"""The one command-line option of the tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        metavar="DIR",
        default=None,
        help="folder of real data sets (mnist, fashion-mnist, stl10_like, …) for the tests that read them",
    )
