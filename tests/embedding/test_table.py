from __future__ import annotations

import itertools
import json
import os
from copy import copy
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid import Embedder, Embeddings, evaluate, load_benchmark
from reid.core.errors import ReidError
from reid.embedding.stream import embed_to_parquet
from reid.embedding.table import save_chunks
from reid.models import build_model

META = {
    "model": "resnet50-abc",
    "preprocessing": {"size": [256, 128]},
    "dimension": 8,
    "metric": "cosine",
    "flip": False,
}


def make(n=5, dim=8, seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = {
        "features": rng.standard_normal((n, dim)),
        "pids": rng.integers(-1, 2**40, n),
        "camids": rng.integers(1, 7, n),
        "tracks": np.arange(n, dtype=np.int32),
        "frames": rng.integers(0, 10**6, n),
        "paths": [f'/data/Ünï cødé/{i}, "a" b.jpg' for i in range(n)],
        "meta": META,
    }
    return Embeddings(**(columns | changes))


def assert_same(a, b):
    assert a.features.dtype == b.features.dtype == np.float32
    np.testing.assert_array_equal(a.features, b.features)
    for name in ("pids", "camids", "tracks", "frames", "paths", "quality"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            assert left.tolist() == right.tolist()
    assert a.meta == b.meta


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(make(), id="all columns"),
        pytest.param(make(pids=None, tracks=None, meta=None), id="some columns, no meta"),
        pytest.param(Embeddings([[1.0, 2.0]]), id="features alone"),
        pytest.param(make(n=0), id="no rows, all columns"),
        pytest.param(make(quality=[0, 0.25, 0.5, 0.75, 1]), id="with quality"),
        pytest.param(make(n=1, dim=1), id="one value"),
        pytest.param(make(n=70_000, dim=2, paths=None), id="more rows than a row group"),
        pytest.param(make(features=np.full((5, 8), np.nan)), id="NaN is kept, for check() to find"),
    ],
)
def test_saved_table_is_loaded_unchanged(table, tmp_path):
    path = table.save(tmp_path / "new" / "folder" / "table.parquet")
    assert_same(Embeddings.load(path), table)
    assert os.listdir(path.parent) == ["table.parquet"]


def test_loaded_features_can_be_written_to(tmp_path):
    table = Embeddings.load(make().save(tmp_path / "t.parquet"))
    table.features /= 2
    assert table.features.flags.c_contiguous


def test_pandas_reads_the_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = make()
    path = table.save(tmp_path / "t.parquet")
    frame = pandas.read_parquet(path)
    assert list(frame.columns) == ["features", "pid", "camid", "track", "frame", "path"]
    np.testing.assert_array_equal(np.stack(frame["features"].to_list()), table.features)
    assert frame["pid"].tolist() == table.pids.tolist()
    schema = pq.read_schema(path)
    assert schema.field("features").type == pa.list_(pa.float32(), 8)
    assert {schema.field(name).type for name in ("pid", "camid", "track", "frame")} == {pa.int64()}
    assert json.loads(schema.metadata[b"reid"]) == {"format": 1, "meta": META}


def test_duckdb_reads_the_file_and_its_metadata(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    table = make()
    path = str(table.save(tmp_path / "t.parquet"))
    rows = duckdb.sql(f"select pid, path, features, list_sum(features) from '{path}' where frame >= 0").fetchall()
    assert [row[0] for row in rows] == table.pids.tolist()
    assert [row[1] for row in rows] == table.paths.tolist()
    np.testing.assert_array_equal(np.array([row[2] for row in rows], np.float32), table.features)
    np.testing.assert_allclose([row[3] for row in rows], table.features.sum(1), rtol=1e-4, atol=1e-5)
    ((note,),) = duckdb.sql(f"select value from parquet_kv_metadata('{path}') where key = 'reid'").fetchall()
    assert json.loads(note)["meta"]["model"] == META["model"]
    assert (json.loads(note)["meta"]["metric"], json.loads(note)["meta"]["dimension"]) == ("cosine", 8)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(pa.list_(pa.float64()), id="lists of doubles, as pandas writes"),
        pytest.param(pa.large_list(pa.float32()), id="large lists, as polars writes"),
        pytest.param(pa.list_(pa.float16(), 3), id="half precision"),
        pytest.param(pa.list_(pa.int64()), id="integers"),
    ],
)
def test_other_list_types_are_read(kind, tmp_path):
    features = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float16)
    if pa.types.is_integer(kind.value_type):
        features = features.astype(np.int64)
    path = write(
        tmp_path / "t.parquet",
        features=pa.array(list(features), kind),
        name=["a", "b"],
        pid=pa.array([7, 8], pa.uint8()),
    )
    table = Embeddings.load(path)
    assert table.features.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert table.features.dtype == np.float32
    assert table.pids.tolist() == [7, 8]
    assert table.camids is None
    assert table.meta == {}


def test_pandas_file_is_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"pid": [3, 4], "features": [np.array([0.5, 1.0]), np.array([2.0, 3.0])], "path": ["a", "b"]}
    )
    frame[::-1].to_parquet(tmp_path / "t.parquet")
    table = Embeddings.load(tmp_path / "t.parquet")
    assert table.features.tolist() == [[2.0, 3.0], [0.5, 1.0]]
    assert table.pids.tolist() == [4, 3]
    assert table.paths.tolist() == ["b", "a"]


def lists(*rows):
    return pa.array(rows, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"pid": [1]}, "has no column 'features'.*It has: pid", id="no features"),
        pytest.param({"features": lists([1, 2], [3, 4], [5])}, "2 in row 0, 1 in row 2", id="rows of unequal length"),
        pytest.param({"features": lists([1], None)}, "'features' has no value in row 1", id="missing row"),
        pytest.param(
            {"features": lists([1, 2], [3, None])}, "features of row 1 contain a missing", id="missing number"
        ),
        pytest.param({"features": [1.0, 2.0]}, "list of floats in each row; it contains double", id="one number a row"),
        pytest.param({"features": [["a"]]}, "list of floats in each row; it contains list", id="text"),
        pytest.param({"features": lists([], [])}, "D of 1 or more", id="empty lists"),
        pytest.param({"features": lists()}, "no rows, and its lists", id="no rows and no dimension"),
        pytest.param(
            {"features": lists([1]), "pid": [1.5]}, "'pid' must contain integers; it contains double", id="float id"
        ),
        pytest.param(
            {"features": lists([1], [1]), "camid": pa.array([1, None])},
            "'camid' has no value in row 1",
            id="missing camera",
        ),
    ],
)
def test_invalid_column_in_a_file_is_an_error(columns, message, tmp_path):
    path = write(tmp_path / "t.parquet", **columns)
    with pytest.raises(ReidError, match=message) as caught:
        Embeddings.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["absent", "a folder", "a text file", "cut short", "empty"])
def test_file_that_is_not_parquet_is_an_error(damage, tmp_path):
    path = tmp_path / "t.parquet"
    if damage == "a folder":
        path.mkdir()
    elif damage == "a text file":
        path.write_text("pid,camid\n" * 100)
    elif damage == "cut short":
        whole = make().save(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.touch()
    with pytest.raises(ReidError, match=r"t\.parquet"):
        Embeddings.load(path)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (b'{"format": 2, "meta": {}}', "format 2; this version reads up to 1"),
        (b"not json", "was not written by `Embeddings.save`"),
        (b'{"meta": {}}', "was not written by `Embeddings.save`"),
        (b'{"format": 1, "meta": 3}', "was not written by `Embeddings.save`"),
    ],
)
def test_invalid_metadata_is_an_error(note, message, tmp_path):
    table = pa.table({"features": lists([1])}).replace_schema_metadata({b"reid": note})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ReidError, match=message):
        Embeddings.load(tmp_path / "t.parquet")


@pytest.mark.parametrize("meta", [{"a": object()}, {"a": float("nan")}, {"a": np.int64(3)}, {"a": np.zeros(2)}])
def test_meta_must_be_json_and_the_old_file_is_kept(meta, tmp_path):
    path = make().save(tmp_path / "t.parquet")
    with pytest.raises(ReidError, match="plain JSON"):
        make(meta=meta).save(path)
    assert_same(Embeddings.load(path), make())


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path / "t.parquet")

    def full(writer, table, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ReidError, match=r"Cannot write .*t\.parquet: No space left"):
        make(seed=1).save(path)
    assert os.listdir(tmp_path) == ["t.parquet"]
    assert_same(Embeddings.load(path), make())


def test_unwritable_path_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReidError, match="Cannot write"):
        make().save(tmp_path / "file" / "t.parquet")
    with pytest.raises(ReidError, match="Cannot write"):
        make().save(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        pytest.param([4, 0, 0], id="any order, repeated"),
        pytest.param([-1], id="from the end"),
        pytest.param(np.array([True, False, True, False, False]), id="mask"),
        pytest.param([], id="nothing"),
    ],
)
def test_take_selects_rows_of_all_columns(index):
    table = make()
    taken = table.take(index)
    rows = np.arange(5)[np.asarray(index, dtype=None if len(index) else np.int64)]
    assert len(taken) == len(rows)
    for i, row in enumerate(rows):
        assert taken.features[i].tolist() == table.features[row].tolist()
        assert (taken.pids[i], taken.frames[i], taken.paths[i]) == (
            table.pids[row],
            table.frames[row],
            table.paths[row],
        )
    assert taken.meta == table.meta
    assert make(camids=None).take(index).camids is None


def test_concat_keeps_row_order_and_common_meta():
    other = META | {"flip": True}
    joined = Embeddings.concat([make(2), make(0, seed=1), make(3, seed=2, meta=other)])
    assert joined.pids.tolist() == make(2).pids.tolist() + make(3, seed=2).pids.tolist()
    assert joined.paths.tolist() == make(2).paths.tolist() + make(3, seed=2).paths.tolist()
    np.testing.assert_array_equal(joined.features[2:], make(3, seed=2).features)
    assert joined.meta == {key: value for key, value in META.items() if key != "flip"}
    assert_same(Embeddings.concat([make()]), make())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        pytest.param([], "at least one", id="nothing"),
        pytest.param([make(), make(dim=4)], r"dimension 8 \(table 1\) with those of 4 \(table 2\)", id="dimensions"),
        pytest.param(
            [make(), make(), make(meta={"model": "osnet-def"})],
            r"'resnet50-abc' \(table 1\) with those of 'osnet-def' \(table 3\)",
            id="models",
        ),
        pytest.param([make(), make(camids=None)], r"Only table 1 of 2 tables have 'camids'", id="columns"),
    ],
)
def test_concat_of_incompatible_tables_is_an_error(tables, message):
    with pytest.raises(ReidError, match=message):
        Embeddings.concat(tables)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(make(dim=4), r"of dimension 8 \(query\) with those of 4 \(gallery\)", id="dimension"),
        pytest.param(
            make(meta=META | {"model": "b"}),
            r"of model 'resnet50-abc' \(query\) with those of 'b' \(gallery\).*one model",
            id="model",
        ),
        pytest.param(
            make(meta=META | {"preprocessing_hash": "2"}),
            r"of preprocessing '1' \(query\) with those of '2' \(gallery\).*one model",
            id="preprocessing",
        ),
        pytest.param(make(meta={"flip": True}), "", id="unknown model"),
        pytest.param(make(meta=META | {"preprocessing_hash": "1", "flip": True}), "", id="flip"),
    ],
)
def test_check_same_model(other, message):
    table = make(meta=META | {"preprocessing_hash": "1"})
    if not message:
        table.check_same_model(other, ("query", "gallery"))
        other.check_same_model(table)
        return
    with pytest.raises(ReidError, match=message):
        table.check_same_model(other, ("query", "gallery"))
    with pytest.raises(ReidError, match=message):
        Embeddings.concat([table, other], ["query", "gallery"])


def test_save_chunks_writes_one_row_group_each(tmp_path):
    tables = [make(3), make(4, seed=1), make(1, seed=2)]
    path = save_chunks(tmp_path / "t.parquet", iter(tables), META)
    assert_same(Embeddings.load(path), Embeddings.concat(tables))
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 4, 1]


def test_row_groups_have_a_size_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("reid.embedding.table._ROW_GROUP_BYTES", 4 * 8 * 2)
    file = pq.ParquetFile(make(5).save(tmp_path / "t.parquet"))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1]


def test_save_chunks_with_different_columns_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="camid"):
        save_chunks(tmp_path / "t.parquet", iter([make(), make(camids=None)]), META)
    assert os.listdir(tmp_path) == []


def test_path_that_is_not_unicode_is_an_error(tmp_path):
    with pytest.raises(ReidError, match=r"row 4, 'b\\udce9', is not Unicode text.*Rename"):
        make(paths=["a", "ü", "日本", "", "b\udce9"]).save(tmp_path / "t.parquet")
    assert os.listdir(tmp_path) == []


def test_concat_accepts_an_unknown_model():
    joined = Embeddings.concat([make(), make(meta=None)])
    assert len(joined) == 10
    assert joined.meta == {}


def test_check_lists_rows_that_are_not_finite():
    features = np.zeros((20, 8))
    assert make(20, features=features).check().features.shape == (20, 8)
    features[3, 1], features[7, 0] = np.nan, -np.inf
    with pytest.raises(ReidError, match=r"2 of 20 features.*: rows 3, 7; the first is /data/.*/3, "):
        make(20, features=features).check()
    with pytest.raises(ReidError, match=r"20 of 20 .* 8, 9, …\. Embed"):
        make(20, features=features * np.nan, paths=None).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros(5)}, r"\[N, D\] with D of 1 or more; got shape \[5\]"),
        ({"features": np.zeros((5, 0))}, r"got shape \[5, 0\]"),
        ({"features": [[1.0, 2.0], [3.0]]}, "rows of the same length"),
        ({"features": [["a"]] * 5}, "must be numbers"),
        ({"pids": [1, 2]}, r"pids must be one column of 5 rows; got shape \[2\]"),
        ({"camids": np.zeros((5, 1), dtype=int)}, r"camids must be one column of 5 rows; got shape \[5, 1\]"),
        ({"tracks": [1.0] * 5}, "tracks must contain integers; it contains float64"),
        ({"frames": ["1"] * 5}, "frames must contain integers"),
        ({"paths": ["a"]}, r"paths must be one column of 5 rows; got shape \[1\]"),
    ],
)
def test_invalid_columns_are_errors(changes, message):
    with pytest.raises(ReidError, match=message):
        make(**changes)


def test_repr_shows_size_and_columns():
    assert repr(make(camids=None)) == "Embeddings(5 × 8, columns: pids, tracks, frames, paths)"
    assert repr(Embeddings(np.zeros((0, 2)))) == "Embeddings(0 × 2, columns: none)"


def test_camera_names_in_a_file_are_numbered(tmp_path):
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)
    pq.write_table(pa.table({"features": features, "camera": ["north", "door", "north"]}), tmp_path / "a.parquet")
    table = Embeddings.load(tmp_path / "a.parquet")
    assert table.meta["camera_names"] == ["door", "north"]
    np.testing.assert_array_equal(table.camids, [1, 0, 1])
    pq.write_table(pa.table({"features": features, "camera": [1, 2, 3]}), tmp_path / "b.parquet")
    with pytest.raises(ReidError, match="'camera' must contain text"):
        Embeddings.load(tmp_path / "b.parquet")


def test_take_and_concat_keep_quality():
    table = make(quality=[0, 0.25, 0.5, 0.75, 1])
    assert table.quality.dtype == np.float32
    assert table.take([3, 0]).quality.tolist() == [0.75, 0]
    assert Embeddings.concat([table, table.take([1])]).quality.tolist() == [0, 0.25, 0.5, 0.75, 1, 0.25]
    with pytest.raises(ReidError, match=r"Only table 1 of 2 tables have 'quality'"):
        Embeddings.concat([table, make()])


def test_file_without_quality(tmp_path):
    assert Embeddings.load(make().save(tmp_path / "t.parquet")).quality is None


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        pytest.param([0.5], r"quality must be one column of 5 rows", id="short"),
        pytest.param([0, 0, 0, 0, 1.5], "from 0 to 1", id="above 1"),
        pytest.param([0, 0, 0, 0, np.nan], "from 0 to 1", id="NaN"),
        pytest.param(list("abcde"), "must contain numbers", id="text"),
    ],
)
def test_invalid_quality_is_an_error(quality, message):
    with pytest.raises(ReidError, match=message):
        make(quality=quality)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        pytest.param(["good"], "must contain floats; it contains string", id="text"),
        pytest.param([7.0], r"is 7\.0 in row 0", id="another scale"),
        pytest.param(pa.array([None], pa.float32()), "no value in row 0", id="missing"),
    ],
)
def test_invalid_quality_in_a_file_is_an_error(quality, message, tmp_path):
    path = write(tmp_path / "t.parquet", features=[[1.0, 2.0]], quality=quality)
    with pytest.raises(ReidError, match=message):
        Embeddings.load(path)


def named(camera_names, camids, pid_names=None, pids=None, seed=0):
    features = np.random.default_rng(seed).standard_normal((len(camids), 4))
    meta = {"camera_names": camera_names, "pid_names": pid_names}
    return Embeddings(features, pids, camids, meta={key: names for key, names in meta.items() if names})


def test_concat_joins_cameras_and_identities_by_name():
    a = named(["cam01"], [0, 0, -1], ["anna", "ben"], [0, 1, -1])
    b = named(["cam02", "cam01"], [0, 1], ["ben", "carl"], [0, 1])
    joined = Embeddings.concat([a, b])
    assert joined.camids.tolist() == [0, 0, -1, 1, 0]
    assert joined.pids.tolist() == [0, 1, -1, 1, 2]
    assert joined.meta == {"camera_names": ["cam01", "cam02"], "pid_names": ["anna", "ben", "carl"]}
    assert a.camids.tolist() == [0, 0, -1]  # the tables are not changed
    assert b.meta["camera_names"] == ["cam02", "cam01"]


@pytest.mark.parametrize("order", [1, -1])
def test_numbers_with_and_without_names_are_not_compared(order):
    tables, names = [named(["door"], [0]), named(None, [0])][::order], ["a.parquet", "b.parquet"][::order]
    with pytest.raises(
        ReidError, match=r"camids of a\.parquet have names \(door.*those of b\.parquet are numbers without"
    ):
        Embeddings.concat(tables, names)
    unknown = named(None, [-1, -1])
    assert Embeddings.concat([named(["door"], [0]), unknown]).camids.tolist() == [0, -1, -1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("door", "must be a list of different texts"),
        (["a", "a", "b"], "must be a list of different texts"),
        ([1, 2, 3], "must be a list of different texts"),
        ({"2": "a"}, "must be a list of different texts"),
        (["a", "b"], r"camids contain 2, but meta\['camera_names'\] has 2 names"),
    ],
    ids=["text", "repeated", "numbers", "a mapping", "too few"],
)
def test_invalid_names_are_errors(names, message, tmp_path):
    table = Embeddings(np.ones((1, 4)), camids=[2], meta={"camera_names": names})
    with pytest.raises(ReidError, match=message):
        Embeddings.concat([table, table])
    with pytest.raises(ReidError, match=rf"a\.parquet: .*{message}"):
        Embeddings.load(table.save(tmp_path / "a.parquet"))


def test_evaluate_joins_query_and_gallery_by_name():
    features = np.eye(4, dtype=np.float32)
    query = Embeddings(features[:2], [0, 1], [0, 0], meta={"pid_names": ["ben", "dora"], "camera_names": ["door"]})
    gallery = Embeddings(
        features, [0, 1, 2, 3], [0, 0, 0, 0], meta={"pid_names": ["ben", "dora", "a", "b"], "camera_names": ["hall"]}
    )
    assert evaluate(query, gallery).mAP == 1
    other = copy(gallery)
    other.pids, other.meta = np.array([1, 3, 0, 2]), gallery.meta | {"pid_names": ["a", "ben", "b", "dora"]}
    assert evaluate(query, other).mAP == 1
    other.meta = {}
    with pytest.raises(ReidError, match="numbers without names"):
        evaluate(query, other)


def test_text_identities_of_a_table_keep_their_names(tmp_path):
    rng, people = np.random.default_rng(0), ["ben", "dora", "anna", "carl"]
    lines = ["path,pid,camid"]
    for person, camera in itertools.product(people, ("door", "hall")):
        cv2.imwrite(str(tmp_path / f"{person}-{camera}.png"), rng.integers(0, 256, (32, 16, 3), np.uint8))
        lines.append(f"{person}-{camera}.png,{person},{camera}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    benchmark = load_benchmark(f"table:{tmp_path}?fraction=0.5")
    embedder = Embedder(build_model("light10", height=32, width=16), device="cpu")
    for crops in (benchmark.train, benchmark.query, benchmark.gallery):
        written = embed_to_parquet(embedder, crops, tmp_path / "out.parquet")
        assert written is not None
        for table in (embedder.table(crops), Embeddings.load(written.path)):
            persons = [table.meta["pid_names"][pid] for pid in table.pids]
            cameras = [table.meta["camera_names"][camid] for camid in table.camids]
            stems = [Path(path).stem for path in table.paths]
            assert [f"{person}-{camera}" for person, camera in zip(persons, cameras, strict=True)] == stems


def test_named_folders_keep_the_names_of_identities(tmp_path):
    for person in ("p10", "p2", "-1"):
        (tmp_path / person).mkdir()
        for number in range(2):
            cv2.imwrite(str(tmp_path / person / f"c{number}_{number}.png"), np.zeros((8, 4, 3), np.uint8))
    crops = load_benchmark(f"folders:{tmp_path}?fraction=0.5").train
    assert crops.names["pids"] == ("p2", "p10")
    assert {crops.names["pids"][pid] for pid in crops.pids} == {Path(path).parent.name for path in crops.paths}


@pytest.mark.parametrize(
    ("paths", "stored", "root"),
    [
        pytest.param(["{0}/a/1.jpg", "{0}/a/2.jpg"], ["a/1.jpg", "a/2.jpg"], "{0}", id="below the root"),
        pytest.param(
            ["{0}/a/1.jpg", "{0}b/2.jpg"], ["root/a/1.jpg", "rootb/2.jpg"], "{0}/..", id="also beside the root"
        ),
        pytest.param(["a/1.jpg", "{0}/2.jpg"], ["a/1.jpg", "2.jpg"], "{0}", id="some are relative"),
        pytest.param(["", "{0}"], ["", "root"], "{0}/..", id="no path, and the root itself"),
    ],
)
def test_paths_are_saved_relative_to_a_root_and_completed_again(tmp_path, paths, stored, root):
    top = str(tmp_path / "root")
    paths = [path.format(top) for path in paths]
    table = make(2, paths=paths, meta=META | {"left_out": [f"{top}/gone.jpg: No such file"]})
    file = table.save(tmp_path / "t.parquet", root=top)
    assert str(tmp_path).encode() not in file.read_bytes()
    loaded = Embeddings.load(file)
    assert loaded.paths.tolist() == stored
    assert table.paths.tolist() == paths
    complete = Embeddings.load(file, root=root.format(top)).paths.tolist()
    assert [os.path.normpath(path) for path in complete if os.path.isabs(path)][-1] == paths[-1]
