"""Files that appear whole or not at all.

A file is written under a temporary name in the directory it will live in, flushed to the disk, and only then
given its name with `os.replace`, which is atomic within one file system. A reader, or a run that starts after
a power cut, sees the old file or the new one and never half of either.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

__all__ = ["atomic_write", "sync_directory"]


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power cut.

    Does nothing where directories cannot be opened for that (Windows, some network file systems): the rename
    is still atomic there, only not known to be durable.
    """
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb"] = "wb", *, encoding: None = None
) -> contextlib.AbstractContextManager[IO[bytes]]: ...


@overload
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["w"], *, encoding: str | None = None
) -> contextlib.AbstractContextManager[IO[str]]: ...


def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb", "w"] = "wb", *, encoding: str | None = None
) -> contextlib.AbstractContextManager[IO[Any]]:
    """A context manager that yields a file to write; `path` becomes it when the block ends without an
    exception.

    Text is written as UTF-8 with `\\n` line ends unless `encoding` says otherwise. When the block raises, or
    the disk is full at the last flush, the temporary file is removed, `path` stays as it was, and the
    exception goes on. Symbolic links are followed: the file a link points to is replaced, the link stays. The
    directory must exist.

    Errors: ValueError for another mode or an encoding with ``"wb"``; IsADirectoryError when `path` is a
    directory; FileNotFoundError when its directory is not there. All are raised before anything is written.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: mode must be 'wb' or 'w', got {mode!r}")
    if mode == "wb" and encoding is not None:
        raise ValueError(f"atomic_write: encoding {encoding!r} has no meaning with mode 'wb'")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {os.fspath(path)}: it is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {os.fspath(path)}: the directory {target.parent} does not exist"
        )
    return _replacing(target, mode, encoding)


@contextlib.contextmanager
def _replacing(target: Path, mode: Literal["wb", "w"], encoding: str | None) -> Iterator[IO[Any]]:
    temporary = target.with_name(f".{target.name[:32]}.{secrets.token_hex(6)}.tmp")
    # Not `tempfile`: its files are 0600, and the umask that a new file should obey can only be read by
    # changing it for the whole process.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    text = mode == "w"
    try:
        with os.fdopen(
            handle, mode, encoding=(encoding or "utf-8") if text else None, newline="\n" if text else None
        ) as file:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, target.stat().st_mode & 0o777)  # a private file stays private
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        # KeyboardInterrupt too: nobody will ever look for the temporary file again.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(target.parent)
