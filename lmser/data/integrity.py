"""Errors of the readers, and checksums.

A reader raises `MissingData` where nothing is to be found and `BadData` where something is wrong with what
was found. Both say which file or folder and what to do; neither is ever raised after a partly built result
was handed out.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["BadData", "MissingData", "check_root", "sha256_of"]


class MissingData(FileNotFoundError):
    """A data set is not in the folders that were searched; the message names them and how to get it."""


class BadData(ValueError):
    """A file is truncated, foreign, or disagrees with another; the message names it and what is wrong."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        super().__init__(f"{os.fspath(path)}: {what}")
        self.path = Path(path)
        self.what = what


def check_root(function: str, root: str | os.PathLike[str]) -> Path:
    """`root` as a path to an existing folder, or an error that names `function` and the path."""
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"{function}: root must be a path, got {type(root).__name__}")
    path = Path(root)
    if not path.exists():
        raise MissingData(f"{function}: the data folder {path} does not exist")
    if not path.is_dir():
        raise NotADirectoryError(f"{function}: the data folder {path} is a file")
    return path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hex, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
