"""`fetch` over plain http from a local server: whole, broken, resumed, oversize, foreign."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import (
    CONTENT,
    SHA256,
    Behaviour,
    Handler,
    Server,
    cut_after,
    proper,
    redirect,
    running,
    status,
    without_ranges,
)

from lmser.data import BadData, download
from lmser.data.download import DownloadError, fetch


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as server:
        yield server


def load(server: Server, folder: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {
        "sha256": SHA256,
        "max_bytes": len(CONTENT),
        "schemes": ("http",),
        "pause": 0.0,
        "timeout": 5.0,
    }
    return fetch(server.url, folder / "file.bin", **(settings | options))


def part_of(folder: Path) -> Path:
    return folder / f"file.bin.{SHA256[:8]}.part"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_whole_file(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int | None]] = []
    path = load(server, tmp_path, progress=lambda *step: steps.append(step))
    assert path == tmp_path / "file.bin"
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]
    assert server.ranges == [None]
    assert steps[0] == ("file.bin", 0, len(CONTENT))
    assert steps[-1] == ("file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    load(server, tmp_path)
    load(server, tmp_path)
    assert len(server.requests) == 1


def test_another_file_in_the_way_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(BadData, match=r"file\.bin: it is not the file of sha256 .* move it away"):
        load(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert server.requests == []


def test_truncated_replies_are_resumed(server: Server, tmp_path: Path) -> None:
    server.play(cut_after(100_000), cut_after(50_000), cut_after(0), proper)
    steps: list[int] = []
    load(server, tmp_path, progress=lambda name, done, total: steps.append(done))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert steps == sorted(steps)
    assert names(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.play(cut_after(100_000), without_ranges)
    load(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_giving_up_keeps_the_part_and_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.play(cut_after(1000))
    with pytest.raises(DownloadError, match=r"gave up after 3 attempts, 3000 bytes are kept") as caught:
        load(server, tmp_path, attempts=3)
    assert server.url in str(caught.value)
    assert names(tmp_path) == [part_of(tmp_path).name]
    assert part_of(tmp_path).read_bytes() == CONTENT[:3000]
    server.play(proper)
    load(server, tmp_path)
    assert server.ranges[-1] == "bytes=3000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_complete_only_needs_its_name(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENT)
    load(server, tmp_path)
    assert server.requests == []
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("length", [1, 1000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 5])
@pytest.mark.parametrize("behaviour", [proper, without_ranges])
def test_a_part_of_something_else_costs_one_more_transfer(
    server: Server, tmp_path: Path, length: int, behaviour: Behaviour
) -> None:
    part_of(tmp_path).write_bytes(bytes(length))
    server.play(behaviour)
    load(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.requests) <= 2


def test_a_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    """The size cap is above the file's size here, so only the server can tell."""
    part_of(tmp_path).write_bytes(bytes(len(CONTENT) + 10))
    server.play(status(416), proper)
    load(server, tmp_path, max_bytes=10 * len(CONTENT))
    assert server.ranges == [f"bytes={len(CONTENT) + 10}-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.play(lambda handler: handler.send(CONTENT[:-1] + b"x"))
    with pytest.raises(DownloadError, match=rf"has sha256 [0-9a-f]{{64}}, expected {SHA256}; it was deleted"):
        load(server, tmp_path)
    assert names(tmp_path) == []
    assert len(server.requests) == 1


def test_a_file_that_changed_between_two_pieces_is_fetched_once_more(server: Server, tmp_path: Path) -> None:
    old = bytes(len(CONTENT))
    server.play(lambda handler: handler.send(old, keep=5000), proper)
    load(server, tmp_path)
    assert server.ranges == [None, "bytes=5000-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_an_announced_oversize_is_refused_before_it_is_read(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="300000 bytes, at most 299999 are allowed; refused"):
        load(server, tmp_path, max_bytes=len(CONTENT) - 1)
    assert names(tmp_path) == []
    assert len(server.requests) == 1


def test_an_oversize_that_was_not_announced_is_stopped(server: Server, tmp_path: Path) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while sent < 100_000_000:
            handler.wfile.write(bytes(100_000))
            sent += 100_000

    server.play(endless)
    with pytest.raises(DownloadError, match="more than the 300000 bytes allowed; stopped"):
        load(server, tmp_path)
    assert names(tmp_path) == []
    assert sent < 100_000_000


def test_no_length_and_chunks(server: Server, tmp_path: Path) -> None:
    def without_length(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    def broken_chunk(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"186a0\r\n" + CONTENT[:100_000] + b"\r\n186a0\r\n" + CONTENT[100_000:140_000])

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    server.play(without_length)
    load(server, tmp_path / "a")
    server.play(broken_chunk, proper)
    load(server, tmp_path / "b")
    for folder in ("a", "b"):
        assert (tmp_path / folder / "file.bin").read_bytes() == CONTENT


def test_a_silent_server_runs_into_the_timeout(server: Server, tmp_path: Path) -> None:
    answered = threading.Event()

    def silent(handler: Handler) -> None:
        handler.send(CONTENT, keep=2000)
        handler.wfile.flush()
        answered.wait(20)

    server.play(silent, proper)
    start = time.monotonic()
    load(server, tmp_path, timeout=0.3)
    assert time.monotonic() - start < 10
    answered.set()
    assert server.ranges == [None, "bytes=2000-"]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_temporary_statuses_are_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.play(status(code), status(code), proper)
    load(server, tmp_path)
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 416])
def test_final_statuses_are_not(server: Server, tmp_path: Path, code: int) -> None:
    server.play(status(code))
    with pytest.raises(DownloadError, match=f"HTTP status {code}"):
        load(server, tmp_path)
    assert len(server.requests) == 1
    assert names(tmp_path) == []


def test_pauses_double(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.play(status(503))
    with pytest.raises(DownloadError, match="HTTP status 503"):
        load(server, tmp_path, pause=4.0, attempts=6)
    assert pauses == [4, 8, 16, 30, 30]


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    server.server_close()
    with pytest.raises(DownloadError, match=r"no connection .* gave up after 2 attempts, 0 bytes are kept"):
        load(server, tmp_path, attempts=2)


@pytest.mark.parametrize(
    "content_range", ["bytes 7-299999/300000", "items 5000-9/10", "bytes x-y/z", "bytes -5/9", ""]
)
def test_another_range_than_asked_is_not_appended(server: Server, tmp_path: Path, content_range: str) -> None:
    part_of(tmp_path).write_bytes(CONTENT[:5000])

    def wrong(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", content_range)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"oops")

    server.play(wrong, proper)
    load(server, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-", "bytes=5000-"]


def test_redirects_within_the_schemes_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENT[:1234])
    server.play(redirect("/elsewhere"), proper)
    load(server, tmp_path)
    assert server.requests == [("/file.bin", "bytes=1234-"), ("/elsewhere", "bytes=1234-")]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "https://127.0.0.1:9/"]
)
def test_redirects_to_another_scheme_are_refused(server: Server, tmp_path: Path, target: str) -> None:
    server.play(redirect(target))
    with pytest.raises(DownloadError):
        load(server, tmp_path)
    assert len(server.requests) == 1
    assert names(tmp_path) == []


def test_a_circle_of_redirects_ends(server: Server, tmp_path: Path) -> None:
    server.play(redirect("/file.bin"))
    with pytest.raises(DownloadError, match="HTTP status 302"):
        load(server, tmp_path)


def test_bad_arguments_come_before_any_request(server: Server, tmp_path: Path) -> None:
    good: dict[str, Any] = {"sha256": SHA256, "max_bytes": 10}
    target = tmp_path / "f"
    for url in (server.url, "ftp://host/f", "file:///etc/passwd", "no-scheme"):
        with pytest.raises(ValueError, match=r"url must start with https://, got"):
            fetch(url, target, **good)
    for key, value, message in (
        ("sha256", "abc", "sha256 must be 64 lower-case hexadecimal digits, got 'abc'"),
        ("sha256", SHA256.upper(), "sha256 must be 64 lower-case"),
        ("max_bytes", 0, "max_bytes must be above 0, got 0"),
        ("timeout", 0, "timeout must be above 0"),
        ("attempts", 0, "attempts must be above 0"),
        ("pause", -1, "pause must not be negative"),
        ("schemes", ("ftp",), "schemes must be of 'https' and 'http'"),
        ("schemes", (), "schemes must be of 'https' and 'http'"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch("https://127.0.0.1:9/f", target, **(good | {key: value}))
    with pytest.raises(FileNotFoundError, match="absent of path does not exist"):
        fetch("https://127.0.0.1:9/f", tmp_path / "absent" / "f", **good)
    assert server.requests == []
    assert names(tmp_path) == []


def test_proxies_of_the_environment_are_not_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    load(server, tmp_path, attempts=1)


@pytest.mark.skipif(sys.platform == "win32", reason="directories cannot be locked on Windows")
def test_two_downloads_into_one_folder(server: Server, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        started.set()
        go_on.wait(20)
        proper(handler)

    server.play(slow, proper)
    outcome: list[BaseException | None] = []

    def first() -> None:
        try:
            load(server, tmp_path, timeout=30.0)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert started.wait(20)
        with pytest.raises(DownloadError, match="another download into this folder is running"):
            load(server, tmp_path)
    finally:
        go_on.set()
        thread.join()
    assert outcome == [None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    load(server, tmp_path)  # the lock is gone


def test_sigkill_in_the_middle_is_resumed(server: Server, tmp_path: Path) -> None:
    enough = threading.Event()

    def slow(handler: Handler) -> None:
        handler.send(CONTENT, keep=200_000)
        handler.wfile.flush()
        enough.wait(30)

    server.play(slow)
    program = textwrap.dedent(
        f"""
        from lmser.data.download import fetch
        def progress(name, done, total):
            print(done, flush=True)
        fetch({server.url!r}, {os.fspath(tmp_path / "file.bin")!r}, sha256={SHA256!r},
              max_bytes={len(CONTENT)}, schemes=("http",), progress=progress)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 130_000:
                break
        process.send_signal(signal.SIGKILL)
    enough.set()
    assert names(tmp_path) == [part_of(tmp_path).name]
    kept = part_of(tmp_path).read_bytes()
    assert len(kept) >= 65_536
    assert kept == CONTENT[: len(kept)]
    server.play(proper)
    load(server, tmp_path)
    assert server.ranges[-1] == f"bytes={len(kept)}-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
