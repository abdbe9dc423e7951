"""Every instruction set that runs here computes the same operations, whichever one is chosen by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from test_add_act import calls as add_act_calls
from test_add_act import check as check_add_act
from test_tied_conv2d import calls as tied_calls
from test_tied_conv2d import check as check_tied
from tied_conv_cases import cases, check_against_oracle

from lmser_kernels import _library, conv2d_add_act, conv_transpose2d_add_act

pytestmark = pytest.mark.native

OTHERS = _library.module.cpu_info()["runs_here"][1:] if _library.module else ["none"]


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = _library.module.choose_isa(name)
    try:
        assert _library.module.cpu_info()["isa"] == name
        yield
    finally:
        _library.module.choose_isa(before)


@pytest.mark.parametrize("isa", OTHERS)
class TestOtherInstructionSets:
    @settings(max_examples=100)
    @given(case=cases(False))
    def test_conv2d_add_act(self, isa, case):
        with instruction_set(isa):
            check_against_oracle(case, conv2d_add_act, "native")

    @settings(max_examples=100)
    @given(case=cases(True))
    def test_conv_transpose2d_add_act(self, isa, case):
        with instruction_set(isa):
            check_against_oracle(case, conv_transpose2d_add_act, "native")

    @settings(max_examples=60)
    @given(call=tied_calls())
    def test_tied_conv2d(self, isa, call):
        with instruction_set(isa):
            check_tied(*call, "native")

    @settings(max_examples=60)
    @given(call=add_act_calls())
    def test_add_act(self, isa, call):
        with instruction_set(isa):
            check_add_act(call, "native")


def test_unknown_is_refused():
    with pytest.raises(ValueError, match="instruction set 'mmx' does not run here; expected one of "):
        _library.module.choose_isa("mmx")
