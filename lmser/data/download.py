"""Downloads that end with exactly the pinned file or with nothing.

https only, redirects included; a pinned sha256 and a size cap; an interrupted transfer goes on where it
stopped; the file gets its name only after its checksum matched. Written on the standard library because
pooch, the usual choice, checks and renames but neither resumes nor caps the size, and follows a redirect to
http.

Connections are made directly: proxy settings in the environment are not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lmser._atomic import sync_directory
from lmser.data.integrity import BadData, sha256_of
from lmser.data.registry import DATA_SETS, find

if sys.platform != "win32":
    import fcntl

__all__ = ["DownloadError", "Progress", "fetch", "get"]

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes it has, and those it will have (None if the server did not say)."""

_BLOCK = 1 << 16
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0


class DownloadError(RuntimeError):
    """A download that did not end with the pinned file; the message names the URL and the reason."""


class _Interrupted(Exception):
    """The transfer stopped early; what has arrived is kept and another attempt may go on from there."""


@dataclass(frozen=True)
class _Request:
    url: str
    part: Path
    name: str
    max_bytes: int
    timeout: float
    opener: urllib.request.OpenerDirector
    progress: Progress | None


def get(name: str, root: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Download the original files of a data set into its folder in `root` and return that folder.

    `name` is a key of `registry.DATA_SETS` with files to download: "mnist", "fashion-mnist", "cifar10". `root` and the
    folder are made if they are not there. Files that are already there with the right checksum are not
    fetched again; a file of the same name with another content is left alone and refused. Every mirror is
    tried in turn.

    Errors: ValueError for an unknown set or one that is not offered; `BadData` for a file in the way;
    `DownloadError` if no mirror delivered, the message saying what each one did.
    """
    data_set = find(name)
    if not data_set.downloadable:
        offered = ", ".join(key for key, other in DATA_SETS.items() if other.downloadable)
        raise ValueError(f"{data_set.title} cannot be downloaded ({offered} can): {data_set.by_hand}")
    folder = Path(root) / data_set.folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    for file in data_set.files:
        reasons = []
        for mirror in data_set.mirrors:
            try:
                fetch(
                    mirror + file.name,
                    folder / file.name,
                    sha256=file.sha256,
                    max_bytes=file.size,
                    progress=progress,
                )
                break
            except DownloadError as error:
                reasons.append(str(error))
        else:
            raise DownloadError("; ".join(reasons))
    return folder


def fetch(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str,
    max_bytes: int,
    schemes: tuple[str, ...] = ("https",),
    context: ssl.SSLContext | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Download one file to `path`, whose content has the given `sha256` and at most `max_bytes` bytes.

    What has arrived is kept in `NAME.<start of the sha256>.part` beside `path`; the next attempt, or the next
    call after a crash, asks for the rest (`Range`), from whichever server. A server that sends the whole file
    again, or another range, is taken from the start. When the checksum matches, the file is flushed to the
    disk and renamed. If it does not, the part is deleted, and the download is repeated once from the start if
    it had been resumed.

    schemes: what `url` and every redirect may use. context: the TLS settings, default
    `ssl.create_default_context()` (certificate and host name checked). timeout: seconds that one read or
    connection may take. attempts: how often a broken connection, a timeout or a temporary HTTP status (408,
    425, 429, 5xx) is tried, `pause` seconds apart, doubling up to half a minute.

    Errors: ValueError for a URL of another scheme, a malformed sha256, or a non-positive limit;
    FileNotFoundError if the directory of `path` does not exist; `BadData` if `path` is there with other
    content; `DownloadError` for everything that goes wrong on the way, an oversize file and another download
    into the same directory included.
    """
    target = Path(path)
    _check(url, target, sha256, max_bytes, schemes, timeout, attempts, pause)
    if target.exists():
        if sha256_of(target) == sha256:
            return target
        raise BadData(
            target, f"it is not the file of sha256 {sha256[:16]}…; move it away to download the original"
        )
    request = _Request(
        url=url,
        part=target.with_name(f"{target.name}.{sha256[:8]}.part"),
        name=target.name,
        max_bytes=max_bytes,
        timeout=timeout,
        opener=_opener(schemes, context),
        progress=progress,
    )
    with _only_one_in(target.parent):
        digest, resumed = _complete(request, sha256, attempts, pause)
        if digest != sha256 and resumed:
            # The two pieces may be of two versions of the file: once more, from the start.
            request.part.unlink()
            digest, _ = _complete(request, sha256, attempts, pause)
        if digest != sha256:
            request.part.unlink()
            raise DownloadError(f"{url}: what arrived has sha256 {digest}, expected {sha256}; it was deleted")
        with open(request.part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(request.part, target)
        sync_directory(target.parent)
    return target


def _check(
    url: str,
    target: Path,
    sha256: str,
    max_bytes: int,
    schemes: tuple[str, ...],
    timeout: float,
    attempts: int,
    pause: float,
) -> None:
    if not schemes or not set(schemes) <= {"https", "http"}:
        raise ValueError(f"fetch: schemes must be of 'https' and 'http', got {schemes!r}")
    if urllib.parse.urlsplit(url).scheme not in schemes:
        raise ValueError(f"fetch: url must start with {' or '.join(s + '://' for s in schemes)}, got {url!r}")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ValueError(f"fetch: sha256 must be 64 lower-case hexadecimal digits, got {sha256!r}")
    for name, value in (("max_bytes", max_bytes), ("timeout", timeout), ("attempts", attempts)):
        if not value > 0:
            raise ValueError(f"fetch: {name} must be above 0, got {value}")
    if pause < 0:
        raise ValueError(f"fetch: pause must not be negative, got {pause}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"fetch: the directory {target.parent} of path does not exist")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the allowed schemes only."""

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self.schemes = schemes

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in self.schemes:
            raise DownloadError(
                f"{req.full_url}: redirected to {newurl}, which is not {' or '.join(self.schemes)}; refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(schemes: tuple[str, ...], context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    # Built by hand: urllib's default opener also speaks ftp, file and data, and reads proxies from the
    # environment.
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(schemes),
    ]
    if "https" in schemes:
        handlers.append(urllib.request.HTTPSHandler(context=context or ssl.create_default_context()))
    if "http" in schemes:
        handlers.append(urllib.request.HTTPHandler())
    for handler in handlers:
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "lmser")]
    return opener


@contextlib.contextmanager
def _only_one_in(directory: Path) -> Iterator[None]:
    """Refuse a second download into a directory: two writers would spoil one part file.

    The lock is on the directory itself, so it leaves nothing behind and ends with the process. Where
    directories cannot be locked (Windows, some network file systems) the checksum is what guards the result.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{directory}: another download into this folder is running") from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _complete(request: _Request, sha256: str, attempts: int, pause: float) -> tuple[str, bool]:
    """Transfer until the part file is as long as the server says.

    Returns the sha256 of the part file, and whether it was put together from more than one reply.
    """
    for attempt in range(1, attempts + 1):
        if request.part.exists() and sha256_of(request.part) == sha256:
            return sha256, True  # everything had arrived, only the rename had not happened
        try:
            return _transfer(request)
        except _Interrupted as error:
            if attempt == attempts:
                kept = request.part.stat().st_size if request.part.exists() else 0
                raise DownloadError(
                    f"{request.url}: {error}; gave up after {attempts} attempts, "
                    f"{kept} bytes are kept and the next download goes on from there"
                ) from error
            time.sleep(min(_LONGEST_PAUSE, pause * 2 ** (attempt - 1)))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _transfer(request: _Request) -> tuple[str, bool]:
    """One connection that came to its end; returns what `_complete` does."""
    have = request.part.stat().st_size if request.part.exists() else 0
    if have >= request.max_bytes:  # it has all the bytes that are allowed and the wrong checksum: of no use
        request.part.unlink()
        have = 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _connection(request, headers) as reply:
        if reply is None:  # the range is not there: the part is longer than the file
            request.part.unlink()
            raise _Interrupted(f"the server has no byte {have}")
        start = _start_of(reply)
        if start not in (0, have):
            raise _Interrupted(f"the server sent bytes from {start} on, asked for {have}")
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        if total is not None and total > request.max_bytes:
            raise DownloadError(
                f"{request.url}: {total} bytes, at most {request.max_bytes} are allowed; refused"
            )
        return _receive(request, reply, start, total), start > 0


@contextlib.contextmanager
def _connection(request: _Request, headers: dict[str, str]) -> Iterator[Any]:
    """The reply to a GET, or None for status 416. Network trouble becomes one of the two exceptions."""
    try:
        with request.opener.open(
            urllib.request.Request(request.url, headers=headers), timeout=request.timeout
        ) as reply:
            yield reply
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            yield None
        elif error.code in _TRY_AGAIN:
            raise _Interrupted(f"HTTP status {error.code} ({error.reason})") from error
        else:
            raise DownloadError(f"{request.url}: HTTP status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{request.url}: the server's certificate was refused ({error.reason})"
            ) from error
        raise _Interrupted(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error


def _start_of(reply: Any) -> int:
    """Where in the file the reply's body starts: 0 unless it is a partial one."""
    if reply.status != 206:
        return 0
    content_range = reply.headers.get("Content-Range", "")
    unit, _, rest = content_range.partition(" ")
    start = rest.partition("-")[0]
    if unit.lower() != "bytes" or not start.isdigit():
        raise _Interrupted(f"the server sent a range that cannot be read ({content_range!r})")
    return int(start)


def _receive(request: _Request, reply: Any, start: int, total: int | None) -> str:
    digest = hashlib.sha256()
    # Not "ab": a server that ignores the range sends the file from its first byte, and the part starts anew.
    with open(request.part, "rb+" if start else "wb") as part:
        while start and part.tell() < start and (block := part.read(min(_BLOCK, start - part.tell()))):
            digest.update(block)
        have = part.tell()
        if request.progress is not None:
            request.progress(request.name, have, total)
        # read1 hands over what has arrived; read would lose up to a block when the connection breaks.
        while block := reply.read1(_BLOCK):
            have += len(block)
            if have > request.max_bytes:
                part.close()
                request.part.unlink()
                raise DownloadError(
                    f"{request.url}: more than the {request.max_bytes} bytes allowed; stopped"
                )
            part.write(block)
            digest.update(block)
            if request.progress is not None:
                request.progress(request.name, have, total)
    if total is not None and have < total:
        raise _Interrupted(f"the connection ended after {have} of {total} bytes")
    return digest.hexdigest()
