"""https: certificates, redirects, and `get` with its mirrors, from a local server."""

from __future__ import annotations

import dataclasses
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import CONTENT, SHA256, Server, cut_after, proper, redirect, running, status

from lmser.data import download, registry
from lmser.data.download import DownloadError, fetch, get


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, made now, with its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command, which makes the test certificate, is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(path), "-out", str(path.with_name("cert.pem"))]
    made = subprocess.run(
        ["openssl", "req", "-x509", "-days", "2", *key, *subject], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"this openssl command cannot make a certificate with an address: {made.stderr[-200:]}")
    path.write_bytes(path.read_bytes() + path.with_name("cert.pem").read_bytes())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.scheme = "https"
    with running(server):
        yield server


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.fspath(certificate))


def load(server: Server, folder: Path, context: ssl.SSLContext | None) -> Path:
    return fetch(
        server.url,
        folder / "file.bin",
        sha256=SHA256,
        max_bytes=len(CONTENT),
        context=context,
        timeout=5.0,
        pause=0.0,
    )


def test_https(tls_server: Server, certificate: Path, tmp_path: Path) -> None:
    tls_server.play(cut_after(70_000), proper)
    load(tls_server, tmp_path, trusting(certificate))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert tls_server.ranges == [None, "bytes=70000-"]


def test_a_certificate_nobody_vouches_for_is_refused_at_once(tls_server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server's certificate was refused"):
        load(tls_server, tmp_path, None)
    assert tls_server.requests == []


def test_a_certificate_for_another_host_is_refused(
    tls_server: Server, certificate: Path, tmp_path: Path
) -> None:
    url = tls_server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(DownloadError, match="certificate was refused"):
        fetch(url, tmp_path / "f", sha256=SHA256, max_bytes=9, context=trusting(certificate), timeout=5.0)
    assert tls_server.requests == []


def test_https_is_not_redirected_to_http(tls_server: Server, certificate: Path, tmp_path: Path) -> None:
    with running(Server()) as plain:
        tls_server.play(redirect(plain.url))
        with pytest.raises(DownloadError, match=r"redirected to http://.*, which is not https; refused"):
            load(tls_server, tmp_path, trusting(certificate))
        assert plain.requests == []


@pytest.fixture
def offered(tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> registry.DataSet:
    """The data set "mnist" as two small files on the local https server, behind a mirror that is down."""
    files = tuple(
        registry.RemoteFile(name, len(CONTENT), SHA256, "0" * 64) for name in ("images.gz", "labels.gz")
    )
    address = tls_server.url.removesuffix("file.bin")
    data_set = dataclasses.replace(
        registry.DATA_SETS["mnist"], files=files, mirrors=(f"{address}down/", f"{address}up/")
    )
    sets = {**registry.DATA_SETS, "mnist": data_set}
    monkeypatch.setattr(registry, "DATA_SETS", sets)
    default = ssl.create_default_context
    monkeypatch.setattr(
        download.ssl, "create_default_context", lambda: default(cafile=os.fspath(certificate))
    )
    tls_server.play(
        lambda handler: handler.send_error(404) if handler.path.startswith("/down/") else proper(handler)
    )
    return data_set


def test_get(offered: registry.DataSet, tls_server: Server, tmp_path: Path) -> None:
    steps: list[str] = []
    folder = get("mnist", tmp_path / "new", lambda name, done, total: steps.append(name))
    assert folder == tmp_path / "new" / "mnist"
    assert names(folder) == ["images.gz", "labels.gz"]
    assert list(dict.fromkeys(steps)) == ["images.gz", "labels.gz"]
    paths = [path for path, _ in tls_server.requests]
    assert paths == ["/down/images.gz", "/up/images.gz", "/down/labels.gz", "/up/labels.gz"]
    (folder / "labels.gz").unlink()
    get("mnist", tmp_path / "new")
    assert [path for path, _ in tls_server.requests[4:]] == ["/down/labels.gz", "/up/labels.gz"]


def test_get_names_what_every_mirror_did(
    offered: registry.DataSet, tls_server: Server, tmp_path: Path
) -> None:
    tls_server.play(
        status(404),
        lambda handler: handler.send(bytes(len(CONTENT))),  # the first mirror, the second
    )
    with pytest.raises(
        DownloadError, match=r"down/images\.gz: HTTP status 404 .*; .*up/images\.gz: what arrived"
    ):
        get("mnist", tmp_path)
    assert names(tmp_path / "mnist") == []


def test_get_refuses_what_is_not_offered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'mnits'; there are mnist, fashion-mnist"):
        get("mnits", tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"STL10 cannot be downloaded \(mnist, fashion-mnist, cifar10 can\): the sha256"
    ):
        get("stl10", tmp_path / "new")
    assert names(tmp_path) == []


def test_a_real_set_that_is_there_is_left_as_it_is(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pinned checksums are those of the original files: with them in place nothing is fetched."""
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("reads the real files; give their folder with --data DIR")

    def refuse(*_: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setattr(download, "_transfer", refuse)
    tried = 0
    for name in ("mnist", "fashion-mnist"):
        if (Path(data) / name).is_dir():
            (tmp_path / name).symlink_to(Path(data, name).resolve())
            get(name, tmp_path)
            tried += 1
    if not tried:
        pytest.skip("the folder has neither mnist nor fashion-mnist")
