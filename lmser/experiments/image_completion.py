"""What the experiments on completing drawings and photographs share (004 Sect. 4.3, 4.4; App. D.3, D.4, E).

- Images are on [-1, 1], the range of tanh; `lmser.experiments.image_damage` takes pixels away. New masks for every
  batch of training, drawn by the run's own generator; every test image has one mask that never changes.
- A network is measured on the completed image: the pixels that it was given, and its own in place of the others.
  A clamped attractor network's visible state is that already; into the output of CD-VAE they are pasted. 004 does
  not say whether it does that, so a second table has every network's own output at all pixels, which for an attractor
  network is what the visible units would take unclamped at the last iteration.
- In a test every image settles by itself, to the row's ``[evaluation] theta`` in at most ``max_steps`` iterations.
  An image whose states still move after that is looked at for a limit cycle (`lmser.experiments.limit_cycles`).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmser.baselines import DenoisingVAE
from lmser.data import ImageSet, load_cifar10, load_omniglot
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, train_rows
from lmser.experiments.completion_loss import ITERATIONS, CompletionLoss
from lmser.experiments.completion_metrics import ERROR, MEASURES, PerImage
from lmser.experiments.figures import picture_grid, save_figure
from lmser.experiments.image_damage import (
    IMAGE_RANGE,
    damage_of,
    damaged_batch,
    on_tanh_range,
)
from lmser.experiments.limit_cycles import periods
from lmser.experiments.results import Figure
from lmser.experiments.rows import RowConfig
from lmser.models import AttractorNetwork
from lmser_kernels import Settled

__all__ = [
    "OWN",
    "SETTLING",
    "CompletionData",
    "iterations",
    "prefix_of",
    "save_completions",
    "train_completion",
]

OWN = "own "
"""What the names of metrics of a network's own output begin with."""

SETTLING = ("at rest", "iterations", "period 2", "periods 3 to 10", "no period")
"""Metrics of how test images settle; all but the second are shares of the images in percent."""

_CIFAR10 = (50_000, 10_000)
_SHOWN = 12
_CHUNK = 50
_TEST_MASKS = 4  # seed of the masks of the test images


@dataclass(frozen=True)
class CompletionData:
    """Images of one data set, as bytes to train on and on [-1, 1] to test on, and what is left of the latter.

    train: uint8 ``(N, C, H, W)`` on the device.  test, observed: on the CPU, both ``(N, C, H, W)``.
    sets: these as they were read.  whole: the sets that they are from.
    """

    train: Tensor
    test: Tensor
    observed: Tensor
    sets: tuple[ImageSet, ImageSet]
    whole: tuple[ImageSet, ImageSet]

    @classmethod
    def load(cls, request: Request, data: Mapping[str, object]) -> CompletionData:
        """What a row's ``[data]`` asks for: ``name``, ``damage`` and ``share``; ``train`` and ``test`` limit the
        number of images, which are then from all over the set.

        Raises MissingData, BadData; ValueError for another name.
        """
        train, test = _load(request, str(data["name"]))
        taken = [_limited(part, data.get(key)) for part, key in ((train, "train"), (test, "test"))]
        images = [s.images if s.images.dim() == 4 else s.images.unsqueeze(1) for s in taken]
        values = on_tanh_range(images[1])
        observed = damage_of(data)(values, torch.Generator().manual_seed(_TEST_MASKS))
        return cls(images[0].to(request.device), values, observed, (taken[0], taken[1]), (train, test))

    def identity(self) -> dict[str, str]:
        """What decides the numbers and is not in the rows' files."""
        return {"train": self.sets[0].sha256(), "test": self.sets[1].sha256()}

    def facts(self) -> dict[str, str]:
        """What `Results.data` says of it."""
        train, test = self.sets
        return {
            "training": f"{train.name}: {len(train):,} images",
            "training data sha256": train.sha256(),
            "test": f"{test.name}: {len(test):,} images",
            "test data sha256": test.sha256(),
        }

    @property
    def differs(self) -> tuple[str, ...]:
        """What of the data is not the paper's."""
        train, test = self.whole
        if train.name.startswith("CIFAR-10") and (len(train), len(test)) != _CIFAR10:
            return (f"{len(train):,} training and {len(test):,} test images at hand",)
        return ()

    def note(self) -> str:
        """How much is missing."""
        missing = 100 * float((~self.observed[:, :1]).double().mean())
        return (
            f"{len(self.train):,} training and {len(self.test):,} test images; {missing:.1f} % of a test image's pixels "
            "are missing on average."
        )

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Test images from all over the set for the figures, and what is left of them."""
        places = torch.linspace(0, len(self.test) - 1, min(_SHOWN, len(self.test))).round().long()
        return self.test[places], self.observed[places]


def _load(request: Request, name: str) -> tuple[ImageSet, ImageSet]:
    if name == "omniglot":
        return load_omniglot(request.data)
    if name == "cifar10":
        return load_cifar10(request.data, True), load_cifar10(request.data, False)
    raise ValueError(f"data.name: expected 'omniglot' or 'cifar10', got {name!r}")


def _limited(images: ImageSet, count: object) -> ImageSet:
    if count is None or int(str(count)) >= len(images):
        return images
    return images.take(torch.linspace(0, len(images) - 1, int(str(count))).round().long())


def train_completion(
    request: Request, rows: Sequence[RowConfig], experiment: str
) -> tuple[Trained, CompletionData]:
    """Train all rows on the data of the first one, or read what is finished."""
    data = CompletionData.load(request, rows[0].data)
    trained = train_rows(
        request, rows, functools.partial(_job, data=data), experiment=experiment, data=data.identity()
    )
    return trained, data


def _job(row: RowConfig, data: CompletionData) -> Job:
    loss = CompletionLoss(row.objective)
    attractor = row.model["kind"] != DenoisingVAE.__name__
    thetas = [float(theta) for theta in row.evaluation["theta"]] if attractor else [0.0]
    names = [f"{p}{name}{e}" for p in ("", OWN) for name in MEASURES for e in ("", ERROR)]
    if attractor:
        names += SETTLING
    return Job(
        data=data.train,
        loss=loss,
        evaluate=functools.partial(
            _measure, data=data, thetas=thetas, max_steps=row.evaluation.get("max_steps", 1)
        ),
        metrics=[f"{prefix_of(i, theta)}{name}" for i, theta in enumerate(thetas) for name in names],
        pictures=functools.partial(
            _pictures, data=data, theta=thetas[0], max_steps=row.evaluation.get("max_steps", 1)
        ),
        further={
            "transform": functools.partial(damaged_batch, damage=damage_of(row.data)),
            "extra": loss.scalars,
        },
    )


def prefix_of(place: int, theta: float) -> str:
    """What the names of metrics begin with that were taken after settling to the `place`-th theta of a row."""
    return "" if place == 0 else f"theta {theta:g}: "


@torch.no_grad()
def _measure(
    model: nn.Module, data: CompletionData, thetas: Sequence[float], max_steps: int
) -> dict[str, float]:
    found: dict[str, float] = {}
    for place, theta in enumerate(thetas):
        completed, own, settling = PerImage(), PerImage(), _Settling()
        for images, observed in zip(data.test.split(_CHUNK), data.observed.split(_CHUNK), strict=True):
            output = _outputs(model, images, observed, theta, max_steps, settling)
            completed.add(torch.where(observed, images, output), images)
            own.add(output, images)
        measured = {**completed.means(), **own.means(OWN), **settling.shares()}
        found |= {f"{prefix_of(place, theta)}{name}": value for name, value in measured.items()}
    return found


def _outputs(
    model: nn.Module,
    images: Tensor,
    observed: Tensor,
    theta: float,
    max_steps: int,
    settling: _Settling | None = None,
) -> Tensor:
    """A network's own value of every pixel, on the CPU."""
    device = next(model.parameters()).device
    given, known = images.to(device), observed.to(device)
    if isinstance(model, DenoisingVAE):
        found: Tensor = model(given, known)
        return found.cpu()
    assert isinstance(model, AttractorNetwork)
    settled = model.complete(given, known, readouts=True, theta=theta, max_steps=max_steps, per_sample=True)
    if settling is not None:
        settling.add(model, given, known, settled, theta)
    return model.unclamped(settled).cpu()


class _Settling:
    """How images that come a few at a time come to rest."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._periods: list[int] = []

    def add(
        self, model: AttractorNetwork, images: Tensor, observed: Tensor, settled: Settled, theta: float
    ) -> None:
        self._steps += settled.steps.tolist()
        moving = (~(settled.change < theta)).nonzero()[:, 0]
        found = torch.ones(len(images), dtype=torch.int64)
        if len(moving):
            given, known = images[moving], observed[moving]

            def sweep(states: Sequence[Tensor]) -> Sequence[Tensor]:
                return model.complete(given, known, states=states, theta=0.0, max_steps=1).states

            found[moving.cpu()] = periods([h[moving] for h in settled.states], sweep, theta)
        self._periods += found.tolist()

    def shares(self) -> dict[str, float]:
        """`SETTLING`; nothing for a network that does not settle."""
        if not self._periods:
            return {}

        def share(low: int, high: int) -> float:
            return 100 * sum(low <= period <= high for period in self._periods) / len(self._periods)

        return dict(
            zip(
                SETTLING,
                (share(1, 1), statistics.fmean(self._steps), share(2, 2), share(3, 10), share(0, 0)),
                strict=True,
            )
        )


@torch.no_grad()
def _pictures(model: nn.Module, data: CompletionData, theta: float, max_steps: int) -> Tensor:
    images, observed = data.shown
    return torch.where(observed, images, _outputs(model, images, observed, theta, max_steps))


def iterations(trained: Trained) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Row label -> mean and median, one for each seed, of the forward iterations that a training batch took."""
    found = {}
    for row, jobs in trained.items():
        logged = [[value for _, value in job.extras[ITERATIONS]] for job in jobs if ITERATIONS in job.extras]
        if logged:
            found[row.label] = (
                tuple(statistics.fmean(values) for values in logged),
                tuple(statistics.median(values) for values in logged),
            )
    return found


def save_completions(
    request: Request, trained: Trained, data: CompletionData, name: str, title: str, source: str
) -> Figure:
    """Targets, evidence with missing pixels in red, and every row's completions, laid out as 004 Figs. 5 and 6."""
    images, observed = data.shown
    colour = images.expand(-1, 3, -1, -1)
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand_as(colour)
    lines = {"target": colour, "evidence": torch.where(observed.expand_as(colour), colour, red)}
    for row, jobs in trained.items():
        if jobs[0].pictures:
            lines[row.label] = jobs[0].pictures[max(jobs[0].pictures)].expand(-1, 3, -1, -1)
    file = f"figures/{name}.svg"
    save_figure(request.out / file, picture_grid(file, lines, data_range=IMAGE_RANGE, labels="rows"))
    return Figure(
        file,
        title,
        f"As {source}: missing pixels in red; seed {request.seeds[0]}.",
        f"Rows: {', '.join(lines)}",
    )
