"""Photographs decoded when they are asked for, for sets that do not fit into memory (CelebA, Places2).

`python -m bench.decoding --data DIR --dataset scenes --size 256` prints how many images per second 0, 1, 2, …
worker processes of a `DataLoader` decode on a machine: take as many as keep batch / rate below the time of a
training step.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

from lmser.data.decode import decode_square
from lmser.data.photo_files import PhotoFiles, find_photos
from lmser.data.photo_sets import check_square

__all__ = ["PhotoStream", "photo_streams"]


class PhotoStream(torch.utils.data.Dataset[Tensor]):
    """A map-style data set: `stream[i]` reads and decodes image i, uint8 `(3, size, size)`.

    The pixels are exactly those that `photo_sets.load_photos` has at index i. Only names are kept and no file
    stays open, so a stream can be pickled and read by any number of `DataLoader` workers.

    files: what `photo_files.find_photos` gives. size, crop: as in `load_photos`. name: the set in words.

    Errors: TypeError or ValueError for a bad `size` or `crop`; when indexed, IndexError, and as
    `decode.decode_square`: `BadData` or FileNotFoundError naming the file (a worker process of torch passes
    them on as a RuntimeError or of their own type, with the same message in it).
    """

    def __init__(self, files: PhotoFiles, size: int, crop: int | None = None) -> None:
        check_square("PhotoStream", size, crop)
        if not files.names:
            raise ValueError(f"PhotoStream: files is empty ({files.title})")
        self.files = files
        self.size = size
        self.crop = crop

    @property
    def name(self) -> str:
        return self.files.title

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"PhotoStream: index must be in 0..{len(self) - 1}, got {index}")
        return decode_square(self.files.path(index), self.size, self.crop, self.files.size)

    def fingerprint(self) -> str:
        """The sha256, in hex, of `size`, `crop`, and the name and length in bytes of every file.

        It takes a look at each file's entry but reads none: two runs that print the same one saw the same
        files unless one was replaced by another of exactly the same length. The folder they are in does not
        matter. Errors: FileNotFoundError naming a file that is gone.
        """
        digest = hashlib.sha256(f"size {self.size}, crop {self.crop}, {len(self)} files\n".encode())
        for name in self.files.names:
            length = os.stat(f"{self.files.folder}/{name}").st_size
            digest.update(f"{length} {name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def photo_streams(
    root: str | os.PathLike[str],
    dataset: str,
    size: int,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    crop: int | None = None,
) -> tuple[PhotoStream, PhotoStream]:
    """The training and the test images of `photo_sets.load_photos` with the same arguments, as streams.

    No image is read yet. Errors: as `find_photos` and `PhotoStream`.
    """
    check_square("photo_streams", size, crop)
    files = find_photos(root, dataset, train=train, test=test, seed=seed)
    return PhotoStream(files.train, size, crop), PhotoStream(files.test, size, crop)
