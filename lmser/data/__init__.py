"""Data sets: readers that check what they read, and downloads that end with the pinned bytes.

Every reader returns an `ImageSet` (8-bit images, labels, class names, and whether the bytes are known to be
the original's) or a `Split` of two. A truncated or foreign file is refused with an error that names it;
nothing is downloaded unless `download.get` is called, nothing is ever written beside the data, and no cache
is kept.

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
image folders   `load_folder`. FOLDER/CLASS/*.jpg or *.png of one size; yours.
sample photos   `sample_photos`, `photo_crops`. Six photographs inside the scikit-learn and scikit-image
                wheels. Licence: CC BY 2.0 (china, flower), public domain (astronaut, rocket), CC0 (chelsea,
                coffee).
==============  ===========================================================================================

`registry.DATA_SETS` holds the same facts as data, with mirrors and checksums; `registry.describe(name)` puts
them in words. Decoding JPEG and PNG takes the extra ``experiments``.
"""

from __future__ import annotations

from lmser.data.folders import load_folder
from lmser.data.idx import load_mnist
from lmser.data.image_set import ImageSet, Split
from lmser.data.integrity import BadData, MissingData
from lmser.data.photos import photo_crops, sample_photos
from lmser.data.stl10 import load_stl10

__all__ = [
    "BadData",
    "ImageSet",
    "MissingData",
    "Split",
    "load_folder",
    "load_mnist",
    "load_stl10",
    "photo_crops",
    "sample_photos",
]
