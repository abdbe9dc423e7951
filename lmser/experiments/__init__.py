"""The papers' experiments, each a module with ``run(request) -> Results``, found here by name.

Importing this package imports neither torch nor any experiment, so that ``lmser list`` answers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

__all__ = ["EXPERIMENTS", "Experiment", "Request", "find"]

Scale = Literal["quick", "paper"]


@dataclass(frozen=True)
class Request:
    """What the command line asks of an experiment.

    data:     the folder with the data sets.  device: as `torch.device` takes it.  seeds: one run each.
    out:      the run directory.  resume: continue it.  progress: say on standard error how far it is.
    training: fields of `lmser.training.TrainConfig` put over those of every row (precision, compile, workers, cuda_graph).
    tensorboard: write event files beside each run's log.
    rows:     only the rows whose path has one of these in it; all where it is empty.
    """

    data: Path
    device: str
    scale: Scale
    seeds: tuple[int, ...]
    out: Path
    resume: bool = False
    progress: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)
    tensorboard: bool = False
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One line of ``lmser list``.

    source: what of the papers it reproduces.  data: what it reads, "" for nothing.  needs: how to come by
    that, as one clause.
    by_rows: whether it can be run by a part of its rows.
    seeds:  the default of each scale.  minutes: about how long those take on two CPU cores.
    """

    name: str
    summary: str
    source: str
    data: str
    needs: str
    seeds: dict[Scale, tuple[int, ...]]
    minutes: dict[Scale, float]
    by_rows: bool = False

    def module(self) -> ModuleType:
        """The module that runs it."""
        return importlib.import_module(f"{__name__}.{self.name.replace('-', '_')}")


EXPERIMENTS = (
    Experiment(
        name="mnist-reconstruction",
        summary="AE, Lmser(un-n), Lmser(un) and Lmser(sup), fully connected, after 500, 5000 and 20000 steps",
        source="000 Table 1, Fig. 2",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 25},
    ),
    Experiment(
        name="fashion-reconstruction",
        summary="the same networks on clothing",
        source="000 Fig. 3",
        data="Fashion-MNIST (idx files)",
        needs="`lmser data get fashion-mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 25},
    ),
    Experiment(
        name="stl10-reconstruction",
        summary="CLmser, CLmser-w, CLmser-n, CAE and U-Net trained on 400, 100 and 10 images per class",
        source="001 Table 4, Figs. 5 and 6",
        data="STL10 (stl10_binary), or train/CLASS/*.jpg and test/CLASS/*.jpg of 96x96 pixels",
        needs="`lmser data get stl10` says where STL10 is to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 6, "paper": 130},
    ),
    Experiment(
        name="recognition",
        summary="FCN, CNN and the Lmser(sup) of their layers reading digits, clean and under FGSM and PGD",
        source="000 Recognition",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 120},
    ),
    Experiment(
        name="classification",
        summary="classification and reconstruction at once by CLmser, and classification by a CNN of its layers",
        source="001 Table 7",
        data="MNIST, Fashion-MNIST (idx files), CIFAR-10 (its binary or python version, or a subset)",
        needs="`lmser data get` with mnist, fashion-mnist or cifar10 downloads it or says where it is to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 5, "paper": 75},
    ),
    Experiment(
        name="generation",
        summary="digits and clothes decoded by class and style, and along single units of the code",
        source="000 Generation, Figs. 4 to 6",
        data="MNIST and Fashion-MNIST (idx files)",
        needs="`lmser data get mnist` and `lmser data get fashion-mnist` download them",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 3, "paper": 100},
    ),
    Experiment(
        name="association",
        summary="faces with the eyes blocked, completed by networks that know whole faces",
        source="000 Association, Fig. 7",
        data="CelebA (img_align_celeba), CelebA-HQ, or a folder faces128 of such pictures",
        needs="`lmser data get celeba` says where CelebA is to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 280},
    ),
    Experiment(
        name="gradients",
        summary="gradient norms of CLmser, CLmser-w, CLmser-n and CAE by layer, at the start and during training",
        source="001 Sect. 4.2",
        data="STL10 (stl10_binary), or train/CLASS/*.jpg and test/CLASS/*.jpg of 96x96 pixels",
        needs="`lmser data get stl10` says where STL10 is to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 90},
    ),
    Experiment(
        name="scenes-reconstruction",
        summary="scenes reconstructed by CAE and CLmser-n, that is without and with shared weights",
        source="001 App. B, Table 8",
        data="Places2 (data_256 and test_256), or a folder scenes256 of photographs",
        needs="`lmser data get places2` says where Places2 is to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 1, "paper": 60},
    ),
    Experiment(
        name="inpainting",
        summary="images with a quarter of their pixels missing, completed by CLmsers, PConv, PEN-Net and PICNet",
        source="001 Sect. 5.3, Table 5, Figs. 7 and 8",
        data="CelebA-HQ, or a folder faces128 of faces; and Places2, or a folder scenes256 of photographs",
        needs="`lmser data get celeba-hq` and `lmser data get places2` say where they are to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 4, "paper": 2400},
    ),
    Experiment(
        name="inference-time",
        summary="milliseconds per frame of CLmsers, fused and eager, PConv, PEN-Net and PICNet",
        source="001 Table 6",
        data="",
        needs="",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 3, "paper": 60},
    ),
    Experiment(
        name="cban-bars",
        summary="images of two bars completed by FBAN 25-50 and 25-48-24 from evidence for one of them",
        source="004 Sect. 4.1, Figs. 2 and 3",
        data="",
        needs="",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 2, "paper": 45},
    ),
    Experiment(
        name="cban-mnist",
        summary="digits and their class completed by FBAN 812-200-50, masked by Perlin noise and whole",
        source="004 Sect. 4.2, Figs. 4, 8c and 10",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 3, "paper": 70},
    ),
    Experiment(
        name="cban-evidence",
        summary="evidence clamped, as a start, blended in, as a bias, and in a copy of its own: bars and digits",
        source="004 App. A",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 3, "paper": 150},
    ),
    Experiment(
        name="cban-loss",
        summary="three losses of attractor networks; TD(1), TD(0.5), TD(0), noTD and stationary training",
        source="004 Sects. 3.2 and 3.3, App. B",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 3, "paper": 240},
    ),
    # 004's convolutional networks at paper scale are for a GPU: their minutes are reckoned from the operations of 50
    # iterations of every batch, forwards and backwards, at 100 GFLOP/s.
    Experiment(
        name="cban-omniglot",
        summary="drawings with squares over them, completed by CBAN, CBAN-asym, CBAN-noTD and a denoising VAE",
        source="004 Sect. 4.3, Fig. 5",
        data="Omniglot (images_background.zip)",
        needs="`lmser data get omniglot` says where it is to be had",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 4, "paper": 65000},
    ),
    Experiment(
        name="cban-cifar",
        summary="photographs under Perlin noise, completed by the same networks",
        source="004 Sect. 4.4, Fig. 6",
        data="CIFAR-10 (its binary or python version, or a subset)",
        needs="`lmser data get cifar10` downloads it or says where it is to be had",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 4, "paper": 135000},
    ),
    Experiment(
        name="cban-superres",
        summary="super-resolution by 2 by CBAN beside bicubic interpolation",
        source="004 Sect. 4.5, Table 1, Fig. 7",
        data="T91, Set5, Set14, BSD100 and, where it is there, Urban100 (folders of PNG files)",
        needs="`lmser data get super-resolution` says where they are to be had",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 2, "paper": 87000},
    ),
    Experiment(
        name="cban-threshold",
        summary="how far CBAN has to settle in training",
        source="004 App. E.1, Table 2",
        data="Omniglot (images_background.zip)",
        needs="`lmser data get omniglot` says where it is to be had",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 2, "paper": 23000},
    ),
    Experiment(
        name="cban-order",
        summary="CBAN's layers updated up and down, or the odd and then the even ones",
        source="004 App. E.2, Table 3",
        data="Omniglot (images_background.zip)",
        needs="`lmser data get omniglot` says where it is to be had",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 2, "paper": 43000},
    ),
    Experiment(
        name="semisup-mnist",
        summary="digits learned from 50 labels and all images by twelve networks inverted through their transposes",
        source="003 Table 2",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 4, "paper": 1600},
        by_rows=True,
    ),
    Experiment(
        name="inversion-figures",
        summary="digits sent back through networks that learned with 50 labels, and through ones that did not",
        source="003 Figs. 1 and 3",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0,)},
        minutes={"quick": 4, "paper": 3000},
        by_rows=True,
    ),
    Experiment(
        name="clustering",
        summary="unlabelled digits clustered by an inverted network's reconstruction error and entropy, beside k-means",
        source="003 Sect. 4",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 3, "paper": 240},
    ),
    Experiment(
        name="ebgan",
        summary="digits generated against the reconstruction error of an inverted network, beside an autoencoder's",
        source="003 Sect. 4",
        data="MNIST (idx files)",
        needs="`lmser data get mnist` downloads it",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 4, "paper": 500},
    ),
    Experiment(
        name="semisup-audio",
        summary="a classifier of raw audio regularised by the reconstruction of its input, ten weightings",
        source="003 Sect. 3.2, Fig. 2",
        data="recordings of spoken digits (fsdd) and of birds (birds10), which stand in for Bird10",
        needs="`lmser data get fsdd` and `lmser data get birds10` say where they are to be had",
        seeds={"quick": (0,), "paper": (0, 1, 2)},
        minutes={"quick": 4, "paper": 40},
    ),
)


def find(name: str) -> Experiment:
    """The experiment called `name`. ValueError listing the names there are."""
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    raise ValueError(f"there is no experiment {name!r}; there are {', '.join(e.name for e in EXPERIMENTS)}")
