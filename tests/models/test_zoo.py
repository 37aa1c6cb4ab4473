"""Published models by name: the table, and downloads from a server on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from reid.core.errors import ConfigError, ModelError
from reid.models import zoo
from reid.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tests.models.serving import Server, publish, serve

BODY = bytes(range(256)) * 120  # 30,720 bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serve(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def row(server: Server, monkeypatch: pytest.MonkeyPatch) -> zoo.PublishedModel:
    """A model of two files, one with a published checksum."""
    files = {"net.pth": BODY, "more.bin": BODY[:100]}
    checked = {"size": len(BODY), "hash": f"sha384:{hashlib.sha384(BODY).hexdigest()}"}
    rows = [{"url": "https://example.org/rev/net.pth", **checked}, {"url": "https://example.org/rev/more.bin"}]
    return publish(monkeypatch, server, files, files=rows)


def test_download_is_verified_cached_and_states_the_terms_once(
    row: zoo.PublishedModel, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zoo.fetch_model("small")
    assert path.read_bytes() == BODY
    assert {file.name for file in path.parent.iterdir()} == {"net.pth", "more.bin", "card.md", "recorded.json"}
    text = " ".join(capsys.readouterr().out.split())
    assert "Weights: MIT. Trained on: ten people. Terms of that data: research use only." in text
    assert (
        f"no checksum of more.bin is published. Recorded for later use: sha256:{hashlib.sha256(BODY[:100]).hexdigest()}"
        in text
    )
    server.files.clear()
    assert zoo.fetch_model("small") == path
    assert capsys.readouterr().out == ""
    assert len(server.ranges) == 2


def test_interrupted_download_is_resumed(row: zoo.PublishedModel, server: Server) -> None:
    server.cut = 20_000
    with pytest.raises(ModelError, match="Cannot download net"):
        zoo.fetch_model("small")
    assert (row.folder / "net.pth.part").stat().st_size == 16_384
    assert not (row.folder / "net.pth").exists()
    server.cut = None
    assert zoo.fetch_model("small").read_bytes() == BODY
    assert server.ranges == [None, "bytes=16384-", None]
    assert not (row.folder / "net.pth.part").exists()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_remains_of_another_version_are_dropped(row: zoo.PublishedModel, server: Server, knows_ranges: bool) -> None:
    row.folder.mkdir(parents=True)
    (row.folder / "net.pth.part").write_bytes(b"other" * 100)
    server.knows_ranges = knows_ranges
    assert zoo.fetch_model("small").read_bytes() == BODY


def test_complete_remains_need_no_download(row: zoo.PublishedModel, server: Server) -> None:
    row.folder.mkdir(parents=True)
    (row.folder / "net.pth.part").write_bytes(BODY)
    assert zoo.fetch_model("small").read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (BODY[:-1] + b"x", "hash of downloaded file .* does not match"),
        (BODY + b"x", "it has 30,721 bytes there instead of 30,720"),
        (b"<html>log in</html>", "it has 19 bytes there instead of 30,720"),
        (None, "404"),
    ],
    ids=["corrupted", "longer", "page", "absent"],
)
def test_wrong_file_is_refused(row: zoo.PublishedModel, server: Server, body: bytes | None, problem: str) -> None:
    del server.files["/mirror/rev/net.pth"]
    if body is not None:
        server.files["/mirror/rev/net.pth"] = body
    with pytest.raises(ModelError, match=problem):
        zoo.fetch_model("small")
    assert not (row.folder / "net.pth").exists()


def test_offline_error_names_files_addresses_and_places(
    row: zoo.PublishedModel, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REID_MODELS_URL", "http://127.0.0.1:1")
    with pytest.raises(ModelError) as caught:
        zoo.fetch_model("small")
    text = str(caught.value)
    assert "net.pth of small from http://127.0.0.1:1/rev/net.pth: the host cannot be reached" in text
    for name in ("net.pth", "more.bin"):
        assert f"http://127.0.0.1:1/rev/{name}\n    → {row.folder / name}" in text
    row.folder.mkdir(parents=True, exist_ok=True)
    (row.folder / "net.pth").write_bytes(BODY)
    (row.folder / "more.bin").write_bytes(b"by hand")
    assert zoo.fetch_model("small") == row.folder / "net.pth"


def test_changed_files_are_found_and_downloaded_again(
    row: zoo.PublishedModel, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = zoo.fetch_model("small")
    path.write_bytes(BODY[::-1])
    (row.folder / "more.bin").unlink()
    assert zoo.verify_model(row) == {"net.pth": "changed", "more.bin": "missing"}
    zoo.fetch_model("small")
    assert "net.pth is not the published file. It is downloaded again" in " ".join(capsys.readouterr().out.split())
    assert path.read_bytes() == BODY
    server.files["/mirror/rev/more.bin"] = b"new version"
    (row.folder / "more.bin").unlink()
    with pytest.raises(ModelError, match="more"):
        zoo.fetch_model("small")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'intel-0287'"):
        zoo.fetch_model("intel-287")
    with pytest.raises(ConfigError, match="Unknown embedder model 'intel-adas-0002'"):
        zoo.find_model("intel-adas-0002", "embedder")


def test_every_row_is_complete() -> None:
    table = zoo.read_table()
    assert table[zoo.DEFAULT_MODEL].kind == "embedder"
    for row in table.values():
        assert row.folder.name == row.name
        if row.format == "torchreid":
            assert (row.input["mean"], row.input["std"]) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
            assert row.architecture.lower().startswith(row.name.partition("_")[0])
        for file in row.files:
            assert file.url.startswith("https://")
            assert "/main/" not in file.url
            assert file.hash is None or len(file.hash) == {"sha256": 71, "sha384": 103}[file.hash[:6]]
