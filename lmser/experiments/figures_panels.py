"""Small line plots side by side over one ordinate, for a quantity that several networks have at many
places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmser.experiments.figures import _STYLES, _canvas, _svg

__all__ = ["line_panels"]

Points = Sequence[tuple[float, float]]


def line_panels(
    name: str,
    panels: Mapping[str, Mapping[str, Points]],
    *,
    x_label: str,
    y_label: str,
    ticks: Sequence[str] | None = None,
    symlog: float | None = None,
) -> bytes:
    """One panel per key with one line of ``(x, y)`` per inner key, ordinate logarithmic and shared.

    A key keeps its colour and line style in every panel. `ticks` names the abscissae 0, 1, 2, ...; `symlog`
    makes the abscissa linear up to that value and logarithmic from there on. Values that are not positive or
    not finite have no place on a logarithmic scale: the line is broken there.

    Raises ValueError where there is no panel.
    """
    if not panels:
        raise ValueError("line_panels: there is no panel to draw")
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with _canvas(name, max(6.4, 1.0 + 2.0 * len(panels)), 3.2, layout="constrained") as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for label, points in lines.items():
                color, style = _STYLES[labels.index(label) % len(_STYLES)]
                values = [y if 0 < y < float("inf") else float("nan") for _, y in points]
                axis.plot(
                    [x for x, _ in points],
                    values,
                    label=label,
                    color=color,
                    linestyle=style,
                    linewidth=1.8,
                    marker=".",
                )
            axis.set_yscale("log")
            if symlog is not None:
                axis.set_xscale("symlog", linthresh=symlog, linscale=0.6)
                last = max(x for points in lines.values() for x, _ in points)
                marked = [0, *([symlog] if symlog < last else []), last]
                axis.set_xticks(marked, [f"{x:g}" for x in marked])
                axis.minorticks_off()
            if ticks is not None:
                axis.set_xticks(range(len(ticks)), ticks)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(x_label)
            axis.grid(visible=True, which="major", color="#888888", linewidth=0.4, alpha=0.5)
        axes[0].set_ylabel(y_label)
        handles = {
            label: handle
            for axis in axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=len(labels), handlelength=2.4
        )
        return _svg(figure)
