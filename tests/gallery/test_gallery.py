"""The contract of a gallery, with brute force as the oracle."""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reid import ConfigError, DataError, Embeddings, Gallery, ModelError
from reid.gallery import GallerySettings, Scope, search
from reid.gallery.rows import tracklet_id
from reid.gallery.scan import distances
from reid.gallery.times import from_ms, parse_time, show_time, to_ms
from tests.oracles.gallery import nearest_tracklets

lancedb = pytest.importorskip("lancedb")

META = {"model": "net-1", "preprocessing_hash": "p1", "metric": "cosine"}
START = "2026-03-29T00:30:00+01:00"


def make_table(people=12, cameras=3, crops=6, dimension=8, seed=0):
    """Crops of tracks: each camera sees each person once; names that need care."""
    rng = np.random.default_rng(seed)
    person, camera, crop = (
        axis.ravel() for axis in np.meshgrid(*map(np.arange, (people, cameras, crops)), indexing="ij")
    )
    faces = rng.normal(size=(people, dimension))
    features = faces[person] + 0.4 * rng.normal(size=(len(person), dimension))
    meta = {**META, "camera_names": ["door", 'Flur "Süd" \'; DROP TABLE rows --', "出口"]}
    return Embeddings(features, camids=camera, tracks=person, frames=1 + 250 * person + crop, meta=meta)


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def filled(table, tmp_path_factory, create):
    gallery = create(tmp_path_factory.mktemp("galleries") / "shop")
    gallery.add(table, source="monday", start=START)
    return gallery


def stored(gallery):
    """(features, tracklets, index) of the rows."""
    index = gallery.index()
    tracklets = [index.tracklets[code].as_py() for code in index.tracklet]
    features = {name: list(rows) for name, rows in gallery.features(index.tracklets.to_pylist()).items()}
    return np.array([features[name].pop() for name in tracklets], np.float32), tracklets, index


def test_hits_and_filters_equal_brute_force(filled) -> None:
    features, tracklets, index = stored(filled)
    assert len(index.tracklets) == 36
    assert max(np.bincount(index.tracklet)) <= 4
    rng = np.random.default_rng(1)
    for trial in range(25):
        query = rng.normal(size=(1 + trial % 3, 8))
        names = [None, ["door"], list(index.cameras[1:]), []][trial % 4]
        times = [(None, None), (30, 90), (None, 20), (80, None), (10_000, None)][trial % 5]
        bounds = [None if second is None else parse_time(START) + timedelta(seconds=second) for second in times]
        keep = np.ones(len(tracklets), bool)
        if names is not None:
            keep &= np.isin(np.array(index.cameras, object)[index.camera], names)
        if bounds[0] is not None:
            keep &= index.end >= to_ms(bounds[0])
        if bounds[1] is not None:
            keep &= index.start <= to_ms(bounds[1])
        top, within = [1, 5, 100][trial % 3], [None, 0.7][trial % 2]
        expected = nearest_tracklets(features, tracklets, query, keep, top, within)
        answer = filled.search(query, cameras=names, after=bounds[0], before=bounds[1], top=top, within=within)
        assert [hit.tracklet for hit in answer.hits] == [tracklet for _, tracklet in expected]
        assert np.allclose([hit.distance for hit in answer.hits], [d for d, _ in expected], atol=1e-6)
        assert (answer.rows, answer.tracklets) == (keep.sum(), len(set(np.array(tracklets)[keep])))
        assert answer.found is None
        assert answer.seconds >= 0


def test_a_hit_describes_its_tracklet(filled, table) -> None:
    hit = filled.search(table.features[:1], top=1).hits[0]
    assert (hit.camera, hit.track, hit.crops, hit.source, hit.identity) == ("door", 0, 6, "monday", None)
    assert hit.tracklet == tracklet_id("monday", "door", 0, "")
    assert from_ms(hit.start) == parse_time(START)
    assert hit.end - hit.start == 200


def test_adding_again_replaces_and_is_idempotent(tmp_path, table, create) -> None:
    gallery = create(tmp_path / "g")
    first = gallery.add(table, source="monday", start=START)
    ids = sorted(stored(gallery)[1])
    again = gallery.add(table, source="monday", start=START)
    assert (first.replaced, again.replaced, again.rows) == (0, 36, first.rows)
    assert sorted(stored(gallery)[1]) == ids
    one = table.take((table.camids == 0) & (table.tracks == 0)).take([0])  # fewer prototypes than before
    assert gallery.add(one, source="monday").replaced == 1
    assert len(gallery) == first.rows - ids.count(tracklet_id("monday", "door", 0, "")) + 1
    assert gallery.add(table, source="tuesday").replaced == 0
    assert gallery.check() == []


def test_crops_without_tracks_are_tracklets_of_their_own(tmp_path, create) -> None:
    gallery = create(tmp_path / "g")
    features = [[1, 0], [0, 1], [np.nan, 1], [0, 0], [1, 1]]
    done = gallery.add(Embeddings(features, paths=[f"{n}.jpg" for n in range(5)]), source="crops", start=START)
    assert (done.tracklets, done.left_out) == (3, 2)
    hits = gallery.search([[0, 1]]).hits
    assert [hit.path for hit in hits] == ["1.jpg", "4.jpg", "0.jpg"]
    assert (hits[0].camera, hits[0].start, hits[0].track) == (None, None, None)
    timed = gallery.search([[0, 1]], after="2020-01-01")
    assert (timed.hits, timed.without_time) == ([], 3)
    with pytest.raises(DataError, match="no feature to add"):
        gallery.add(Embeddings([[np.nan, 1]]), source="bad")


def test_labelled_crops_of_one_track_number_are_different_people(tmp_path, create) -> None:
    gallery = create(tmp_path / "g")
    table = Embeddings([[1, 0], [0, 1], [1, 1]], pids=[1, 2, -1], camids=[1, 1, 1], tracks=[1, 1, 1])
    assert gallery.add(table, source="market").tracklets == 3
    assert [hit.identity for hit in gallery.search([[1, 0]]).hits] == [1, None, 2]
    assert [len(group) for group in gallery.search([[1, 0]]).people()] == [1, 1, 1]


def test_what_does_not_fit_is_refused_by_name(tmp_path, table, create) -> None:
    gallery = create(tmp_path / "g")
    gallery.add(table, source="monday")

    def changed(**meta):
        return Embeddings(table.features, camids=table.camids, meta={**table.meta, **meta})

    for meta, message in (
        ({"model": "net-2"}, "model 'net-2' instead of 'net-1'"),
        ({"preprocessing_hash": "p2"}, "preprocessing 'p2'"),
        ({"learned_metric": "xqda:1"}, "learned metric 'xqda:1' instead of None"),
        ({"metric": "euclidean"}, "metric 'euclidean'"),
    ):
        with pytest.raises(ModelError, match=message):
            gallery.add(changed(**meta), source="x")
        with pytest.raises(ModelError, match=message):
            gallery.search(changed(**meta))
    with pytest.raises(ModelError, match="dimension 3 instead of 8"):
        gallery.search([[1, 2, 3]])
    with pytest.raises(ConfigError, match=r"Unknown camera 'dor'\. Did you mean 'door'"):
        gallery.search(np.ones(8), cameras=["dor"])
    with pytest.raises(DataError, match="NaN, infinity or only zeros"):
        gallery.search(np.zeros(8))
    with pytest.raises(ConfigError, match="top must be 1 or more"):
        gallery.search(np.ones(8), top=0)
    assert len(gallery) == len(Gallery.open(gallery.path))


def test_two_galleries_are_searched_together(tmp_path, filled, table, create) -> None:
    other = create(tmp_path / "other")
    other.add(make_table(seed=5), source="monday", start=START)
    query = np.ones((1, 8), np.float32)
    both = search([filled, other], query, top=72)
    each = sorted((hit.distance, hit.tracklet) for one in (filled, other) for hit in one.search(query, top=36).hits)
    assert [(hit.distance, hit.tracklet) for hit in both.hits] == each
    assert {hit.gallery for hit in both.hits} == {"shop", "other"}
    assert both.tracklets == 72


def test_galleries_of_two_models_are_not_searched_together(tmp_path, filled, create) -> None:
    other = create(tmp_path / "other")
    other.add(Embeddings(np.eye(8), meta={**META, "model": "net-2"}), source="x")
    with pytest.raises(ModelError, match="model 'net-1' instead of 'net-2'"):
        search([filled, other], np.ones((1, 8), np.float32))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_a_full_disk_leaves_the_gallery_as_it_was_or_finishes_later(tmp_path) -> None:
    import resource

    gallery = Gallery.create(tmp_path / "g", GallerySettings(audit=False))
    rows = gallery.add(make_table(people=40, dimension=64), source="monday").rows
    chosen = gallery.index().tracklets.to_pylist()[:20]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def with_full_disk(action) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))  # as if the disk had no more space
        try:
            with pytest.raises(DataError, match="Cannot write"):
                action()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with_full_disk(lambda: gallery.add(make_table(people=40, dimension=64, seed=3), source="tuesday"))
    assert len(Gallery.open(gallery.path)) == rows
    assert gallery.check() == []
    with_full_disk(lambda: gallery.erase(chosen))
    hits = Gallery.open(gallery.path).search(np.ones(64), top=999).hits
    assert len(hits) == 100
    assert set(chosen).isdisjoint(hit.tracklet for hit in hits)
    done = gallery.add(make_table(people=40, dimension=64), source="monday")
    assert (done.tracklets, done.erased) == (100, 20)
    assert gallery.check() == []


def test_an_empty_gallery_and_a_missing_one(tmp_path, create) -> None:
    gallery = create(tmp_path / "g")
    answer = gallery.search([[1.0, 0.0]])
    assert (answer.hits, answer.tracklets) == ([], 0)
    assert answer.describe() == "Nothing was searched: no tracklet is in the scope."
    assert gallery.describe()["cameras"] == []
    assert gallery.check() == []
    empty = Embeddings(np.zeros((0, 2)), camids=[], tracks=[], frames=[])
    assert gallery.add(empty, source="night", start=START).tracklets == 0  # a recording without people is no error
    assert gallery.add(Embeddings([[1, 0]]), source="day").tracklets == 1
    assert gallery.add(empty, source="night", start=START).rows == 0
    with pytest.raises(DataError, match=r"There is no file .*gallery.json. Create a gallery"):
        Gallery.open(tmp_path)
    with pytest.raises(DataError, match="not an empty folder"):
        create(tmp_path / "g")
    file = tmp_path / "g" / "gallery.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(DataError, match="has format 3; this version reads 1 to 2"):
        Gallery.open(tmp_path / "g")


def test_times_are_converted_once_and_ambiguous_ones_refused(filled) -> None:
    assert parse_time("2026-03-29T00:30:00+01:00") == datetime(2026, 3, 28, 23, 30, tzinfo=timezone.utc)
    assert parse_time("2026-10-25 01:30", "Europe/Berlin").hour == 23
    with pytest.raises(ConfigError, match="exists twice in Europe/Berlin"):
        parse_time("2026-10-25 02:30", "Europe/Berlin")
    with pytest.raises(ConfigError, match="does not exist in Europe/Berlin"):
        parse_time("2026-03-29 02:30", "Europe/Berlin")
    with pytest.raises(ConfigError, match=r"from is 'yesterday'\. Use ISO 8601"):
        filled.search(np.ones(8), after="yesterday")
    with pytest.raises(ConfigError, match="no time zone 'Berlin'"):
        parse_time("2026-03-29", "Berlin")
    ms = to_ms(parse_time("2026-03-29T01:00:00Z"))
    assert (show_time(ms - 1000, "Europe/Berlin"), show_time(ms, "Europe/Berlin")) == (
        "2026-03-29 01:59:59+01:00", "2026-03-29 03:00:00+02:00",
    )  # fmt: skip


@pytest.mark.slow
def test_readers_see_whole_additions_while_others_write(tmp_path, table, create) -> None:
    gallery = create(tmp_path / "g")
    rows = gallery.add(table, source="0").rows
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            Gallery.open(gallery.path).add(table, source=str(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    sizes = set()
    while any(thread.is_alive() for thread in threads):
        sizes.add(Gallery.open(gallery.path).search(np.ones(8)).rows)
    for thread in threads:
        thread.join()
    assert errors == []
    assert {size % rows for size in sizes} <= {0}
    assert len(gallery) == 4 * rows
    assert gallery.check() == []


def test_a_copy_has_the_same_rows(tmp_path, filled) -> None:
    copied = filled.copy(tmp_path / "copy")
    query = np.ones((1, 8))
    assert [hit.tracklet for hit in copied.search(query).hits] == [hit.tracklet for hit in filled.search(query).hits]
    assert copied.model == filled.model
    assert sorted(copied.index().tracklets.to_pylist()) == sorted(filled.index().tracklets.to_pylist())
    with pytest.raises(DataError, match="not an empty folder"):
        filled.copy(tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_gallery_of_format_1_is_read_and_upgraded_by_the_first_write(tmp_path, table, killed) -> None:
    gallery = Gallery.create(tmp_path / "g")
    gallery.add(table, source="monday", start=START)
    expected = gallery.search(table.features[0]).hits
    assert [one.frame for one in expected[0].seen] == sorted(one.frame for one in expected[0].seen)
    one = expected[0].seen[0]
    assert from_ms(one.time) == parse_time(START) + timedelta(seconds=(one.frame - 1) / 25)
    if not killed:  # after the columns were added, before the format was written
        lancedb.connect(tmp_path / "g").open_table("rows").drop_columns(["frame", "time", "box"])
    file = tmp_path / "g" / "gallery.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    old = Gallery.open(tmp_path / "g")
    hits = old.search(table.features[0]).hits
    assert [hit.tracklet for hit in hits] == [hit.tracklet for hit in expected]
    assert (hits[0].seen == ()) == (not killed)
    assert old.check() == []
    assert json.loads(file.read_text())["format"] == 1  # only read so far
    assert old.add(table.take([0]), source="tuesday", start=START).tracklets == 1
    assert json.loads(file.read_text())["format"] == 2
    assert old.check() == []
    found = Gallery.open(tmp_path / "g").search(table.features[0]).hits
    assert [len(hit.seen) for hit in found if hit.source == "tuesday"] == [1]
    copied = old.copy(tmp_path / "copy").search(table.features[0]).hits
    assert [(hit.tracklet, hit.seen) for hit in copied] == [(hit.tracklet, hit.seen) for hit in found]


def test_scan_equals_float64_products() -> None:
    rng = np.random.default_rng(0)
    for n, d, q in ((0, 4, 1), (1, 1, 1), (2500, 33, 1), (1025, 7, 3), (41_000, 5, 2)):
        matrix = rng.normal(size=(n, d)).astype(np.float16)
        queries = rng.normal(size=(q, d)).astype(np.float32)
        expected = 1 - (matrix.astype(np.float64) @ queries.T).max(axis=1, initial=-np.inf)
        assert np.allclose(distances(matrix, queries), expected, atol=1e-4)
        rows = np.flatnonzero(rng.random(n) < 0.3)
        assert np.allclose(distances(matrix, queries, rows), expected[rows], atol=1e-4)


def test_ties_and_equal_features_are_ranked_by_id(tmp_path, create) -> None:
    gallery = create(tmp_path / "g")
    gallery.add(Embeddings(np.ones((30, 4)), paths=[f"{n}.jpg" for n in range(30)]), source="same")
    hits = gallery.search(np.ones(4), top=7).hits
    assert [hit.tracklet for hit in hits] == sorted(gallery.index().tracklets.to_pylist())[:7]


def test_a_scope_without_known_cameras_is_empty(filled: Gallery) -> None:
    assert len(filled.index().rows_in(Scope(cameras=()))) == 0
    assert isinstance(filled.index().tracklets, pa.Array)
    assert Path(filled.path).name == "shop"
