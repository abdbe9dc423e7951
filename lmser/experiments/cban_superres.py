"""004 Sect. 4.5, App. D.5, Table 1, Fig. 7: super-resolution by 2.

The visible layer has six channels: three are clamped to the low-resolution image, brought to full size by bicubic
interpolation, three are read. CBAN is trained on random patches of T91 and tested on whole images of Set5, Set14, BSD100
and, where it is there, Urban100: convolutional layers take any size, so nothing is tiled. Images are on [-1, 1].

The measures. 004 does not say how it measured, and notes itself that "even the baseline method, bicubic
interpolation, yields different results depending on the implementation". Its baseline's PSNR is nearest to that of whole
RGB images (`lmser.data.super_resolution` has the comparison), so these stand beside its numbers; the usual measure, of
luminance with 2 pixels of border left out, has a table of its own; gains over each baseline compare best. PSNR and SSIM
are an image's own, averaged over a set. Nothing is rounded to bytes. DRCN and LapSRN are the paper's numbers alone.

What 004 leaves open, and how it is set here: batches of 16 patches, 10,000 patches to an epoch, 30 epochs (three
stretches of the learning rate, which falls by 10 every 10 epochs); test images settle to 0.1, as batches do at the
end of training. App. D.5 names no activation, where D.1 to D.4 name tanh: here it is the leaky sigmoid of Sect. 3.3,
which is the identity on the range of images. In trials on 12 images of T91 held out, tanh stayed 2 dB below it after as
many steps: nearly all pixels are to be equal to their evidence, which bright and dark tanh units are not.

The quick scale's schedule is from the same trials. Its networks are measured after the 10 iterations that they were
trained with: they go on moving, away from the images, where 004's come to rest.

What decides the claim, set before the rows were run, by the means over the seeds: CBAN outperforms bicubic
interpolation where its PSNR and its SSIM of RGB images are both higher on every set. 004's comparison of SSIM with DRCN and
LapSRN is not decided: their numbers are of luminance, its own are not.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser import metrics
from lmser.data import MissingData
from lmser.data.super_resolution import PatchPairs, SuperResolutionSet, load_super_resolution
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, train_rows
from lmser.experiments.completion_loss import CompletionLoss, counting
from lmser.experiments.completion_results import write_results
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.image_damage import IMAGE_RANGE, on_tanh_range
from lmser.experiments.networks import build_network
from lmser.experiments.results import Figure, Results
from lmser.experiments.rows import RowConfig, load_rows
from lmser.experiments.superres_tables import (
    BASELINE,
    MEASURES,
    claim,
    gain_table,
    measure_table,
)
from lmser.models import AttractorNetwork

__all__ = ["run"]

NAME = "cban-superres"

_TRAINING = "T91"
_ALWAYS, _WHERE_THERE = ("Set5", "Set14", "BSD100"), ("Urban100",)
_SHOWN_OF_EACH, _SHOWN_SIDE = 2, 80


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    prepared = _Prepared(request, rows[0].evaluation)
    trained = train_rows(request, rows, prepared.job, experiment=NAME, data=prepared.identity())
    baseline = prepared.baseline()
    tables = (
        measure_table(trained, baseline, "RGB", prepared.notes),
        gain_table(trained, baseline),
        measure_table(trained, baseline, "luminance", ()),
    )
    return write_results(
        request,
        trained,
        prepared.facts(),
        experiment=NAME,
        title="Super-resolution by an attractor network",
        summary=(
            "RGB images on [-1, 1], enlarged by 2. PSNR (data range 2, as 1 on [0, 1]) and SSIM of the whole image in "
            "RGB, and of its luminance with 2 pixels of border left out; means over the images of a set."
        ),
        tables=tables,
        figures=_figures(request, trained, prepared),
        claims=claim(tables[0], trained),
    )


class _Prepared:
    """The images, and what is done with them."""

    def __init__(self, request: Request, evaluation: Mapping[str, object]) -> None:
        self.device = torch.device(request.device)
        self.training = load_super_resolution(request.data, _TRAINING)
        self.tests = {name: load_super_resolution(request.data, name) for name in _ALWAYS}
        notes = []
        for name in _WHERE_THERE:
            try:
                self.tests[name] = load_super_resolution(request.data, name)
            except MissingData:
                notes.append(f"{name} is left out: it is not in the data folder.")
        self._most, self._side = (
            None if evaluation.get(key) is None else int(str(evaluation[key])) for key in ("images", "side")
        )
        for name, found in self.tests.items():
            count = len(list(self._images(name)))
            what = "whole" if self._side is None else f"the middle {self._side}x{self._side} pixels of each"
            notes.append(f"{name}: {count} of {len(found)} images, {what}.")
        self.notes = tuple(notes)

    def identity(self) -> dict[str, str]:
        """What decides the numbers and is not in the rows' files."""
        return {name: _checksum(found) for name, found in self._sets().items()}

    def facts(self) -> dict[str, str]:
        """What `Results.data` says of them."""
        found = {}
        for name, images in self._sets().items():
            found[name] = images.name
            found[f"{name} sha256"] = _checksum(images)
        return found

    def _sets(self) -> dict[str, SuperResolutionSet]:
        return {_TRAINING: self.training, **self.tests}

    def job(self, row: RowConfig) -> Job:
        pairs = PatchPairs(self.training, row.data["side"])
        patches = torch.arange(row.data["patches"], device=self.device)
        loss = CompletionLoss(row.objective, row.steps(len(patches)))
        theta, max_steps = float(row.evaluation["theta"]), int(row.evaluation["max_steps"])
        return Job(
            data=patches,
            loss=loss,
            evaluate=functools.partial(self._measure, theta=theta, max_steps=max_steps),
            metrics=[f"{name} {measure}" for name in self.tests for measure in MEASURES],
            pictures=functools.partial(self._pictures, theta=theta, max_steps=max_steps),
            build=lambda: counting(build_network(row.model)),
            further={"transform": functools.partial(_batch, pairs=pairs), "extra": loss.scalars},
        )

    def _images(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Low- and high-resolution images of a test set, ``(1, 3, H, W)`` on `IMAGE_RANGE`."""
        found = self.tests[name]
        pairs = list(zip(found.low, found.high, strict=True))[: self._most]
        return [tuple(on_tanh_range(_middle(image[None], self._side)) for image in pair) for pair in pairs]  # type: ignore[misc]

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """The middles of the first images of each test set, low and high resolution."""
        pairs = [
            pair
            for found in self.tests.values()
            for pair in list(zip(found.low, found.high, strict=True))[:_SHOWN_OF_EACH]
        ]
        side = min(_SHOWN_SIDE, *(length for low, _ in pairs for length in low.shape[1:]))
        low, high = (
            torch.stack([_middle(image[None], side)[0] for image in part])
            for part in zip(*pairs, strict=True)
        )
        return on_tanh_range(low), on_tanh_range(high)

    def baseline(self) -> dict[str, float]:
        """The measures of bicubic interpolation."""
        found: dict[str, float] = {}
        for name in self.tests:
            each = [_measures(low, high) for low, high in self._images(name)]
            found |= {f"{name} {measure}": statistics.fmean(e[measure] for e in each) for measure in MEASURES}
        return found

    @torch.no_grad()
    def _measure(self, model: nn.Module, theta: float, max_steps: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in self.tests:
            each = [
                _measures(self._enlarged(model, low, theta, max_steps), high)
                for low, high in self._images(name)
            ]
            found |= {f"{name} {measure}": statistics.fmean(e[measure] for e in each) for measure in MEASURES}
        return found

    @torch.no_grad()
    def _pictures(self, model: nn.Module, theta: float, max_steps: int) -> Tensor:
        return self._enlarged(model, self.shown[0], theta, max_steps).contiguous()

    def _enlarged(self, model: nn.Module, low: Tensor, theta: float, max_steps: int) -> Tensor:
        assert isinstance(model, AttractorNetwork)
        settled = model.complete(low.to(self.device), theta=theta, max_steps=max_steps)
        return model.read(settled).cpu()


def _batch(places: Tensor, *, pairs: PatchPairs) -> tuple[Tensor, Tensor, Tensor]:
    """High-resolution patches, what of the evidence is observed (all of it), and low-resolution patches. The global
    generator decides which patches: an epoch is a number of them, not a pass over given ones."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    low, high = (on_tanh_range(part).to(places.device) for part in pairs.draw(len(places), generator))
    return high, torch.ones_like(low, dtype=torch.bool), low


def _checksum(images: SuperResolutionSet) -> str:
    """Of sizes and pixels."""
    digest = hashlib.sha256()
    for image in (*images.high, *images.low):
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()


def _middle(images: Tensor, side: int | None) -> Tensor:
    """The middle `side` x `side` pixels, or what there is of them."""
    if side is None:
        return images
    height, width = (min(side, length) for length in images.shape[-2:])
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def _measures(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """`MEASURES` of one image, both ``(1, 3, H, W)`` on `IMAGE_RANGE`."""
    if not bool(found.isfinite().all()):
        return dict.fromkeys(MEASURES, math.nan)
    span = IMAGE_RANGE[1] - IMAGE_RANGE[0]
    one, other = ((image - IMAGE_RANGE[0]) / span for image in (found, wanted))
    return {
        "RGB PSNR": metrics.psnr(one, other, 1.0),
        "RGB SSIM": metrics.ssim(one, other, 1.0),
        "luminance PSNR": metrics.luminance_psnr(one, other, 1.0),
        "luminance SSIM": metrics.luminance_ssim(one, other, 1.0),
    }


def _figures(request: Request, trained: Trained, prepared: _Prepared) -> Sequence[Figure]:
    low, high = prepared.shown
    columns = {"high resolution": high}
    for row, jobs in trained.items():
        if jobs[0].pictures:
            columns[row.label] = jobs[0].pictures[max(jobs[0].pictures)]
    columns[BASELINE] = low
    file = "figures/enlarged.svg"
    save_figure(request.out / file, picture_grid(file, columns, data_range=IMAGE_RANGE))
    return [
        Figure(
            file,
            "Middles of test images",
            f"As 004 Fig. 7: {low.shape[-2]}x{low.shape[-1]} pixels, settled by themselves; seed {request.seeds[0]}.",
            f"Columns: {', '.join(columns)}",
        )
    ]
