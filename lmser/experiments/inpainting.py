"""001 Sect. 5.3, Table 5, Figs. 7 and 8: filling dense irregular points in faces and scenes.

What 001 leaves open, and how it is set here:

- Masks: `lmser.data.point_masks` at its default, a quarter of the pixels missing. New ones for every batch of
  training; every test image has one that never changes.
- Missing pixels are black. CLmsers get the damaged image alone, the other networks the mask as well.
- The metrics are of the completed image, known pixels pasted in. 001 does not say so, but its numbers do: the
  MSE of its CAE on Places2 is 0.0016 for inpainting (Table 5) and 0.0047 for plain reconstruction with nothing
  missing (Table 8), which a network cannot beat from a damaged image unless most pixels are given to it. The
  quotients, 0.34 for the MSE and 0.25 for l1, also bound the share of missing pixels. A second table has the
  networks' own output at every pixel.
- PSNR is that of the mean MSE (`lmser.metrics`). FID takes the weights of its network, which the user has to
  have; else the column is a Fréchet distance under another name (`lmser.frechet`).
- CLmsers are trained by J on the whole image. The others have their own losses and learning rates, and here as
  many epochs as CLmsers; 001 began PICNet from its authors' weights and trained it for a million iterations.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmser.baselines import PENNet, PICNet
from lmser.baselines.inpainting_loss import InpaintingLoss, composite
from lmser.data.masks import coverage_of, point_masks
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, row_times, train_rows
from lmser.experiments.completions import complete, with_holes
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.inpainting_tables import DISTANCE, OWN, claims, completed_table, own_table
from lmser.experiments.networks import build_network
from lmser.experiments.photographs import METRICS, Photographs, Tally, chunks, load_photographs, on_unit_range
from lmser.experiments.provenance import machine
from lmser.experiments.results import Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.features import VGG16Features
from lmser.frechet import FrechetDistance, frechet_distance
from lmser.models import CLmser, reflection_loss

__all__ = ["run"]

NAME = "inpainting"

_SHOWN = 6


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    prepared = _Prepared(request, rows)
    trained = train_rows(request, rows, prepared.job, experiment=NAME, data=prepared.identity())
    completed = completed_table(trained, prepared.distance.name, prepared.differs(rows), prepared.notes())
    results = Results(
        experiment=NAME,
        title="Inpainting of dense irregular points",
        summary=(
            "Images in [0, 1]; l1, MSE and SSIM are means over the test images, PSNR is that of the mean MSE, data "
            f"range 1. Fréchet distance to the original test images: {prepared.distance.name}."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(completed, own_table(trained, prepared.differs(rows))),
        figures=_figures(request, trained, prepared),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            **{
                key: value
                for name, found in prepared.sets.items()
                for key, value in found.facts(name).items()
            },
            "configuration files sha256": checksum(rows),
        },
        claims=claims(completed),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


class _Prepared:
    """What the rows share: images of each data set, the features that they are compared with, losses."""

    def __init__(self, request: Request, rows: Sequence[RowConfig]) -> None:
        self.device = torch.device(request.device)
        self.groups = {row.data["name"]: row.group for row in rows}
        self.sets = {
            name: load_photographs(request.data, next(row.data for row in rows if row.data["name"] == name))
            for name in self.groups
        }
        self.distance = FrechetDistance(request.data, device=self.device)
        self._references: dict[str, Tensor] = {}
        self._liu: InpaintingLoss | None = None
        if any(row.objective["loss"] == "Liu" for row in rows):
            features = VGG16Features(request.data, device=self.device)
            # Weighted for ImageNet features, the perceptual terms of random ones would be another loss.
            self._liu = InpaintingLoss(None if features.file is None else features)

    def identity(self) -> dict[str, str]:
        """What decides the numbers and is not in the rows' files."""
        found = {"Fréchet distance": f"{self.distance.name} {self.distance.sha256}"}
        if self._liu is not None:
            found["PConv's loss"] = self._liu.name
        for name, photographs in self.sets.items():
            found[f"{name}, train"], found[f"{name}, test"] = (
                photographs.train_digest,
                photographs.test_digest,
            )
        return found

    def differs(self, rows: Sequence[RowConfig]) -> dict[str, list[str]]:
        """By the row's path: what is not the paper's and not in the row's file."""
        found: dict[str, list[str]] = {}
        for row in rows:
            photographs = self.sets[row.data["name"]]
            words = found[row.path] = []
            if photographs.stand_in:
                words.append("stand-in data")
            if photographs.side != row.data["side"]:
                words.append(f"{photographs.side}x{photographs.side} pixels")
            if row.objective["loss"] == "Liu" and self._liu is not None:
                words.append(f"loss: {self._liu.name}")
        return found

    def notes(self) -> list[str]:
        """Sizes of the sets, the measured share of missing pixels, and what a small set does to the distance."""
        notes = []
        for name, photographs in self.sets.items():
            missing = coverage_of(_test_masks(0, min(32, len(photographs.test)), photographs.side))
            notes.append(
                f"{self.groups[name]}: {len(photographs.train):,} training and {len(photographs.test):,} test "
                f"images, {photographs.side}x{photographs.side} pixels, {100 * float(missing.mean()):.1f} % of them "
                "missing."
            )
            few = self.distance.note(len(photographs.test), len(photographs.test))
            if few:
                notes.append(f"{self.groups[name]}, {self.distance.name}: {few}.")
        return notes

    def job(self, row: RowConfig) -> Job:
        photographs = self.sets[row.data["name"]]
        # Networks built for a size are built for the one that there is.
        model = {**row.model, "size": photographs.side} if "size" in row.model else row.model
        train: Any = photographs.train
        further: dict[str, Any] = {"transform": damaged_batch}
        loss = None
        if row.objective["loss"] == "J":
            loss = reconstruction_loss
        elif row.objective["loss"] == "Liu":
            loss = self._pconv_loss
        else:
            adversarial: Mapping[str, type[PENNet] | type[PICNet]] = {"PENNet": PENNet, "PICNet": PICNet}
            further["objectives"] = adversarial[row.model["kind"]].objectives()
        samples = row.evaluation.get("samples")
        return Job(
            data=train.to(self.device) if isinstance(train, Tensor) else train,
            loss=loss,
            evaluate=functools.partial(self._measure, name=row.data["name"], samples=samples),
            metrics=[*METRICS, *(f"{OWN}{metric}" for metric in METRICS), DISTANCE],
            pictures=functools.partial(self._pictures, name=row.data["name"], samples=samples),
            build=functools.partial(build_network, model),
            further=further,
        )

    def _pconv_loss(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        assert self._liu is not None
        return self._liu(model(with_holes(images, masks), masks), images, masks)

    @torch.no_grad()
    def _measure(self, model: nn.Module, name: str, samples: int | None) -> dict[str, float]:
        photographs = self.sets[name]
        completed, own, features = Tally(), Tally(), []
        for start, images in chunks(photographs.test):
            images = images.to(self.device)
            masks = _test_masks(start, len(images), photographs.side).to(self.device)
            found = complete(model, images, masks, samples)
            whole = composite(images, found, masks)
            completed.add(whole, images)
            own.add(found, images)
            features.append(self.distance.features(whole.clamp(0, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there are few images stands below the table
            distance = frechet_distance(self._reference(name), torch.cat(features))
        return {
            **completed.means(),
            **{f"{OWN}{metric}": value for metric, value in own.means().items()},
            DISTANCE: distance,
        }

    def _reference(self, name: str) -> Tensor:
        if name not in self._references:
            self._references[name] = torch.cat(
                [self.distance.features(images) for _, images in chunks(self.sets[name].test)]
            )
        return self._references[name]

    @torch.no_grad()
    def _pictures(self, model: nn.Module, name: str, samples: int | None) -> Tensor:
        images, masks = (tensor.to(self.device) for tensor in shown(self.sets[name]))
        return composite(images, complete(model, images, masks, samples), masks).contiguous()


def damaged_batch(images: Tensor) -> tuple[Tensor, Tensor]:
    """Whole images on [0, 1] and new masks for them, which torch's global generator decides."""
    images = on_unit_range(images)
    seed = int(torch.randint(2**62, ()))
    return images, point_masks(len(images), images.shape[-1], seed=seed).to(images.device)


def reconstruction_loss(model: CLmser, images: Tensor, masks: Tensor) -> Tensor:
    """J (001 Eq. 1) of what the network makes of the damaged images against the whole ones."""
    return reflection_loss(model(with_holes(images, masks)), images)


def _test_masks(start: int, count: int, side: int) -> Tensor:
    """The masks of test images `start` and following: no run and no network changes them."""
    return point_masks(count, side, seed=start)


def shown(photographs: Photographs) -> tuple[Tensor, Tensor]:
    """A few test images from all over the set, and masks for them."""
    images = photographs.shown(_SHOWN)
    return images, point_masks(len(images), photographs.side, seed=0)


def _figures(request: Request, trained: Trained, prepared: _Prepared) -> tuple[Figure, ...]:
    figures = []
    for name, photographs in prepared.sets.items():
        images, masks = shown(photographs)
        columns = {"masked": with_holes(images, masks)}
        for row, jobs in trained.items():
            if row.data["name"] == name and jobs[0].pictures:
                columns[row.label] = jobs[0].pictures[max(jobs[0].pictures)]
        columns["original"] = images
        file = f"figures/{name}.svg"
        save_figure(request.out / file, picture_grid(file, columns, data_range=(0.0, 1.0)))
        figures.append(
            Figure(
                file,
                f"Test images of {prepared.groups[name]} with a quarter of the pixels missing, completed",
                f"As 001 Fig. {7 if name == 'faces-hq' else 8}: known pixels pasted in, seed {request.seeds[0]}.",
                f"Columns: {', '.join(columns)}",
            )
        )
    return tuple(figures)
