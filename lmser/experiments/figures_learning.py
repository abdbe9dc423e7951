"""Figures of accuracies: bars for many settings, and learning curves (003 Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lmser.experiments.figures import _STYLES, _canvas, _svg

__all__ = ["accuracy_bars", "learning_curves"]

Points = Sequence[tuple[float, float]]

_WIDTH = 0.8  # of a group of bars, the distance of two groups being 1


def accuracy_bars(name: str, groups: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> bytes:
    """``groups[setting][part]`` is an accuracy in percent with its deviation over the seeds, None without one.

    A group of bars for each setting, a colour for each part, deviations as whiskers, and a dotted level for each bar
    of the first group, which the others are compared with. What is not finite is left out. Raises ValueError where
    there is no group, and where two have not the same parts.
    """
    if not groups:
        raise ValueError("accuracy_bars: there is no group to draw")
    parts = list(next(iter(groups.values())))
    if any(list(found) != parts for found in groups.values()):
        raise ValueError(f"accuracy_bars: expected {', '.join(parts)} in every group")
    with _canvas(name, max(6.4, 0.85 * len(groups)), 3.6, layout="constrained") as figure:
        axes = figure.add_subplot()
        width = _WIDTH / len(parts)
        for index, (part, (color, _)) in enumerate(zip(parts, _STYLES, strict=False)):
            values = [found[part] for found in groups.values()]
            at = [group + (index + 0.5) * width - _WIDTH / 2 for group in range(len(groups))]
            shown = [(x, *value) for x, value in zip(at, values, strict=True) if math.isfinite(value[0])]
            axes.bar([x for x, _, _ in shown], [y for _, y, _ in shown], width, label=part, color=color)
            spread = [(x, y, off) for x, y, off in shown if off is not None]
            axes.errorbar(
                [x for x, _, _ in spread],
                [y for _, y, _ in spread],
                [off for _, _, off in spread],
                fmt="none",
                ecolor="#888888",
                elinewidth=1.2,
                capsize=2,
            )
            if math.isfinite(values[0][0]):
                axes.axhline(values[0][0], color=color, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
        axes.set_ylabel("accuracy %")
        axes.set_ylim(0, 102)
        figure.legend(loc="outside upper center", ncols=len(parts), handlelength=1.4)
        return _svg(figure)


def learning_curves(name: str, panels: Mapping[str, Mapping[str, Points]], *, x_label: str) -> bytes:
    """``panels[network][part]`` are ``(x, accuracy in percent)``: the same axes in every panel, a colour for each part.

    What is not finite leaves a gap. Raises ValueError where there is no panel.
    """
    if not panels:
        raise ValueError("learning_curves: there is no panel to draw")
    with _canvas(name, 3.9 * len(panels), 3.3, layout="constrained") as figure:
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            for (part, points), (color, style) in zip(curves.items(), _STYLES, strict=False):
                axis.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    label=part,
                    color=color,
                    linestyle=style,
                    linewidth=1.4,
                )
            axis.set_ylim(-2, 102)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(x_label)
            axis.grid(visible=True, which="major", color="#888888", linewidth=0.4, alpha=0.5)
        axes[0].set_ylabel("accuracy %")
        axes[-1].legend(fontsize=8, handlelength=2.4)
        return _svg(figure)
