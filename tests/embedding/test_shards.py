from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid.core.errors import ReidError
from reid.embedding.shards import Batch, Parts, fill, part_folder

D = 5


def keys_of(*numbers):
    """16 bytes each, many of them zero, at either end too."""
    return np.frombuffer(b"".join(int(n).to_bytes(16, "little") for n in numbers), "S16")


def write(parts, numbers, reasons=None, seed=0):
    features = np.random.default_rng(seed).standard_normal((len(numbers), D)).astype(np.float32)
    reasons = reasons or [""] * len(numbers)
    parts.write(keys_of(*numbers), features, reasons, {"sharpness": pa.array(np.arange(len(numbers), dtype=float))})
    return features


@pytest.fixture(params=["in memory", "in a folder"])
def parts(request, tmp_path):
    return Parts(tmp_path / "p" if request.param == "in a folder" else None, D)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_found_by_key_the_last_written_first(parts, tmp_path, seed):
    rng = np.random.default_rng(seed)
    known, good = {}, {}
    for number in range(int(rng.integers(0, 6))):
        some = rng.integers(0, 40, int(rng.integers(1, 12))).tolist()
        reasons = ["broken" if rng.random() < 0.3 else "" for _ in some]
        for row, feature, reason in zip(some, write(parts, some, reasons, number), reasons, strict=True):
            known[row] = feature, reason
            if not reason:
                good[row] = feature
    asked = rng.integers(0, 50, 100).tolist()
    for book, failed in ((known, True), (good, False)):
        for some in (parts, *([Parts(parts.folder, D)] if parts.folder else [])):  # as it is, and read again
            places = some.find(keys_of(*asked), failed=failed)
            assert [place >= 0 for place in places] == [row in book for row in asked]
            got = some.read(places[places >= 0], ["features", "reason"])
            for feature, reason, row in zip(
                got["features"], got["reason"], [r for r in asked if r in book], strict=True
            ):
                want = known[row] if failed else (good[row], "")
                np.testing.assert_array_equal(feature, want[0])
                assert reason == want[1]
    assert parts.others(keys_of(*range(50))) == 0
    assert parts.others(keys_of(50)) == len(parts)


def test_nothing_is_found_in_nothing(parts):
    assert parts.find(keys_of(1, 2)).tolist() == [-1, -1]
    assert parts.read(np.zeros(0, np.int64), ["features", "reason"])["features"].shape == (0, D)
    write(parts, [1], ["broken"])
    assert parts.find(keys_of(1), failed=False).tolist() == [-1]
    assert parts.find(keys_of()).tolist() == []


@pytest.mark.parametrize("damage", ["cut short", "no parquet", "another dimension", "columns of others"])
def test_a_part_that_cannot_be_used_is_told_and_counts_as_absent(tmp_path, damage):
    parts = Parts(tmp_path, D)
    write(parts, [1, 2])
    (path,) = tmp_path.iterdir()
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "no parquet":
        path.write_text("hello")
    elif damage == "another dimension":
        parts = Parts(tmp_path, D + 1)
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    again = Parts(tmp_path, D + (damage == "another dimension"))
    assert len(again) == 0
    assert len(again.notes) == 1
    assert f"{path} cannot be read and is not used" in again.notes[0]
    if damage != "another dimension":
        write(again, [3])
        assert Parts(tmp_path, D).find(keys_of(1, 3)).tolist() == [-1, 0]


def test_a_part_that_went_is_named(tmp_path):
    parts = Parts(tmp_path, D)
    write(parts, [1])
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(ReidError, match=rf"{path.name} cannot be read.*Delete it and run again"):
        parts.read(parts.find(keys_of(1)), ["features"])


def test_what_a_kill_left_half_written_is_passed_over(tmp_path):
    (tmp_path / ".000000-abc.1.part.parquet").write_bytes(b"half")
    parts = Parts(tmp_path, D)
    assert (len(parts), parts.notes) == (0, [])


def test_parts_of_several_writers_do_not_replace_each_other(tmp_path):
    one, two = Parts(tmp_path, D), Parts(tmp_path, D)
    write(one, [1])
    write(two, [2])
    assert (Parts(tmp_path, D).find(keys_of(1, 2)) >= 0).all()


def batches(sizes, failing=()):
    row = 0
    for size in sizes:
        rows = list(range(row, row + size))
        row += size
        good = [r for r in rows if r not in failing]
        columns = {"sharpness": pa.array([float(r) for r in good]), "crop": pa.array([b"x" * r for r in good])}
        failed = {r: f"broken {r}" for r in rows if r in failing}
        features = np.array(good, np.float32)[:, None] * np.ones(D, np.float32)
        yield Batch(good, np.zeros((len(good), 2, 2, 3), np.uint8), [""] * len(good), failed, columns), features


def test_batches_become_parts_with_failed_rows_in_their_places(parts):
    done = list(fill(parts, keys_of(*range(12)), batches([3, 4, 5], {1, 2, 8}), part_size=5))
    assert [sorted(rows) for rows in done] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]]
    got = parts.read(parts.find(keys_of(*range(12))), ["features", "reason", "sharpness", "crop"])
    for row in range(12):
        failed = row in (1, 2, 8)
        assert got["reason"][row] == (f"broken {row}" if failed else "")
        assert (got["features"][row] == (0 if failed else row)).all()
        assert got["sharpness"][row] == (0 if failed else row)
        assert got["crop"][row] == (b"" if failed else b"x" * row)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ReidError])
def test_what_is_finished_is_written_however_it_ends(tmp_path, error):
    def broken():
        yield from batches([3, 4])
        raise error("stop")

    parts = Parts(tmp_path, D)
    with pytest.raises(error):
        list(fill(parts, keys_of(*range(12)), broken(), part_size=100))
    assert (Parts(tmp_path, D).find(keys_of(*range(12))) >= 0).tolist() == [True] * 7 + [False] * 5


def test_each_key_has_a_folder_of_its_own(tmp_path):
    one = part_folder(tmp_path, "a/b ü.c", {"x": 1, "y": 2})
    assert one == part_folder(tmp_path, "a/b ü.c", {"y": 2, "x": 1})
    assert one.parent == tmp_path
    assert one.name.startswith("a_b__.c-")
    assert one != part_folder(tmp_path, "a/b ü.c", {"x": 1, "y": 3})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReidError, match="Cannot write"):
        write(Parts(tmp_path / "file", D), [1])
    assert os.listdir(tmp_path) == ["file"]
