"""Large results come from a store that keeps their memory: they must still be tensors like any other."""

from __future__ import annotations

import threading

import pytest
import torch

import lmser_kernels
from lmser_kernels import _library, add_act, conv2d_add_act, conv_transpose2d_add_act

pytestmark = pytest.mark.native

LARGE = (4, 32, 64, 64)  # 2 MiB of float32, eight times the size from which the store is used


@pytest.fixture(autouse=True)
def _empty_store():
    lmser_kernels.empty_cache()
    yield
    lmser_kernels.empty_cache()


def idle() -> int:
    return _library.module.idle_bytes()


def test_memory_is_used_again_once_its_tensor_is_dead():
    x = torch.randn(LARGE)
    first = add_act(x)
    address = first.data_ptr()
    assert idle() == 0
    del first
    assert idle() >= 2 << 20
    assert add_act(x).data_ptr() == address


def test_live_results_never_share_memory():
    x = torch.randn(LARGE)
    kept = [add_act(x, activation="identity") for _ in range(5)]
    view = kept.pop()[:, 1:]  # a view keeps its storage alive
    kept.append(add_act(-x, activation="identity"))
    assert len({t.untyped_storage().data_ptr() for t in [*kept, view]}) == len(kept) + 1
    assert all(torch.equal(t, x) for t in kept[:-1])
    assert torch.equal(kept[-1], -x)
    assert torch.equal(view, x[:, 1:])


def test_empty_cache_gives_back_what_is_idle_and_nothing_else():
    x = torch.randn(LARGE)
    alive = add_act(x, activation="identity")
    del x
    add_act(alive)
    assert idle() > 0
    lmser_kernels.empty_cache()
    assert idle() == 0
    assert torch.isfinite(alive).all()


def test_small_results_do_not_use_it():
    add_act(torch.randn(1, 4, 8, 8))
    assert idle() == 0


def test_memory_that_could_not_be_had_was_never_in_use():
    """Else what lies idle would be bounded by it from then on."""
    one = torch.zeros(4, 4, 1, 1)
    with pytest.raises(MemoryError):
        conv_transpose2d_add_act(one, torch.ones(4, 1, 1, 1), output_size=(1 << 19) - 1, stride=1 << 19)
    for side in range(600, 1600, 100):  # of ever other sizes
        add_act(torch.zeros(1, 1, side, side))
    most = 4 * 1500**2
    assert idle() <= most * 9 / 8 + 4096


def test_from_many_threads():
    weight = torch.randn(32, 32, 3, 3) / 17
    inputs = [torch.randn(LARGE).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    wanted = [conv2d_add_act(x, weight, padding=1) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(conv2d_add_act(inputs[i], weight, padding=1), wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_results_can_be_saved_shared_and_changed_in_place(tmp_path):
    x = torch.randn(LARGE)
    out = add_act(x, activation="identity")
    torch.save(out, tmp_path / "out.pt")
    assert torch.equal(torch.load(tmp_path / "out.pt"), x)
    assert torch.equal(out.clone().share_memory_(), x)
    out += 1
    assert torch.equal(out, x + 1)


def test_pieces_of_other_sizes_do_not_pile_up():
    """Going through layers of many sizes again and again holds little more than the most that is in use at a time."""
    shapes = [(4, 32, 64, 60 + 3 * i) for i in range(12)]  # each too far from the last for its piece
    largest = 4 * 32 * 64 * (60 + 3 * 11) * 4
    for _ in range(3):
        for shape in shapes:
            add_act(torch.randn(shape))
            assert idle() <= largest + largest // 8
