from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lmser._atomic import atomic_write


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_writes_bytes_and_text(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "b") as file:
        file.write(b"\x00\r\n\xff")
    with atomic_write(tmp_path / "t", "w") as text:
        text.write("größer\nals\r\n")
    with atomic_write(str(tmp_path / "l"), "w", encoding="latin-1") as text:
        text.write("ö")
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n\xff"
    assert (tmp_path / "t").read_bytes() == "größer\nals\r\n".encode()
    assert (tmp_path / "l").read_bytes() == b"\xf6"
    assert names(tmp_path) == ["b", "l", "t"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "f"
    if exists:
        path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert names(tmp_path) == (["f"] if exists else [])
    if exists:
        assert path.read_bytes() == b"old"


def test_a_full_disk_at_the_last_flush_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_the_old_file_is_there_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    calls: list[tuple[str, bytes]] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", path.read_bytes())), fsync(fd))[1])
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(("replace", path.read_bytes())), replace(a, b))[1]
    )
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        (temporary,) = set(names(tmp_path)) - {"f"}
        assert temporary.startswith(".f.")
    assert calls == [("fsync", b"old"), ("replace", b"old"), ("fsync", b"new")]  # file, rename, directory


def test_permissions(tmp_path: Path) -> None:
    new, private = tmp_path / "new", tmp_path / "private"
    private.write_bytes(b"")
    private.chmod(0o600)
    before = os.umask(0o027)
    try:
        for path in (new, private):
            with atomic_write(path) as file:
                file.write(b"x")
    finally:
        os.umask(before)
    assert new.stat().st_mode & 0o777 == 0o640
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "f"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"


def test_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("ö" * 120)  # 240 bytes: a longer temporary name would not be allowed
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_errors_come_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be 'wb' or 'w', got 'a'"):
        atomic_write(tmp_path / "f", "a")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="encoding 'utf-8' has no meaning"):
        atomic_write(tmp_path / "f", "wb", encoding="utf-8")  # type: ignore[call-overload]
    with pytest.raises(IsADirectoryError, match="it is a directory"):
        atomic_write(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        atomic_write(tmp_path / "absent" / "f")
    assert names(tmp_path) == []


def test_sigkill_leaves_one_whole_version(tmp_path: Path) -> None:
    """A process that rewrites a file over and over is killed at five moments; the file is always whole."""
    path = tmp_path / "f"
    path.write_bytes(b"0" * 300_000)
    program = textwrap.dedent(
        f"""
        import itertools
        from lmser._atomic import atomic_write
        print("go", flush=True)
        for i in itertools.count():
            with atomic_write({os.fspath(path)!r}) as file:
                for _ in range(30):
                    file.write(b"%d" % (i % 10) * 10_000)
        """
    )
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=delay)
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
