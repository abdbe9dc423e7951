"""Figures as SVG that a report can put straight into its page.

Text stays text, images stay lossless at their own resolution, and everything drawn in the colour of the text
is written as ``currentColor``, so that one file reads well on a light page, on a dark one, and on its own.
The curve colours are those of Okabe and Ito, which the usual forms of colour blindness keep apart; line
styles differ as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmser._atomic import atomic_write
from lmser._extras import require
from lmser.training.distributed import is_main

__all__ = ["loss_curves", "picture_grid", "save_figure"]

# A colour that nothing else has: matplotlib writes it, `_svg` exchanges it.
_TEXT = "#010203"

_STYLES: tuple[tuple[str, str], ...] = (
    ("#0072B2", "-"),
    ("#E69F00", "--"),
    ("#009E73", "-."),
    ("#D55E00", ":"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),  # type: ignore[assignment]  # a dash pattern, which matplotlib takes as well
    ("#56B4E9", "-"),
)


@contextmanager
def _canvas(name: str, width: float, height: float, **layout: Any) -> Iterator[Any]:
    """A matplotlib figure of its own, apart from pyplot's global state, with this module's defaults."""
    matplotlib = require("matplotlib")
    figure_module, backend = require("matplotlib.figure"), require("matplotlib.backends.backend_svg")
    settings = {
        "svg.fonttype": "none",
        # The ids inside the file: the same in every run, different between the figures of a page.
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _TEXT,
        "axes.edgecolor": _TEXT,
        "axes.labelcolor": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = figure_module.Figure(figsize=(width, height), **layout)
        backend.FigureCanvasSVG(figure)
        yield figure


def _svg(figure: Any) -> bytes:
    buffer = io.StringIO()
    # No date: the same data give the same bytes.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    # matplotlib's style element would apply to the whole page; as attributes of the root the two settings
    # are inherited.
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    # The page decides the width; the view box keeps the shape.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.encode()


def loss_curves(
    name: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    y_label: str,
    marks: Mapping[str, float] | None = None,
) -> bytes:
    """Curves over training steps with a logarithmic ordinate, one colour and line style per key in the key's
    order.

    Every curve is drawn as the mean over windows of about a hundredth of its length, so that the noise from
    batch to batch does not hide which is lower; the first points keep their place. `marks` draws a dotted
    level per key, for a number to compare with. Values that are not positive or not finite (a run that
    diverged) are left out.
    """
    if not curves:
        raise ValueError("loss_curves: there is no curve to draw")
    with _canvas(name, 6.4, 3.8, layout="constrained") as figure:
        axes = figure.add_subplot()
        for index, (label, points) in enumerate(curves.items()):
            color, style = _STYLES[index % len(_STYLES)]
            steps, values = _smoothed(points)
            axes.plot(steps, values, label=label, color=color, linestyle=style, linewidth=1.8)
            if marks and label in marks:
                axes.axhline(marks[label], color=color, linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_xlabel("training step")
        axes.set_ylabel(y_label)
        axes.grid(visible=True, which="major", color="#888888", linewidth=0.4, alpha=0.5)
        axes.margins(x=0.01)
        figure.legend(loc="outside upper center", ncols=min(len(curves), 5), handlelength=2.4)
        return _svg(figure)


def _smoothed(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    kept = [(step, value) for step, value in points if 0 < value < float("inf")]
    window = max(1, len(kept) // 100)
    parts = [kept[start : start + window] for start in range(0, len(kept), window)]
    steps = [sum(step for step, _ in part) / len(part) for part in parts]
    values = [sum(value for _, value in part) / len(part) for part in parts]
    return steps, values


def picture_grid(
    name: str,
    pictures: Mapping[str, Tensor],
    *,
    data_range: tuple[float, float],
    labels: str = "columns",
) -> bytes:
    """Pictures side by side, one labelled column (or row) per key.

    `pictures[key]` is `(N, C, H, W)` with C = 1 or 3 and the same shape for every key; `data_range` is the
    pair of values shown as black and white. Values outside are clipped, NaN is shown black.

    Raises ValueError for another shape, no picture, or `labels` other than "columns" or "rows".
    """
    if labels not in ("columns", "rows"):
        raise ValueError(f"picture_grid: labels must be 'columns' or 'rows', got {labels!r}")
    shapes = {tuple(value.shape) for value in pictures.values()}
    if len(shapes) != 1:
        raise ValueError(
            f"picture_grid: every key must have the same shape, got {sorted(shapes) or 'no picture'}"
        )
    count, channels, height, width = shapes.pop()
    if channels not in (1, 3) or count == 0:
        raise ValueError(
            f"picture_grid: expected (N, 1 or 3, H, W) with N above 0, got {(count, channels, height, width)}"
        )
    strips = {key: _strip(value, data_range, vertical=labels == "columns") for key, value in pictures.items()}
    keys = len(strips)
    side = 0.72 if labels == "rows" else 1.2
    if labels == "columns":
        size, grid = (keys * side, count * side * height / width + 0.25), (1, keys)
    else:
        size, grid = (count * side * width / height + 1.5, keys * side), (keys, 1)
    with _canvas(name, *size, layout="constrained") as figure:
        # A viewer's font may be wider than the one laid out with: row labels get room to grow.
        margin = 0.05 if labels == "rows" else 0.0
        figure.get_layout_engine().set(
            w_pad=0.02, h_pad=0.02, wspace=0, hspace=0, rect=(margin, 0, 1 - margin, 1)
        )
        axes = figure.subplots(*grid, squeeze=False).ravel()
        for axis, (key, strip) in zip(axes, strips.items(), strict=True):
            # "none" embeds the pixels as they are; the viewer enlarges them.
            axis.imshow(strip, interpolation="none", cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if labels == "columns":
                axis.set_title(key, fontsize=9)
            else:
                axis.set_ylabel(key, rotation=0, ha="right", va="center", fontsize=8)
        return _svg(figure)


def _strip(pictures: Tensor, data_range: tuple[float, float], *, vertical: bool) -> Any:
    """All pictures of one key in one uint8 image, two pixels of transparency between them."""
    low, high = data_range
    scaled = (pictures.detach().to("cpu", torch.float32).nan_to_num(low) - low) / (high - low)
    pixels = (scaled.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1)
    alpha = torch.full_like(pixels[:, :1], 255)
    framed = torch.nn.functional.pad(torch.cat([pixels, alpha], 1), (1, 1, 1, 1))
    joined = torch.cat(list(framed), 1 if vertical else 2)
    return joined.permute(1, 2, 0).contiguous().numpy()


def save_figure(path: Path, svg: bytes) -> None:
    """Write a figure, whole or not at all, making its folder; of several processes the first one does."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(svg)
