"""In which order a sweep updates the layers."""

from __future__ import annotations

ORDERS = ("up_down", "odd_even")


def sweep_order(layers: int, order: str) -> list[int]:
    """The layers in the order of their updates in one sweep, of `layers` of them, layer 0 visible.

    "up_down": 1 ... L, then L-1 ... 0. "odd_even": the odd layers, then the even ones; neither drives its like.
    """
    top = layers - 1
    if order == "up_down":
        return [*range(1, top + 1), *range(top - 1, -1, -1)]
    return [*range(1, top + 1, 2), *range(0, top + 1, 2)]
