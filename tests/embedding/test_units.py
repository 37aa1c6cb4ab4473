"""Lists of crops, and the units of work that a cluster embeds. Nothing here needs Ray."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid import Embeddings
from reid.core import storage
from reid.core.errors import ConfigError, DataError, ModelError
from reid.core.version import __version__
from reid.data.crop_list import read_crop_list
from reid.data.images import decode, resize
from reid.embedding.ray_cluster import RayCluster, Worker
from reid.embedding.stream import embed_to_parquet, embed_unit, make_unit
from tests.embedding.test_stream import Fast, draw, same


class OneByOne:
    """Embeds the units in this process, the last one first, as a worker does."""

    def __init__(self, embedder=None):
        self.embedder = embedder or Fast()

    def run(self, work, units, folder, meta):
        folder.mkdir(parents=True, exist_ok=True)
        worker = Worker(lambda: self.embedder, work, __version__, meta)
        for unit in reversed(units):
            pq.write_table(worker(pa.Table.from_pylist([unit])), folder / f"{unit['id']}-0.parquet")


@pytest.mark.parametrize("n", [1, 8, 23])
@pytest.mark.parametrize("boxes", [False, True], ids=["images", "boxes"])
def test_cluster_equals_one_process(tmp_path, n, boxes):
    paths = [*draw(tmp_path / "crops", n), str(tmp_path / "crops" / "00000.png")]  # the last one is a duplicate
    pixels = np.array([[1, 0, 6, row % 7 + 2] for row in range(n)] + [[1, 0, 6, 2]]) if boxes else None
    options = {"pixels": pixels, "root": tmp_path}
    embed_to_parquet(Fast(), paths, tmp_path / "one.parquet", **options)
    cluster = OneByOne()
    embed_to_parquet(Fast(), paths, tmp_path / "t.parquet", cluster=cluster, shard_size=8, **options)
    one, other = Embeddings.load(tmp_path / "one.parquet"), Embeddings.load(tmp_path / "t.parquet")
    same(one, other)
    assert (one.meta, cluster.embedder.images) == (other.meta, n)
    crop = decode(paths[0]) if pixels is None else decode(paths[0])[0:2, 1:6]
    expected = Fast().embed_batch(resize(crop, (16, 8))[None])[0]
    np.testing.assert_allclose(one.features[-1], expected, atol=1e-6)


def test_unreadable_images_and_empty_boxes(tmp_path):
    paths = draw(tmp_path / "crops", 5)
    (tmp_path / "crops/00001.png").write_bytes(b"no image")
    pixels = np.array([[0, 0, 4, 4]] * 4 + [[900, 0, 910, 4]])
    options = {"pixels": pixels, "root": tmp_path, "cluster": OneByOne()}
    with pytest.raises(DataError, match=r"^Worker \S+, process \d+: .*00001\.png: is not an image"):
        embed_to_parquet(Fast(), paths, tmp_path / "a.parquet", **options)
    done = embed_to_parquet(Fast(), paths, tmp_path / "b.parquet", unreadable="skip", **options)
    assert done.rows == 3
    assert [text.split(": ")[0] for text in done.left_out] == ["crops/00001.png", "crops/00004.png"]
    assert "outside of the image" in done.left_out[1]


def test_ids_of_units_follow_their_identity():
    assert make_unit(b"a", 1)["id"] == make_unit(b"a", 2)["id"] != make_unit(b"b", 1)["id"]


@pytest.mark.parametrize(
    ("version", "other", "message"),
    [
        ("0.0.1", {}, rf"process \d+: has reid {__version__}, but the job has 0.0.1. Install the same version"),
        (__version__, {"name": "mine"}, r"opened another model: model is 'mine', but 'fast' in the process that"),
        (__version__, {"dimension": 8}, "opened another model: dimension is 8, but 16"),
        (__version__, {"flip": True}, "opened another model: flip is True, but False"),
    ],
)
def test_workers_with_another_model_are_refused(version, other, message):
    worker = Worker(partial(Fast, **other), embed_unit, version, Fast().describe())
    with pytest.raises(ModelError, match=message):
        worker(pa.Table.from_pylist([make_unit(b"")]))


@pytest.mark.parametrize(
    ("cluster", "resources", "expected"),
    [
        (RayCluster(Fast), {"CPU": 16.0}, 14),
        (RayCluster(Fast, workers=3), {"CPU": 16.0}, 3),
        (RayCluster(Fast, gpus=0.5), {"CPU": 64.0, "GPU": 2.0}, 4),
        (RayCluster(Fast), {"CPU": 200.0}, 100),  # units
        (RayCluster(Fast), {"CPU": 2.0}, "has 2 CPUs and 0 GPUs; one worker needs 1 CPU"),
        (RayCluster(Fast, gpus=1), {"CPU": 9.0}, "one worker needs 1 CPU and 1 GPUs"),
        (RayCluster(Fast, workers=9), {"CPU": 8.0}, "6 workers are possible.*Pass --workers 6 or fewer"),
    ],
)
def test_workers_leave_cpus_to_readers(cluster, resources, expected):
    if isinstance(expected, int):
        assert cluster._count_workers(resources, 100) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        cluster._count_workers(resources, 100)


def write(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    return tmp_path / "list.csv"


def test_list_of_boxes(tmp_path):
    text = "path,x,y,width,height,camid,track\na.png,1,2.4,3,4.4,door,5\ns3://b/c.png,0,0,9,9,,\n/x/d.png,-3,0,5,.5e1,hall,7\n"
    found = read_crop_list(write(tmp_path, text))
    assert found.crops.paths.tolist() == [str(tmp_path / "a.png"), "s3://b/c.png", "/x/d.png"]
    assert found.pixels.tolist() == [[1, 2, 4, 7], [0, 0, 9, 9], [-3, 0, 2, 5]]
    assert (found.crops.camids.tolist(), found.crops.names) == ([0, -1, 1], {"camids": ("door", "hall")})
    assert (found.crops.tracks.tolist(), found.crops.pids.tolist()) == ([5, -1, 7], [-1, -1, -1])
    assert read_crop_list(write(tmp_path, "path\na.png\n")).pixels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", "has no column 'path'.*path is required"),
        ("path,x\na.png,1\n", "has the columns x; a box needs x, y, width, height"),
        (
            "path,x,y,width,height\na.png,1,1,2,2\nb.png,1,1,wide,2\n",
            "line 3|row 3.*column 'width': 'wide' is not a number",
        ),
        ("path,x,y,width,height\na.png,1,1,0,2\n", r"box \[1.0, 1.0, 0.0, 2.0\] of a.png"),
        ("path,x,y,width,height\na.png,1,1,,2\n", "column 'width'.*is not a number"),
        ("path\n\n", "has no rows"),
        ("path,camid\n,3\n", "column 'path': .* is empty"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_crop_list(write(tmp_path, text))


def test_missing_and_unknown_lists(tmp_path):
    with pytest.raises(DataError, match="There is no list of crops"):
        read_crop_list(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"its name must end in \.csv or \.parquet"):
        read_crop_list(tmp_path / "crops.txt")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("AWS Error EXPIRED_TOKEN during HeadObject", "^Access to s3://b/a.png was refused: .* renew them on every"),
        ("AWS Error ACCESS_DENIED during HeadObject", "^Access to s3://b/a.png was refused: .* renew them on every"),
        ("RequestTimeTooSkewed: The difference", "this machine's clock is wrong. Set its clock"),
        ("AWS Error NETWORK_CONNECTION", "^s3://b/a.png cannot be read: .* Check the address"),
        ("AWS Error RESOURCE_NOT_FOUND", "^s3://b/a.png does not exist"),
    ],
)
def test_errors_of_object_storage_are_explained(monkeypatch, problem, message):
    def refuse(place):
        raise OSError(problem)

    monkeypatch.setattr(storage, "_filesystem", refuse)
    with pytest.raises(DataError, match=message):
        storage.read_object("s3://b/a.png")
