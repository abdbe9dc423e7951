"""Data sets: readers that check what they read, and downloads that end with the pinned bytes.

Every reader returns an `ImageSet` (8-bit images, labels, class names, and whether the bytes are known to be
the original's) or a `Split` of two; those of super-resolution, whose images differ in size, and of audio, sets of their
own. A truncated or foreign file is refused with an error that names it; nothing is downloaded unless `download.get`
is called, nothing is ever written beside the data, and no cache is kept.

==============  ===========================================================================================
MNIST           `load_mnist`. 60,000 + 10,000 digits, 28x28 grey, idx files. Source: LeCun, Cortes, Burges.
                Licence: none stated with the data.
Fashion-MNIST   `load_mnist(fashion=True)`. 60,000 + 10,000 pieces of clothing, 28x28 grey, idx files.
                Source: zalandoresearch/fashion-mnist. Licence: MIT, Zalando SE.
STL10           `load_stl10`. 10 classes, 500 labelled photographs each, 96x96 RGB, original binary files.
                Source: Coates, Ng, Lee. Licence: none stated; ImageNet terms ask for non-commercial
                research use.
STL10 stand-in  `load_stl10` as well. 10 classes, 400 + 100 photographs each, 96x96 RGB, folders of JPEG
                files: Imagenette resized from 224x224 (thunderInfy/imagenette). Licence: none stated;
                ImageNet terms ask for non-commercial research use.
CIFAR-10        `load_cifar10`. 50,000 + 10,000 photographs of 10 classes, 32x32 RGB, binary version
                (packed or not), python version, or a subset in one npz file. Source: Krizhevsky. Licence: none
                stated.
Omniglot        `load_omniglot`. 19,280 drawings of 964 characters (and 13,180 of 659 others), 105x105, 1 bit,
                zip files read in place. Source: Lake, Salakhutdinov, Tenenbaum. Licence: MIT.
super-          `load_super_resolution`. T91 for training; Set5, Set14, BSD100, Urban100 for testing, RGB of
resolution      many sizes. Sources and licences: `registry.describe("super-resolution")`.
CelebA          `load_photos`, `photo_streams`. 202,599 faces, 178x218 RGB, JPEG files; its own partition.
                Source: Liu, Luo, Wang, Tang. Licence: non-commercial research only.
CelebA-HQ       `load_photos`, `photo_streams`. 30,000 faces, square RGB images of any size; 27,000 + 3,000
                by a seed. Source: Karras, Aila, Laine, Lehtinen. Licence: CC BY-NC 4.0.
Places2         `load_photos`, `photo_streams`. 1.8 million photographs of 365 scenes, 256x256 RGB, JPEG files;
                180,000 + 10,000 by a seed. Source: Zhou and others. Licence: non-commercial research only.
stand-ins       `load_photos`, `photo_streams` as well. 2,000 faces, 128x128 RGB (Labeled Faces in the Wild),
                and 320 scenes, 256x256 RGB (SUN database), JPEG files. Licence: none stated.
image folders   `load_folder`. FOLDER/CLASS/*.jpg or *.png of one size; yours.
audio           `load_audio`. Segments of recordings: the Free Spoken Digit Dataset (3,000 recordings or a subset of
                them, 8,000 Hz; CC BY-SA 4.0), one recording of each of ten birds (16,000 Hz; licence: none
                stated), FOLDER/CLASS/*.wav of yours.
sample photos   `sample_photos`, `photo_crops`. Six photographs inside the scikit-learn and scikit-image
                wheels. Licence: CC BY 2.0 (china, flower), public domain (astronaut, rocket), CC0 (chelsea,
                coffee).
==============  ===========================================================================================

`point_masks` and `eyes_mask` make the missing pixels of inpainting and association, `perlin_masks` and
`patch_masks` those of the attractor networks, for which `bar_images` and `bar_trials` are the bar task. Masks
are True where a pixel is missing; only the bar task says what is `observed`. A `PhotoStream` decodes while
training what does not fit into memory.

`registry.DATA_SETS` holds the same facts as data, with mirrors and checksums; `registry.describe(name)` puts
them in words. Decoding JPEG and PNG takes the extra ``experiments``.
"""

from __future__ import annotations

from lmser.data.audio import AudioSegments, AudioSplit, load_audio
from lmser.data.bars import bar_images, bar_trials
from lmser.data.cifar10 import load_cifar10
from lmser.data.few_labels import few_labels
from lmser.data.folders import load_folder
from lmser.data.idx import load_mnist
from lmser.data.image_set import ImageSet, Split
from lmser.data.integrity import BadData, MissingData
from lmser.data.masks import coverage_of, eyes_mask, point_masks
from lmser.data.omniglot import load_omniglot
from lmser.data.patches import patch_masks
from lmser.data.perlin import perlin_masks
from lmser.data.photo_sets import load_photos
from lmser.data.photos import photo_crops, sample_photos
from lmser.data.stl10 import load_stl10
from lmser.data.stream import PhotoStream, photo_streams
from lmser.data.super_resolution import PatchPairs, load_super_resolution

__all__ = [
    "AudioSegments",
    "AudioSplit",
    "BadData",
    "ImageSet",
    "MissingData",
    "PatchPairs",
    "PhotoStream",
    "Split",
    "bar_images",
    "bar_trials",
    "coverage_of",
    "eyes_mask",
    "few_labels",
    "load_audio",
    "load_cifar10",
    "load_folder",
    "load_mnist",
    "load_omniglot",
    "load_photos",
    "load_stl10",
    "load_super_resolution",
    "patch_masks",
    "perlin_masks",
    "photo_crops",
    "photo_streams",
    "point_masks",
    "sample_photos",
]
