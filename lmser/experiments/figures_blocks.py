"""Blocks of pictures side by side over the same labelled rows, for what is varied in two ways at once."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from lmser.experiments.figures import _canvas, _strip, _svg

__all__ = ["picture_blocks"]

_WIDTH = 8.4  # inches for all pictures of a row; a page shows the figure about as wide
_LARGEST = 1.2
_GAP = 0.08
_LETTER = 0.062  # about the width of a letter of the labels, a little more so that a wider font fits as well


def picture_blocks(
    name: str, blocks: Mapping[str, Tensor], *, rows: Sequence[str], data_range: tuple[float, float]
) -> bytes:
    """One block per key with its title above, one line of pictures per label of `rows`.

    `blocks[key]` is ``(R, N, C, H, W)`` with C = 1 or 3: N pictures for each of the R rows. R, C, H and W
    are the same for every key, N may differ. `data_range` and what lies outside it: as in
    `lmser.experiments.figures.picture_grid`.

    Raises ValueError for no block and for other shapes.
    """
    shapes = {(value.shape[0], *value.shape[2:]) if value.dim() == 5 else None for value in blocks.values()}
    expected = (len(rows), *(size for shape in shapes if shape for size in shape[1:]))
    if shapes != {expected} or expected[1] not in (1, 3) or any(v.numel() == 0 for v in blocks.values()):
        raise ValueError(
            f"picture_blocks: expected ({len(rows)}, N, 1 or 3, H, W) with the same H and W for every key, "
            f"got {[tuple(value.shape) for value in blocks.values()] or 'no block'}"
        )
    _, _, height, width = expected
    counts = [value.shape[1] for value in blocks.values()]
    side = min(_LARGEST, _WIDTH / sum(counts))
    titles = [
        textwrap.fill(title, max(8, round(count * side / _LETTER)), break_long_words=False)
        for title, count in zip(blocks, counts, strict=True)
    ]
    left = 0.15 + _LETTER * max(map(len, rows))
    top = 0.1 + 0.15 * max(title.count("\n") + 1 for title in titles)
    tall = side * height / width
    whole = left + sum(counts) * side + _GAP * len(counts), top + len(rows) * tall
    with _canvas(name, *whole) as figure:
        # Placed by hand: what a layout engine solves differs in the last digits from run to run, and so would
        # the file.
        corner = left
        for title, count, pictures in zip(titles, counts, blocks.values(), strict=True):
            place = (
                corner / whole[0], 0.0, count * side / whole[0], len(rows) * tall / whole[1]
            )  # fmt: skip
            axis = figure.add_axes(place)
            lines = [_strip(line, data_range, vertical=False) for line in pictures]
            # "none" embeds the pixels as they are; the viewer enlarges them.
            axis.imshow(np.concatenate(lines), interpolation="none", aspect="auto")
            axis.set_axis_off()
            axis.set_title(title, fontsize=8, pad=3)
            corner += count * side + _GAP
        for index, label in enumerate(rows):
            height_of = (len(rows) - index - 0.5) * tall / whole[1]
            figure.text((left - 0.06) / whole[0], height_of, label, fontsize=8, ha="right", va="center")
        return _svg(figure)
