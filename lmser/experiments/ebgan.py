"""003 Sect. 4: a generative adversarial network whose energy is the reconstruction error of an inverted network.

"D is formulated such as generated data produce high energy and real data produce lower energy. Some authors propose
the use of an auto-encoder to compute such energy function. We plan to replace this autoencoder using our proposed
method to reconstruct X and compute the energy; hence D(X) = R(X) and only one-half the parameters will be needed".
003 reports no experiment. Here the energy is that of `lmser.baselines.EBGAN`: networks sent back through their own
transpose, and the autoencoder of the same encoder with a decoder of its own, all against generators of one topology and
with one schedule. R is a mean square per pixel in one group. By it faint images are cheap: a network need not answer
them, and R is then their own mean square, which is below that of most digits. The other group has the cosine in its
place, which 003 names as another choice of R and which knows no faintness. Schedule and margins were chosen in short
trials on training images with samples of R of mean pools in view, none of the autoencoder with the cosine.

Samples are judged by a CNN trained apart on the same training images: the Inception score with its predictions, how
many classes it meets, and the Fréchet distance between its logits for samples and for test images. Its own test images
and generators that have learned nothing stand in the first lines.

What decides the claims, set before the committed runs, on the mean over the seeds:
Each for each group:
- Real data have lower energy than generated ones: of `D` at the end, for test images and for samples, in each row of R.
- Half the parameters: `D` with R has at most 50.5 % of the parameters of the autoencoder (biases do not halve).
- R can replace the autoencoder: the score of the samples trained with R of a network with mean pools is at least that
  of those trained with the autoencoder, whose pools are mean ones too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmser.baselines import EBGAN
from lmser.data import Split, load_mnist
from lmser.experiments import Request
from lmser.experiments.campaign import Job, Trained, load_trained, row_times, table_row, train_rows
from lmser.experiments.figures import loss_curves, picture_grid, save_figure
from lmser.experiments.generated import predicted
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.networks import build_network
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.sample_quality import classes_met, classifier_score
from lmser.experiments.tables import Cell, Row, Table
from lmser.frechet import frechet_distance

__all__ = ["run"]

NAME = "ebgan"

SCORE, CLASSES, FRECHET = "score", "classes", "Fréchet distance"
REAL, FAKE, SIZE = "D of test images", "D of samples", "parameters of D"
COLUMNS = (SCORE, CLASSES, FRECHET, REAL, FAKE, SIZE)
_DIGITS = {SCORE: 2, CLASSES: 2, FRECHET: 1, REAL: 4, FAKE: 4, SIZE: 0}
_OURS, _BESIDE = "R, mean pools", "autoencoder"
_HALF = 0.505
_SHOWN, _FOLLOWED, _CHUNK = 20, 100, 500
_NOISE_SEED = 3_004_000


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
    pixels = LabelledImages.of(*sets, request.device)
    sums = {part: images.sha256() for part, images in zip(("training", "test"), sets, strict=True)}
    trained = train_rows(request, rows, functools.partial(_job, pixels), experiment=NAME, data=sums)
    samples = _samples(request, trained, pixels)
    judges = _table_of_judges(trained)
    results = Results(
        experiment=NAME,
        title="Digits generated against the reconstruction error of an inverted network",
        summary=(
            "EBGANs whose energy D is how badly a network sent back through its own transpose gives its input, beside "
            "ones whose D is an autoencoder's error; images on [0, 1]. 003 plans this and reports no numbers."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=(samples, judges),
        figures=_figures(request, trained),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": sets.train.name,
            **{f"{part} data sha256": value for part, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        claims=tuple(_claims(samples)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(pixels: LabelledImages, row: RowConfig) -> Job:
    if row.table == "classifier":
        return Job(
            data=(pixels.train, pixels.train_labels),
            loss=lambda model, x, y: nn.functional.cross_entropy(model(x), y),
            evaluate=lambda model: {"accuracy": _accuracy(model, pixels)},
            metrics=("accuracy",),
            pictures=lambda _: torch.empty(0),
        )
    steps = row.steps(len(pixels.train))
    count, followed = row.evaluation["images"], pixels.test[:_FOLLOWED]
    return Job(
        data=pixels.train,
        loss=None,
        evaluate=lambda model: _energies(model, pixels.test[:count], count),
        metrics=(REAL, FAKE),
        pictures=functools.partial(_drawn, count=_SHOWN),
        eval_at=sorted({max(1, round(part * steps)) for part in (0.01, 0.1, 0.4, 1)}),
        further={
            "objectives": EBGAN.objectives(row.objective.get("generator_lr")),
            "extra": lambda model: {
                name.replace(" ", "_"): value for name, value in _energies(model, followed, _FOLLOWED).items()
            },
        },
    )


def _accuracy(model: nn.Module, pixels: LabelledImages) -> float:
    found = predicted(model, pixels.test).argmax(1)
    return 100 * float((found == pixels.test_labels).float().mean())


@torch.no_grad()
def _drawn(model: nn.Module, count: int) -> Tensor:
    """Samples of noise that is the same for every row, seed and step; on the CPU."""
    assert isinstance(model, EBGAN)
    noise = torch.randn(count, model.noise, generator=torch.Generator().manual_seed(_NOISE_SEED))
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).cpu() for part in noise.split(_CHUNK)])


@torch.no_grad()
def _energies(model: nn.Module, real: Tensor, count: int) -> dict[str, float]:
    """Mean `D` of real images and of `count` samples."""
    assert isinstance(model, EBGAN)
    device, training = next(model.parameters()).device, model.training
    model.eval()  # the generator's normalisation learns nothing from being looked at
    found = {}
    for name, images in ((REAL, real), (FAKE, _drawn(model, count))):
        energies = [model.energy(part.to(device)).cpu() for part in images.split(_CHUNK)]
        found[name] = float(torch.cat(energies).double().mean())
    model.train(training)
    return found


def _samples(request: Request, trained: Trained, pixels: LabelledImages) -> Table:
    rows = [row for row in trained if row.table == "samples"]
    judges = [
        load_trained(request, row, seed)
        for row in trained
        if row.table == "classifier"
        for seed in request.seeds
    ]
    tests = [predicted(judge, pixels.test) for judge in judges]
    known = [predicted(judge, pixels.train[: len(pixels.test)].cpu()) for judge in judges]
    count = rows[0].evaluation["images"]
    lines = [
        _line(
            "test images",
            [_judged(logits, other) for logits, other in zip(tests, known, strict=True)],
            "for comparison",
        ),
        _line(
            "generators that have learned nothing",
            [
                _judged(predicted(judge, _untrained(rows[0], seed, count)), logits)
                for judge, logits, seed in zip(judges, tests, request.seeds, strict=True)
            ],
            "for comparison",
        ),
    ]
    for row in rows:
        found: list[Mapping[str, float]] = []
        for seed, job, judge, logits in zip(request.seeds, trained[row], judges, tests, strict=True):
            energies = {name: job.final(name) for name in (REAL, FAKE)}
            if job.diverged_at is not None:
                found.append({**dict.fromkeys(COLUMNS, float("nan")), SIZE: _size(row)})
                continue
            pictures = _drawn(load_trained(request, row, seed), row.evaluation["images"])
            found.append({**_judged(predicted(judge, pictures), logits), **energies, SIZE: _size(row)})
        lines.append(_line(row.label, found, row.group, row.differs))
    return Table(
        "Samples of generators, by the energy they were trained against",
        COLUMNS,
        tuple(lines),
        header="energy",
        notes=(
            f"score: exp(E KL(p(y|x) ‖ p(y))) of the classifier's predictions for {count:,} samples (and all test images), "
            "1 to 10. classes: "
            "exp of the entropy of the classes it names. Fréchet distance: between its logits for samples and for "
            "test images; that of test images is to as many training images.",
            "It judges what tells digits apart, and was never shown what is no digit: high scores are no proof of "
            "good pictures.",
        ),
    )


def _untrained(row: RowConfig, seed: int, count: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drawn(build_network(row.model).eval(), count)


def _size(row: RowConfig) -> float:
    model = build_network(row.model)
    assert isinstance(model, EBGAN)
    return float(sum(parameter.numel() for parameter in model.discriminator()))


def _judged(logits: Tensor, tests: Tensor) -> dict[str, float]:
    return {
        SCORE: classifier_score(logits),
        CLASSES: classes_met(logits),
        FRECHET: frechet_distance(logits, tests),
    }


def _line(label: str, found: Sequence[Mapping[str, float]], group: str, differs: str = "") -> Row:
    cells = (
        Cell(tuple(values[name] for values in found if name in values), digits=_DIGITS[name])
        for name in COLUMNS
    )
    return Row(label, tuple(cells), group, differs)


def _table_of_judges(trained: Trained) -> Table:
    rows = [
        table_row(row, found, ("accuracy",), digits={"accuracy": 2})
        for row, found in trained.items()
        if row.table == "classifier"
    ]
    return Table("The classifier that judges", ("test accuracy %",), tuple(rows))


def _claims(table: Table) -> list[Claim]:
    source = "003 Sect. 4"
    claims = []
    for group in dict.fromkeys(row.group for row in table.rows if row.cells[COLUMNS.index(SIZE)].ours):
        rows = [row.label for row in table.rows if row.group == group]
        value = {
            (label, name): table.mean(index, label, group)
            for label in rows
            for index, name in enumerate(COLUMNS)
        }
        inverse = [label for label in rows if label != _BESIDE]
        claims.append(
            Claim(
                f"generated data produce high energy and real data lower energy: {group}",
                source,
                all(value[label, REAL] < value[label, FAKE] for label in inverse),
                "; ".join(
                    f"{label}: {value[label, REAL]:.4f} for test images, {value[label, FAKE]:.4f} for samples"
                    for label in inverse
                ),
            )
        )
        if _BESIDE not in rows or _OURS not in rows:
            continue
        half, whole = (value[label, SIZE] for label in (_OURS, _BESIDE))
        ours, theirs = (value[label, SCORE] for label in (_OURS, _BESIDE))
        claims += [
            Claim(
                f"only one-half the parameters will be needed for D: {group}",
                source,
                half <= _HALF * whole,
                f"{half:,.0f} parameters instead of {whole:,.0f} (at most {100 * _HALF:g} % asked for)",
            ),
            Claim(
                f"the autoencoder can be replaced by R: {group}",
                source,
                ours >= theirs,
                f"score of the samples {ours:.2f} with {_OURS}, {theirs:.2f} with the autoencoder",
            ),
        ]
    return claims


def _figures(request: Request, trained: Trained) -> tuple[Figure, ...]:
    found = []
    for row, jobs in trained.items():
        if row.table != "samples":
            continue
        words, name = f"{row.label}, {row.group}", row.path.replace("/", "-")
        if jobs[0].pictures:
            file = f"figures/{name}.svg"
            lines = {f"step {step}": pictures for step, pictures in sorted(jobs[0].pictures.items())}
            save_figure(request.out / file, picture_grid(file, lines, data_range=(0.0, 1.0), labels="rows"))
            found.append(
                Figure(
                    file,
                    f"Samples over training: {words}",
                    f"A column is one draw of noise, the same in all figures. Seed {request.seeds[0]}.",
                    f"Rows: {', '.join(lines)}",
                )
            )
        extras = jobs[0].extras
        curves = {key: points for key in (REAL, FAKE) if (points := extras.get(key.replace(" ", "_")))}
        if curves:
            file = f"figures/{name}-energies.svg"
            save_figure(request.out / file, loss_curves(file, curves, y_label="D"))
            found.append(
                Figure(
                    file,
                    f"Energies over training: {words}",
                    f"D of {_FOLLOWED} test images and of {_FOLLOWED} samples, means. Seed {request.seeds[0]}.",
                    f"Curves: {', '.join(curves)}",
                )
            )
    return tuple(found)
