"""Bars for a few measures of a few networks, one panel for each measure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lmser.experiments.figures import _STYLES, _canvas, _svg

__all__ = ["measure_bars"]


def measure_bars(name: str, panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> bytes:
    """``panels[measure][network]`` is ``(value, error)``: the bar's height and the length of the line on its top.

    Bars start at 0. One that is not finite (a run that diverged) is left out, so is a line.

    Raises ValueError where there is no panel or a panel without a network.
    """
    if not panels or not all(panels.values()):
        raise ValueError("measure_bars: expected at least one panel and one network in each")
    with _canvas(name, 0.8 + 2.8 * len(panels), 3.0, layout="constrained") as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (measure, networks) in zip(axes, panels.items(), strict=True):
            for place, (value, error) in enumerate(networks.values()):
                if not math.isfinite(value):
                    continue
                axis.bar(place, value, width=0.7, color=_STYLES[place % len(_STYLES)][0])
                if math.isfinite(error):
                    axis.plot([place, place], [value, value + error], color=axis.yaxis.label.get_color())
            axis.set_xticks(range(len(networks)), list(networks), rotation=30, ha="right", fontsize=8)
            axis.set_title(measure, fontsize=10)
            axis.grid(visible=True, axis="y", color="#888888", linewidth=0.4, alpha=0.5)
            axis.set_axisbelow(True)
        return _svg(figure)
