"""Galleries in Milvus, on a server in memory; `test_gallery` runs on a real one with REID_MILVUS=host:port."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import timedelta

import numpy as np
import pytest

from reid import ConfigError, DataError, Gallery
from reid.gallery import GallerySettings, Scope, milvus_store
from reid.gallery.times import parse_time
from tests.gallery.conftest import SERVER
from tests.gallery.test_gallery import START, make_table
from tests.oracles.milvus import FakeMilvus

pytest.importorskip("pymilvus")
pytest.importorskip("lancedb")

ADDRESS = "milvus://server:1/shop"


@pytest.fixture
def server(monkeypatch):
    server = FakeMilvus()
    monkeypatch.setattr(milvus_store, "connect", lambda address: server)
    return server


@pytest.mark.skipif(SERVER is not None, reason="it is tested")
def test_the_contract_is_tested_on_a_real_server() -> None:
    pytest.skip("The contract is tested on LanceDB only: set REID_MILVUS=host:port of a Milvus server.")


@pytest.mark.slow
def test_answers_of_both_engines_are_equal(server, tmp_path, monkeypatch) -> None:
    table = make_table(people=20)
    plain = Gallery.create(tmp_path / "plain")
    plain.add(table, source="monday", start=START)
    copied = plain.copy(tmp_path / "copy", ADDRESS)
    added = Gallery.create(tmp_path / "added", GallerySettings(store="milvus://server:1/other"))
    assert added.add(table, source="monday", start=START).tracklets == 60
    back = added.copy(tmp_path / "back")
    rng = np.random.default_rng(0)
    for trial in range(12):
        query = rng.normal(size=(1 + trial % 2, 8))
        options = {
            "cameras": [None, ["door"], plain.index().cameras[1:], []][trial % 4],
            "after": [None, parse_time(START) + timedelta(seconds=50)][trial % 2],
            "top": [1, 7, 200][trial % 3],
            "within": [None, 0.8][trial % 2],
        }
        if trial == 6:  # as if more were asked than Milvus can propose
            monkeypatch.setattr(milvus_store, "MOST_PROPOSALS", 80)
        expected = plain.search(query, **options)
        for gallery in (copied, added, back):
            answer = gallery.search(query, **options)
            assert [hit.tracklet for hit in answer.hits] == [hit.tracklet for hit in expected.hits]
            assert np.allclose(
                [hit.distance for hit in answer.hits], [hit.distance for hit in expected.hits], atol=1e-6
            )
            assert [(hit.camera, hit.start, hit.end, hit.seen) for hit in answer.hits] == [
                (hit.camera, hit.start, hit.end, hit.seen) for hit in expected.hits
            ]
            assert (answer.rows, answer.tracklets) == (expected.rows, expected.tracklets)
    assert copied.check() == added.check() == back.check() == []
    assert back.settings.store is None


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_change_leaves_all_or_nothing(server, tmp_path, after) -> None:
    first, second = make_table(people=4), make_table(people=4, seed=1)
    server.after = after
    for name, action in (
        ("add", lambda gallery: gallery.add(second, source="tuesday")),
        ("replace", lambda gallery: gallery.add(second, source="monday")),
        ("erase", lambda gallery: gallery.erase(gallery.find(source="monday")[:6])),
    ):
        for number in range(1, 6):
            folder = tmp_path / f"{name}{number}"
            gallery = Gallery.create(folder, GallerySettings(store=f"milvus://server:1/{name}{number}{after}"))
            gallery.add(first, source="monday")
            server.changes, server.fail_at = 0, number
            is_done = False
            with suppress(DataError):
                action(gallery)
                is_done = True
            server.fail_at = None
            seen = Gallery.open(folder)
            faces = {tuple(rows[0].round(2)) for rows in seen.features(seen.index().tracklets.to_pylist()).values()}
            sizes = {"add": (12, 24), "replace": (12,), "erase": (12, 6)}[name]
            assert len(seen.index().tracklets) in sizes[-1:] if is_done else sizes
            assert len(faces) == len(seen.index().tracklets)
            assert seen.add(first, source="friday").tracklets == 12  # completes what was interrupted
            assert Gallery.open(folder).check() == []
            assert len(Gallery.open(folder).index().tracklets) - 12 in sizes
            assert len(seen) == len(server.rows[f"{name}{number}{after}"])
            if is_done:
                break
        assert is_done


def test_the_receipt_of_an_erasure_is_pending(server, tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g", GallerySettings(store=ADDRESS))
    gallery.add(make_table(people=2), source="monday")
    chosen = gallery.find(source="monday")[:2]
    receipt = gallery.erase(chosen)
    assert (receipt.complete, receipt.found_before, receipt.found_after, receipt.tracklets) == (False, None, None, 2)
    assert "garbage collection" in receipt.pending
    assert set(chosen).isdisjoint(gallery.find(source="monday"))
    assert gallery.add(make_table(people=2), source="monday").erased == 2


def test_collections_and_rows_of_others_are_refused(server, tmp_path) -> None:
    gallery = Gallery.create(tmp_path / "g", GallerySettings(store=ADDRESS))
    gallery.add(make_table(people=1), source="monday")
    with pytest.raises(DataError, match="exists already"):
        Gallery.create(tmp_path / "h", GallerySettings(store=ADDRESS))
    row = next(iter(server.rows["shop"].values()))
    server.rows["shop"][99] = {**row, "key": 99}  # written by a copy of the folder
    with pytest.raises(DataError, match=r"has rows that .*g does not know"):
        gallery.add(make_table(people=1), source="tuesday")
    server.descriptions["shop"] = "another"
    with pytest.raises(DataError, match="is of another gallery"):
        Gallery.open(tmp_path / "g").search(np.ones(8))


def test_addresses_and_servers_that_do_not_answer(tmp_path, monkeypatch) -> None:
    for bad in ("milvus://", "http://host:1/x", "milvus://host/a-b", "milvus://user:secret@host/x", "milvus://h:1/a/b"):
        with pytest.raises(ConfigError, match=r"store"):
            GallerySettings(store=bad)
    assert milvus_store.parse_address("milvus+tls://[::1]/x") == ("https://[::1]:19530", "x")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(DataError, match=r"pip install 'reid-toolkit\[milvus\]'"):
        Gallery.create(tmp_path / "g", GallerySettings(store=ADDRESS))
    assert not (tmp_path / "g").exists()


def test_no_name_changes_the_meaning_of_a_condition() -> None:
    names = ["", "a\\b", '" or 1 == 1 or camera == "', "tab\t\n", "出口", "😀", "percent % {x}"]
    for name in names:
        condition = milvus_store.condition(Scope((name,)), 0)
        for other in names:
            row = {"camera": f"={other}", "expires": 1}
            assert eval(condition, {}, row) == (name == other)
