"""Erasure with proof, retention, pictures and the audit log."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest

from reid import ConfigError, DataError, Embeddings, Gallery
from reid.data.images import pixelate_heads
from reid.gallery import GallerySettings, audit, erasure
from reid.gallery.erasure import count_in_files, erased_hashes
from reid.gallery.store import LanceStore
from reid.gallery.times import from_ms
from tests.gallery.test_gallery import START, make_table

pytest.importorskip("lancedb")


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery.create(tmp_path / "g")
    gallery.add(make_table(dimension=40), source="monday", start=START)
    return gallery


@pytest.mark.slow
def test_erased_tracklets_are_gone_from_the_bytes_and_stay_out(gallery) -> None:
    chosen = gallery.find(scope=gallery.scope(["door"], before=START.replace("00:30:00", "00:30:35")))
    assert len(chosen) == 4
    dry = gallery.erase(chosen, dry_run=True)
    assert (dry.tracklets, dry.found_after, dry.found_before) == (4, None, dry.vectors)
    assert len(gallery.index().tracklets) == 36
    receipt = gallery.erase(chosen, reason="request 42")
    assert receipt.complete
    assert (receipt.found_before, receipt.found_after, receipt.rows) == (receipt.vectors, 0, dry.rows)
    assert receipt.vectors == receipt.rows
    assert len(erased_hashes(gallery.path)) == 4
    text = b"".join(path.read_bytes() for path in gallery.path.rglob("*") if path.is_file())
    assert not any(tracklet.encode() in text for tracklet in chosen)
    assert set(chosen).isdisjoint(hit.tracklet for hit in gallery.search(np.ones(40), top=100).hits)
    done = gallery.add(make_table(dimension=40), source="monday", start=START)
    assert (done.erased, done.replaced, done.tracklets) == (4, 32, 32)
    assert gallery.check() == []
    with pytest.raises(DataError, match="has no tracklet"):
        gallery.erase(chosen)
    copied = gallery.copy(gallery.path.parent / "copy")
    assert copied.add(make_table(dimension=40), source="monday").erased == 4


def test_find_selects_by_source_and_identity(tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g")
    table = Embeddings(np.eye(3), pids=[1, 2, 1], camids=[1, 1, 2], tracks=[1, 2, 1])
    for source in ("a'b", "c"):
        gallery.add(table, source=source)
    assert len(gallery.find(source="a'b", identity=1)) == 2
    assert len(gallery.find(source="c")) == 3
    assert gallery.find(source="x' OR '1'='1") == []
    assert len(gallery.find(source="c", scope=gallery.scope(["cam01"]))) == 2
    with pytest.raises(ConfigError, match="Nothing is selected"):
        gallery.find()
    receipt = gallery.erase(gallery.find(source="c", identity=1))  # the other source has the same features
    assert (receipt.shared, receipt.vectors, receipt.complete) == (2, 0, True)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_text", "delete", "purge"])
def test_an_interrupted_erasure_is_hidden_and_finished_by_the_next_write(gallery, monkeypatch, step) -> None:
    chosen = gallery.index().tracklets.to_pylist()[:3]

    def die(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((erasure, "write_text") if step == "write_text" else (LanceStore, step)), die)
        with pytest.raises(KeyboardInterrupt):
            gallery.erase(chosen)
    again = Gallery.open(gallery.path)
    assert set(chosen).isdisjoint(hit.tracklet for hit in again.search(np.ones(40), top=100).hits)
    assert set(chosen).isdisjoint(again.find(source="monday"))
    again.add(make_table(people=1, dimension=40), source="tuesday")
    assert len(erased_hashes(gallery.path)) == 3
    assert not (gallery.path / erasure.JOURNAL).exists()
    assert set(chosen).isdisjoint(again.index().tracklets.to_pylist())
    assert again.add(make_table(dimension=40), source="monday").erased == 3


def test_scan_finds_bytes_at_every_offset(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(erasure, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    needles = [rng.bytes(32) for _ in range(5)] + [b"ab", b"xyz\0"]
    for number in range(40):
        hidden = needles[number % 7]
        (tmp_path / "file").write_bytes(b"\xff" * number + hidden + b"\xff" * (number % 3))
        assert count_in_files(tmp_path, needles) == (1, 1, number + len(hidden) + number % 3), number
    (tmp_path / "file").write_bytes(needles[0][:31])
    assert count_in_files(tmp_path, needles[:5])[0] == 0
    assert count_in_files(tmp_path, [])[0] == 0


def test_retention_hides_expired_tracklets_and_expire_removes_them(tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g", GallerySettings(retention="30d"))
    now = round(1000 * time.time())
    day = 86_400_000
    for source, days in (("old", 31), ("new", 2)):
        start = from_ms(now - days * day)
        done = gallery.add(make_table(people=2, dimension=40), source=source, start=start)
        assert (done.tracklets, done.expired) == ((0, 6) if source == "old" else (6, 0))
    index = gallery.index()
    assert ((index.expires - index.end) == 30 * day).all()
    index.expires[index.tracklet == 0] = now - 1  # as if time had passed
    assert len(gallery.search(np.ones(40), top=99).hits) == 5
    assert gallery.expire(dry_run=True) == 1
    assert len(Gallery.open(gallery.path).index().tracklets) == 6
    assert gallery.expire() == 1
    assert len(Gallery.open(gallery.path).index().tracklets) == 5
    assert Gallery.open(gallery.path).expire() == 0
    for wrong in ("30", "0d", "-1d", "d"):
        with pytest.raises(ConfigError, match="not a duration such as 36h, 30d or 4w"):
            GallerySettings(retention=wrong)


@pytest.mark.parametrize("setting", ["keep", "pixelate", "none"])
def test_pictures_are_kept_pixelated_or_not_stored(tmp_path, setting) -> None:
    coarse = np.random.default_rng(0).integers(0, 255, (32, 16, 3), dtype=np.uint8)
    crop = coarse.repeat(3, axis=0).repeat(3, axis=1)
    cv2.imwrite(str(tmp_path / "a.png"), crop)
    gallery = Gallery.create(tmp_path / "g", GallerySettings(pictures=setting))
    gallery.add(Embeddings([[1.0, 0], [0, 1]], paths=[tmp_path / "a.png", tmp_path / "missing.png"]), source="x")
    hits = gallery.search([[1.0, 0]]).hits
    assert (hits[0].path is None) == (setting != "keep")
    assert hits[1].picture is None
    if setting == "none":
        assert hits[0].picture is None
        return
    shown = cv2.imdecode(np.frombuffer(hits[0].picture, np.uint8), cv2.IMREAD_COLOR).astype(int)
    (hidden,) = pixelate_heads([crop])
    expected = hidden if setting == "pixelate" else crop
    other = crop if setting == "pixelate" else hidden
    assert np.abs(shown - expected)[:20].mean() < np.abs(shown - other)[:20].mean()


def test_the_log_records_searches_and_shows_changes(tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g", GallerySettings(require_purpose=True))
    table = make_table(people=2, dimension=40)
    gallery.add(table, source="monday")
    for purpose in (None, " "):
        with pytest.raises(ConfigError, match="requires the purpose"):
            gallery.search(np.ones(40), purpose=purpose)
    answer = gallery.search(np.ones(40), purpose="lost child", cameras=["door"], top=2)
    gallery.erase([answer.hits[0].tracklet], reason="request")
    entries, last = gallery.log()
    assert [entry["action"] for entry in entries] == ["search", "erase"]
    assert (entries[0]["purpose"], entries[0]["scope"]["cameras"], len(entries[0]["hits"])) == (
        "lost child",
        ["door"],
        2,
    )
    assert entries[1]["hashes"] == entries[0]["hits"][:1]
    path = gallery.path / audit.NAME
    assert answer.hits[0].tracklet not in path.read_text()
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"time": "2026')  # of a killed process
    with pytest.raises(DataError, match="line 3: the log was changed"):
        gallery.log()
    gallery.search(np.ones(40), purpose="again")
    entries, newest = gallery.log()
    assert entries[2]["removed_incomplete_line"] is True
    assert newest != last
    for old, new in ((b"lost child", b"lost chilD"), (whole.splitlines(keepends=True)[0], b"")):
        path.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(DataError, match=r"line [12]: the log was changed"):
            gallery.log()
        assert any("the log was changed" in problem for problem in gallery.check())
        path.write_bytes(whole)


def test_without_audit_nothing_is_recorded(tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g", GallerySettings(audit=False))
    gallery.add(Embeddings(np.eye(2)), source="x")
    gallery.search([[1.0, 0.0]])
    assert gallery.log()[0] == []
    assert json.loads((gallery.path / "gallery.json").read_text())["settings"]["audit"] is False
