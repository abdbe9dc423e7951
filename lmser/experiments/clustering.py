"""003 Sect. 4: digits clustered without labels by the reconstruction and the entropy of an inverted network.

"Our approach opens the possibility of performing unsupervised tasks such as clustering. In fact, by setting α = 0, we
are in a fully unsupervised framework. Moreover, β can push the mapping f to produce a low-entropy, clustered,
representation or rather simply to produce optimal reconstruction." 003 reports no experiment.

SmallCNN with each of its poolings has ten outputs, of which the largest names the cluster, and descends

    β R + (1 - β) E        Eq. (10) with α = 0

with R as printed (the sum over pixels), and as its text has it (their mean). Nothing in this loss keeps a network from
naming all images alike. E alone is lowest where one output always wins. And as

    (df/dx)ᵀ f(x) = ∇ ½‖f(x)‖²,    R(x) = ‖∇ (½‖f(x)‖² - ½‖x‖²)‖²

R asks of the outputs only that their length grow with that of the image: one output is enough for it, and the others
may be anything. The column "clusters used" shows where that happened. A third table has a term that 003 does not,

    β R + (1 - β) E - w H(mean over the batch of softmax f(x))

whose last part asks for clusters of equal size. Schedule and weights were chosen on training images alone.

Accuracy is that of the test images under the best matching of clusters and classes; k-means on pixels stands beside,
fitted to training images. Labels take part in the measures alone.

What decides the claims, set before the committed runs, on the mean over the seeds:
- β turns from a low-entropy representation to reconstruction: for each pooling and each R, the entropy at the lowest β
  above 0 is below that at β = 1, and R at β = 1 below that at the lowest β.
- Clustering is possible: with β = 0.5 and R as printed, accuracy is at least that of k-means on pixels for one of the
  three poolings; the same claim apart for the loss with the further term.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmser._extras import require
from lmser.cluster_metrics import cluster_accuracy, normalised_mutual_information, used_clusters
from lmser.data import Split, load_mnist
from lmser.experiments import Request
from lmser.experiments.balanced_loss import BALANCE, balanced_loss
from lmser.experiments.campaign import Job, Trained, row_times, table_row, train_rows
from lmser.experiments.figures import save_figure
from lmser.experiments.figures_blocks import picture_blocks
from lmser.experiments.generated import predicted
from lmser.experiments.inversion_objective import build_semi_supervised
from lmser.experiments.labelled_images import LabelledImages
from lmser.experiments.provenance import machine
from lmser.experiments.results import Claim, Figure, Results
from lmser.experiments.rows import RowConfig, checksum, load_rows
from lmser.experiments.tables import Cell, Row, Table
from lmser.inversion import UNLABELLED, SemiSupervised, entropy

__all__ = ["run"]

NAME = "clustering"

ACCURACY, NMI, USED = "accuracy", "NMI", "clusters used"
REBUILT, UNSURE = "R per pixel", "E"
COLUMNS = (ACCURACY, NMI, USED, REBUILT, UNSURE)
_DIGITS = {ACCURACY: 2, NMI: 3, USED: 1, REBUILT: 4, UNSURE: 3}
_TITLES = {
    "squared": "R as printed, the sum over pixels",
    "mean_squared": "R as the text has it, the mean over pixels",
    "balanced": "R as printed, and a term for clusters of equal size, which is not in 003",
}
_KMEANS = "k-means on pixels"
_CLUSTERS, _SHOWN, _CHUNK = 10, 12, 500


def run(request: Request, rows: list[RowConfig] | None = None) -> Results:
    """Run the experiment; `rows` replace the files' (tests use a few tiny ones).

    Raises MissingData, BadData, RunRefused, Interrupted, each with a message for the user; ImportError naming the extra
    where scikit-learn is not installed.
    """
    rows = load_rows(NAME, request.scale, request.training) if rows is None else rows
    require("sklearn.cluster")  # before hours of training rather than behind them
    sets = Split(*(load_mnist(request.data, False, part) for part in (True, False)))
    pixels = LabelledImages.of(*sets, request.device)
    sums = {part: images.sha256() for part, images in zip(("training", "test"), sets, strict=True)}
    networks = [row for row in rows if row.model]
    trained = train_rows(request, networks, functools.partial(_job, pixels), experiment=NAME, data=sums)
    beside = {
        row: [_k_means(pixels, seed, **row.evaluation) for seed in request.seeds]
        for row in rows
        if not row.model
    }
    tables = tuple(
        _table(key, title, trained, beside)
        for key, title in _TITLES.items()
        if any(row.table == key for row in networks)
    )
    results = Results(
        experiment=NAME,
        title="Digits clustered without labels",
        summary=(
            f"{rows[0].evaluation['images']:,} test images by the largest of ten outputs. Accuracy in percent under the "
            "best matching of clusters and classes; NMI: normalised mutual information of the two; a cluster is used "
            "where it has 1 % of the images. 003 names this and reports no numbers."
        ),
        scale=request.scale,
        seeds=request.seeds,
        tables=tables,
        figures=_figures(request, trained),
        seconds=sum(job.seconds for found in trained.values() for job in found),
        machine=machine(request.device),
        data={
            "data": sets.train.name,
            **{f"{part} data sha256": value for part, value in sums.items()},
            "configuration files sha256": checksum(rows),
        },
        claims=tuple(claim for table in tables for claim in _claims(table)),
        times=row_times(trained),
    )
    results.write(request.out)
    return results


def _job(pixels: LabelledImages, row: RowConfig) -> Job:
    images, labels = (part[: row.evaluation["images"]] for part in (pixels.test, pixels.test_labels))
    return Job(
        data=pixels.train,
        loss=functools.partial(_loss, balance=float(row.objective.get(BALANCE, 0.0))),
        evaluate=functools.partial(_measure, images=images, labels=labels),
        metrics=COLUMNS,
        pictures=functools.partial(_members, images=images),
        build=functools.partial(build_semi_supervised, row, (BALANCE,)),
    )


def _loss(model: nn.Module, images: Tensor, balance: float) -> Tensor:
    unlabelled = torch.full((len(images),), UNLABELLED, device=images.device)
    return balanced_loss(model, images, unlabelled, balance=balance)


@torch.no_grad()
def _measure(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    assert isinstance(model, SemiSupervised)
    logits = predicted(model, images)
    device = next(model.parameters()).device
    off = 0.0
    for part in images.split(_CHUNK):
        x = part.to(device)
        off += float((model.reconstruct(x) - x).double().square().sum())
    return {
        **_agreement(labels, logits.argmax(1)),
        REBUILT: off / images.numel(),
        UNSURE: float(entropy(logits.double().log_softmax(1)).mean()),
    }


def _agreement(labels: Tensor, clusters: Tensor) -> dict[str, float]:
    return {
        ACCURACY: 100 * cluster_accuracy(labels, clusters),
        NMI: normalised_mutual_information(labels, clusters),
        USED: float(used_clusters(clusters)),
    }


def _k_means(
    pixels: LabelledImages, seed: int, *, images: int, fitted: int, starts: int
) -> Mapping[str, float]:
    """k-means fitted to the first `fitted` training images, the best of `starts`, of the first `images` test images; R
    is the distance to the centre."""
    fit = require("sklearn.cluster").KMeans(_CLUSTERS, n_init=starts, random_state=seed)
    fit.fit(pixels.train[:fitted].flatten(1).cpu().numpy())
    test = pixels.test[:images].flatten(1)
    clusters = torch.from_numpy(fit.predict(test.numpy())).long()
    centres = torch.from_numpy(fit.cluster_centers_)[clusters]
    return {
        **_agreement(pixels.test_labels[:images], clusters),
        REBUILT: float((test - centres).double().square().mean()),
    }


def _members(model: nn.Module, images: Tensor) -> Tensor:
    """The first images of each cluster, ``(clusters, shown, 1, 28, 28)``; NaN where there are no more."""
    clusters = predicted(model, images).argmax(1)
    found = torch.full((_CLUSTERS, _SHOWN, *images.shape[1:]), math.nan)
    for cluster in range(_CLUSTERS):
        members = images[clusters == cluster][:_SHOWN]
        found[cluster, : len(members)] = members
    return found


def _table(
    key: str, title: str, trained: Trained, beside: Mapping[RowConfig, list[Mapping[str, float]]]
) -> Table:
    rows = [
        table_row(row, found, COLUMNS, digits=_DIGITS) for row, found in trained.items() if row.table == key
    ]
    for row, measured in beside.items():
        cells = (
            Cell(tuple(values[name] for values in measured if name in values), digits=_DIGITS[name])
            for name in COLUMNS
        )
        rows.append(Row(row.label, tuple(cells), group=_KMEANS, differs=row.differs))
    return Table(title, COLUMNS, tuple(rows), header="loss")


def _claims(table: Table) -> list[Claim]:
    source = "003 Sect. 4"
    groups = list(dict.fromkeys(row.group for row in table.rows if row.group != _KMEANS))
    at = {name: COLUMNS.index(name) for name in COLUMNS}
    claims = []
    if table.title != _TITLES["balanced"]:
        turned, shown = True, []
        for group in groups:
            betas = {_beta(row.label): row.label for row in table.rows if row.group == group}
            low, high = (betas[value] for value in (min(b for b in betas if b > 0), max(betas)))
            sure = [table.mean(at[UNSURE], label, group) for label in (low, high)]
            off = [table.mean(at[REBUILT], label, group) for label in (low, high)]
            turned &= sure[0] < sure[1] and off[1] < off[0]
            shown.append(
                f"{group}: from {low} to {high} E {sure[0]:.3f} to {sure[1]:.3f}, R {off[0]:.4f} to {off[1]:.4f}"
            )
        claims.append(
            Claim(
                "β can push f to a low-entropy representation or to optimal reconstruction",
                source,
                turned,
                f"{table.title}: {'; '.join(shown)}",
            )
        )
    if table.title != _TITLES["mean_squared"]:
        label = next(row.label for row in table.rows if _beta(row.label) == 0.5)
        found = {group: table.mean(at[ACCURACY], label, group) for group in groups}
        means = max(row.cells[at[ACCURACY]].mean or 0.0 for row in table.rows if row.group == _KMEANS)
        words = "" if table.title == _TITLES["squared"] else ", with a term for clusters of equal size"
        claims.append(
            Claim(
                f"α = 0 opens the possibility of clustering{words}",
                source,
                any(value >= means for value in found.values()),
                f"{table.title}, {label}: {', '.join(f'{name} {value:.2f} %' for name, value in found.items())}; "
                f"k-means on pixels {means:.2f} %",
            )
        )
    return claims


def _beta(label: str) -> float:
    """β of a row's label "β = 0.5"; -1 of any other."""
    name, _, value = label.partition(" = ")
    return float(value) if name == "β" else -1.0


def _figures(request: Request, trained: Trained) -> tuple[Figure, ...]:
    figures = []
    for key, title in _TITLES.items():
        blocks = {
            f"{row.group}, {row.label}": jobs[0].pictures[max(jobs[0].pictures)]
            for row, jobs in trained.items()
            if row.table == key and row.evaluation.get("shown", False) and jobs[0].pictures
        }
        if blocks:
            file = f"figures/clusters-{key.replace('_', '-')}.svg"
            numbers = [str(cluster) for cluster in range(_CLUSTERS)]
            save_figure(request.out / file, picture_blocks(file, blocks, rows=numbers, data_range=(0.0, 1.0)))
            figures.append(
                Figure(
                    file,
                    f"Clusters: {title}",
                    f"The first {_SHOWN} test images of each cluster, black where it has no more. "
                    f"Seed {request.seeds[0]}.",
                    f"Rows: clusters 0 to {_CLUSTERS - 1}. Blocks: {', '.join(blocks)}",
                )
            )
    return tuple(figures)
