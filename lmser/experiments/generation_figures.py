"""The figures of the experiment generation: digits by class and style, and along single units of a code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lmser.experiments.codes import Codes, most_varied, random_styles, range_values, style_values
from lmser.experiments.figures import save_figure
from lmser.experiments.figures_blocks import picture_blocks
from lmser.experiments.generated import class_pictures, traverse
from lmser.experiments.results import Figure
from lmser.models import ReflectionNetwork

__all__ = ["TRAVERSALS", "Shown", "style_figure", "traversal_figure"]

_COUNT = 7  # pictures along one unit

# What a row's evaluation.figure may be -> title, the paper's figure.
TRAVERSALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "sup": ("fully connected networks with labels", "Fig. 5 (a) and (b)"),
        "un": ("fully connected networks without labels", "Fig. 5 (c) and (d)"),
        "conv": ("convolutional networks", "Fig. 6"),
        "conv-10": ("convolutional networks with a code of ten units", "Fig. 6"),
    }
)


@dataclass(frozen=True)
class Shown:
    """A trained network to draw from: its row's label, and the codes of known training images."""

    label: str
    network: ReflectionNetwork
    known: Codes

    @property
    def readings(self) -> Mapping[str, bool]:
        """Title of a block -> whether drives are held."""
        if not self.network.dpn:
            return {self.label: False}
        return {f"{self.label}, no drive": False, f"{self.label}, drives held": True}


def style_figure(
    out: Path, data: str, classes: Sequence[str], shown: Shown, tests: Tensor, seed: int
) -> Figure:
    """000 Fig. 4: one line of pictures per class, the style changing along it.

    tests: a test image of each class ``(classes, C, H, W)``; where drives are held, those of the next class.
    """
    network, known = shown.network, shown.known
    drawn = random_styles(known, network.style_units, _COUNT, seed)
    others = tests.roll(-1, 0)

    def block(styles: Tensor, *, held: bool = False) -> Tensor:
        lines = [
            class_pictures(network, known, label, styles, others[label].expand(_COUNT, -1, -1, -1), held=held)
            for label in range(len(classes))
        ]
        return torch.stack(lines)

    blocks = {}
    if network.dpn:
        blocks["random styles, no drive from below"] = block(drawn)
        blocks["image"] = others[:, None]
        blocks["random styles, its drives held"] = block(drawn, held=True)
    else:
        for unit, styles in enumerate(style_values(known, network.style_units, _COUNT)):
            blocks[f"style unit {unit + 1}"] = block(styles)
        blocks["random styles"] = block(drawn)
    name = f"figures/{_slug(data)}-styles-{_slug(shown.label)}.svg"
    save_figure(out / name, picture_blocks(name, blocks, rows=classes, data_range=(0.0, 1.0)))
    along = (
        ""
        if network.dpn
        else "Along one style unit from two standard deviations below its mean to two above. "
    )
    return Figure(
        name,
        f"{data} by class and style: {shown.label}",
        f"As 000 Fig. 4: a row is the class asked for. {along}Seed {seed}.",
        f"Rows: the classes {', '.join(classes)}. Blocks: {', '.join(blocks)}",
    )


def traversal_figure(
    out: Path, data: str, key: str, networks: Sequence[Shown], image: Tensor, seed: int, *, printed: bool
) -> Figure:
    """000 Figs. 5 and 6: ten units, one line each, the code being that of `image` ``(C, H, W)`` otherwise.

    printed: values from 0 to 10, as 000 says of Fig. 5 (c); otherwise over the range of the known images.
    """
    title, source = TRAVERSALS[key]
    blocks, ranked = {}, False
    for shown in networks:
        units = most_varied(shown.known)
        ranked |= units != list(range(len(units)))
        whole = torch.linspace(0, 10, _COUNT).repeat(len(units), 1)
        values = whole if printed else range_values(shown.known, units, _COUNT)
        for words, held in shown.readings.items():
            blocks[words] = traverse(shown.network, image[None], units, values, held=held)[0]
    lines = len(next(iter(blocks.values())))
    rows = [str(line + 1) if ranked else f"$Z_{{{line}}}$" for line in range(lines)]
    name = f"figures/{_slug(data)}-units-{key}{'-printed' if printed else ''}.svg"
    save_figure(out / name, picture_blocks(name, blocks, rows=rows, data_range=(0.0, 1.0)))
    span = "from 0 to 10" if printed else "from the 1st to the 99th percentile over training images"
    which = "one of the ten channels that vary most, at all positions," if ranked else "a unit"
    return Figure(
        name,
        f"{data}, along single units: {title}, {span}",
        f"As 000 {source}: in each row {which} goes {span}, the others stay as a test image gave them. "
        f"Seed {seed}.",
        f"Rows: units of the code. Blocks: {', '.join(blocks)}",
    )


def _slug(words: str) -> str:
    return words.replace("(", "-").replace(")", "").lower()
