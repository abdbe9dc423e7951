"""Accuracy over the size of an attack, one panel for each pair of networks that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmser.experiments.figures import _STYLES, _canvas, _svg

__all__ = ["accuracy_panels"]

_DASHES = ("-", "--")

Points = Sequence[tuple[float, float]]


def accuracy_panels(
    name: str, panels: Mapping[str, Mapping[str, Mapping[str, Points]]], *, x_label: str
) -> bytes:
    """``panels[panel][network][attack]`` are ``(size, accuracy in percent)``: a colour for each network of a
    panel, solid for its first attack and dashed for its second.

    A value that is not finite (a run that diverged) leaves its line out there. Raises ValueError where there
    is no panel, and where a network has more than two attacks.
    """
    if not panels:
        raise ValueError("accuracy_panels: there is no panel to draw")
    with _canvas(name, max(4.2, 3.7 * len(panels)), 3.3, layout="constrained") as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, networks) in zip(axes, panels.items(), strict=True):
            for (label, attacks), (color, _) in zip(networks.items(), _STYLES, strict=False):
                if len(attacks) > len(_DASHES):
                    raise ValueError(
                        f"accuracy_panels: {label} has {len(attacks)} attacks, expected at most 2"
                    )
                for (attack, points), dash in zip(attacks.items(), _DASHES, strict=False):
                    axis.plot(
                        [x for x, _ in points],
                        [y for _, y in points],
                        label=f"{label}, {attack}",
                        color=color,
                        linestyle=dash,
                        linewidth=1.8,
                        marker=".",
                    )
            axis.set_ylim(-2, 102)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(x_label)
            axis.grid(visible=True, which="major", color="#888888", linewidth=0.4, alpha=0.5)
            axis.legend(fontsize=8, handlelength=2.4)
        axes[0].set_ylabel("accuracy %")
        return _svg(figure)
