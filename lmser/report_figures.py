"""The figures of a report: SVG files made part of its page.

A figure is refused where it would make the page reach outside itself or run something. Its ids are made its
own, so that the figures of a page do not share them, and its large pictures are packed more tightly than in
the file.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

from lmser._extras import require
from lmser.experiments.results import Figure

__all__ = ["LARGE", "QUALITY", "embed"]

# Bytes of an embedded PNG from which it is packed as WebP of this quality: a strip of photographs of 96x96
# pixels then takes a sixth of the bytes and differs by 2 of 255 grey levels on average.
# Smaller ones stay as they are.
LARGE = 48_000
QUALITY = 90

# What would make a page reach outside itself or run something.
_OUTSIDE = re.compile(
    rb"<script|<foreignObject|<!ENTITY|\bon\w+\s*=|(?:href|src)\s*=\s*[\"'](?!#|data:image/)|url\(\s*[\"']?(?!#|data:)",
    re.IGNORECASE,
)
_VIEW_BOX = re.compile(r'<svg[^>]*?\bviewBox="\s*[-\d.]+[\s,]+[-\d.]+[\s,]+([\d.]+)')
_PNG = re.compile(r"data:image/png;base64,([^\"']+)")


def embed(folder: Path, figure: Figure, prefix: str) -> tuple[str, bool]:
    """The SVG element of `figure`, whose file is in `folder`, and whether a picture in it was packed anew.

    `prefix` begins every id. The element is one image with the figure's `alt` to whoever reads the page
    without seeing it.

    Raises FileNotFoundError where the file is not there; ValueError naming it where it lies outside `folder`,
    is not a whole SVG, holds a picture that cannot be read, or is not self-contained.
    """
    path = folder / figure.file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the figure {figure.file!r} lies outside the folder {folder} of its results")
    content = path.read_bytes()
    start = content.find(b"<svg")
    if start < 0 or not content.rstrip().endswith(b"</svg>"):
        raise ValueError(f"{path} is not a whole SVG figure")
    content = content[start:]
    outside = _OUTSIDE.search(content)
    if outside:
        raise ValueError(
            f"{path} is not self-contained: it holds {outside.group().decode(errors='replace')!r}"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a whole SVG figure: {error}") from error
    own = f"{prefix}-{re.sub(r'[^A-Za-z0-9]', '-', Path(figure.file).stem)}-"
    text = re.sub(r'\bid="', f'id="{own}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{own}", text)
    start_tag = f'<svg role="img" aria-label="{html.escape(figure.alt)}"{_width(text)}'
    text = text.replace("<svg", start_tag, 1)
    try:
        packed = _PNG.sub(_packed, text)
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} holds a picture that cannot be read: {error}") from error
    return packed, packed != text


def _width(svg: str) -> str:
    """Limits on the drawn width, as an attribute: lettering stays legible on a phone, where the figure's frame
    scrolls, and is about as large in one figure as in the next."""
    found = _VIEW_BOX.search(svg)
    if not found:
        return ""
    pixels = float(found.group(1)) * 4 / 3  # matplotlib's unit is the point
    return f' style="min-width: {0.65 * pixels:.0f}px; max-width: {1.1 * pixels:.0f}px"'


def _packed(found: re.Match[str]) -> str:
    """The address of one embedded PNG, as WebP where that is large; the gaps between pictures stay exact."""
    png = base64.b64decode(re.sub(r"\s", "", found.group(1)), validate=True)
    if len(png) < LARGE:
        return found.group()
    buffer = io.BytesIO()
    with require("PIL.Image").open(io.BytesIO(png), formats=["PNG"]) as picture:
        # Sharp: by default the colours of neighbouring pixels would be averaged.
        picture.save(buffer, "WEBP", quality=QUALITY, use_sharp_yuv=True)
    if buffer.tell() >= len(png):
        return found.group()
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
