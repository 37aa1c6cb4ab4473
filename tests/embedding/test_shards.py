from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid.core.errors import ReidError
from reid.embedding.batches import ImageBatch
from reid.embedding.shards import Shards, fill, make_shard, shard_folder

D = 5


def keys_of(*numbers):
    """16 bytes each, many of them zero, at either end too."""
    return np.frombuffer(b"".join(int(n).to_bytes(16, "little") for n in numbers), "S16")


def write(shards, numbers, reasons=None, seed=0):
    features = np.random.default_rng(seed).standard_normal((len(numbers), D)).astype(np.float32)
    reasons = reasons or [""] * len(numbers)
    shards.write(make_shard(keys_of(*numbers), features, reasons, sharpness=pa.array(np.arange(len(numbers)) * 1.0)))
    return features


@pytest.fixture(params=["in memory", "in a folder"])
def shards(request, tmp_path):
    return Shards(tmp_path / "p" if request.param == "in a folder" else None, D)


@pytest.mark.parametrize("seed", range(4))
def test_find_returns_the_row_written_last(shards, seed):
    rng = np.random.default_rng(seed)
    written, succeeded, total = {}, {}, 0
    for number in range(int(rng.integers(0, 6))):
        rows = rng.integers(0, 40, int(rng.integers(1, 12))).tolist()
        reasons = ["broken" if rng.random() < 0.3 else "" for _ in rows]
        total += len(rows)
        for row, feature, reason in zip(rows, write(shards, rows, reasons, number), reasons, strict=True):
            written[row] = feature, reason
            if not reason:
                succeeded[row] = feature, ""
    asked = rng.integers(0, 50, 100).tolist()
    for expected, failed in ((written, True), (succeeded, False)):
        for opened in (shards, *([Shards(shards.folder, D)] if shards.folder else [])):
            positions = opened.find(keys_of(*asked), failed=failed)
            assert [position >= 0 for position in positions] == [row in expected for row in asked]
            features, reasons = (opened.read(positions[positions >= 0], name) for name in ("features", "reason"))
            for feature, reason, row in zip(features, reasons, [r for r in asked if r in expected], strict=True):
                np.testing.assert_array_equal(feature, expected[row][0])
                assert reason == expected[row][1]
    assert shards.count_others(keys_of(*range(50))) == 0
    assert shards.count_others(keys_of(50)) == total


def test_find_and_read_without_rows(shards):
    assert shards.find(keys_of(1, 2)).tolist() == [-1, -1]
    assert shards.read(np.zeros(0, np.int64), "features").shape == (0, D)
    write(shards, [1], ["broken"])
    assert shards.find(keys_of(1), failed=False).tolist() == [-1]
    assert shards.find(keys_of()).tolist() == []


@pytest.mark.parametrize("damage", ["cut short", "not Parquet", "another dimension", "other columns"])
def test_unreadable_shard_is_reported_and_its_rows_are_missing(tmp_path, damage):
    shards = Shards(tmp_path, D)
    write(shards, [1, 2])
    (path,) = tmp_path.iterdir()
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "not Parquet":
        path.write_text("hello")
    elif damage == "another dimension":
        shards = Shards(tmp_path, D + 1)
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    again = Shards(tmp_path, D + (damage == "another dimension"))
    assert again.find(keys_of(1, 2)).tolist() == [-1, -1]
    assert len(again.notes) == 1
    assert f"{path} cannot be read and is not used" in again.notes[0]
    if damage != "another dimension":
        write(again, [3])
        assert Shards(tmp_path, D).find(keys_of(1, 3)).tolist() == [-1, 0]


def test_read_of_a_deleted_shard_is_an_error(tmp_path):
    shards = Shards(tmp_path, D)
    write(shards, [1])
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(ReidError, match=rf"{path.name} cannot be read.*Delete it and run the command again"):
        shards.read(shards.find(keys_of(1)), ["features"])


def test_unfinished_files_are_ignored(tmp_path):
    (tmp_path / ".000000-abc.1.part.parquet").write_bytes(b"half")
    shards = Shards(tmp_path, D)
    assert (shards.find(keys_of(0)).tolist(), shards.notes) == ([-1], [])


def test_several_writers_do_not_overwrite_each_other(tmp_path):
    one, two = Shards(tmp_path, D), Shards(tmp_path, D)
    write(one, [1])
    write(two, [2])
    assert (Shards(tmp_path, D).find(keys_of(1, 2)) >= 0).all()


def batches(sizes, failing=()):
    row = 0
    for size in sizes:
        rows = list(range(row, row + size))
        row += size
        good = [r for r in rows if r not in failing]
        columns = {"sharpness": pa.array([float(r) for r in good]), "crop": pa.array([b"x" * r for r in good])}
        failed = {r: f"broken {r}" for r in rows if r in failing}
        features = np.array(good, np.float32)[:, None] * np.ones(D, np.float32)
        yield ImageBatch(good, np.zeros((len(good), 2, 2, 3), np.uint8), [""] * len(good), failed, columns), features


def test_fill_writes_batches_with_their_failed_rows(shards):
    done = list(fill(shards, keys_of(*range(12)), batches([3, 4, 5], {1, 2, 8}), shard_size=5))
    assert [sorted(rows) for rows in done] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]]
    positions = shards.find(keys_of(*range(12)))
    features, reasons, sharp, crops = (
        shards.read(positions, name) for name in ("features", "reason", "sharpness", "crop")
    )
    for row in range(12):
        if row in (1, 2, 8):
            assert reasons[row] == f"broken {row}"
            assert (features[row] == 0).all()
        else:
            assert reasons[row] == ""
            assert (features[row] == row).all()
            assert (sharp[row], crops[row]) == (row, b"x" * row)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ReidError])
def test_fill_writes_finished_rows_after_an_exception(tmp_path, error):
    def broken():
        yield from batches([3, 4])
        raise error("stop")

    shards = Shards(tmp_path, D)
    with pytest.raises(error):
        list(fill(shards, keys_of(*range(12)), broken(), shard_size=100))
    assert (Shards(tmp_path, D).find(keys_of(*range(12))) >= 0).tolist() == [True] * 7 + [False] * 5


def test_shard_folder_depends_on_the_identity(tmp_path):
    one = shard_folder(tmp_path, "a/b ü.c", {"x": 1, "y": 2})
    assert one == shard_folder(tmp_path, "a/b ü.c", {"y": 2, "x": 1})
    assert one.parent == tmp_path
    assert one.name.startswith("a_b__.c-")
    assert one != shard_folder(tmp_path, "a/b ü.c", {"x": 1, "y": 3})


def test_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReidError, match="Cannot write"):
        write(Shards(tmp_path / "file", D), [1])
    assert os.listdir(tmp_path) == ["file"]
