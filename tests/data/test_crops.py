from __future__ import annotations

import numpy as np
import pytest

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import Crops, merge


def crops(pids: list[int], camids: list[int] | None = None, source: str = "a") -> Crops:
    return Crops.from_columns([f"{source}/{n}.jpg" for n in range(len(pids))], pids, camids, source=source)


def test_columns_left_out_are_unknown() -> None:
    sample = crops([3, 1])
    assert (sample.camids == UNKNOWN).all()
    assert (sample.tracks == UNKNOWN).all()
    assert not sample.has_cameras
    assert sample.pids.dtype == np.int64


def test_a_column_of_another_length_raises_an_error() -> None:
    with pytest.raises(ReidError, match=r"Crops.camids must be one column of 2 rows; got shape \[3\]"):
        crops([1, 2], [1, 2, 3])


@pytest.mark.parametrize("pids", [[1.5, 2.0], ["1", "2"], [None, 1], [True, False]], ids=str)
def test_identities_that_are_not_integers_raise_an_error(pids: list[object]) -> None:
    with pytest.raises(ReidError, match=r"Crops.pids must contain integers"):
        Crops.from_columns(["a", "b"], pids)


def test_crops_can_be_empty() -> None:
    empty = Crops.from_columns([], [])
    assert len(empty) == 0
    assert len(empty.take([])) == 0
    assert [len(column) for column in empty.labels()] == [0, 0]


@pytest.mark.parametrize("index", [[2, 0], np.array([True, False, True]), np.array([], dtype=bool)], ids=str)
def test_take_selects_the_same_rows_of_every_column(index: object) -> None:
    sample = Crops.from_columns(list("xyz"), [7, 8, 9], [1, 2, 3], [4, 5, 6], [10, 11, 12])
    taken = sample.take(index)
    for path, pid, camid, track, frame in zip(
        taken.paths, taken.pids, taken.camids, taken.tracks, taken.frames, strict=True
    ):
        at = "xyz".index(path)
        assert (pid, camid, track, frame) == (7 + at, 1 + at, 4 + at, 10 + at)


def test_labels_count_from_0_in_order_of_identity() -> None:
    labels, pids = crops([1501, 2, 7, 2, 1501]).labels()
    assert labels.tolist() == [2, 0, 1, 0, 2]
    assert pids.tolist() == [2, 7, 1501]


def test_merging_one_source_returns_it_unchanged() -> None:
    one = crops([4, 5])
    assert merge([one]) is one


@pytest.mark.parametrize("seed", range(20))
def test_merged_sources_share_no_identity_and_no_camera(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(int(rng.integers(2, 5))):
        n = int(rng.integers(0 if number else 1, 30))
        camids = rng.integers(-1 if rng.random() < 0.5 else 0, 7, n) if rng.random() < 0.8 else None
        parts.append(
            Crops.from_columns(
                [f"{number}/{i}" for i in range(n)], rng.integers(0, 20, n), camids, source=f"set{number}"
            )
        )
    merged = merge(parts)

    assert merged.source_names == tuple(f"set{number}" for number in range(len(parts)))
    assert merged.paths.tolist() == [path for part in parts for path in part.paths]
    rows = np.concatenate([np.arange(len(part)) for part in parts])
    for what in ("pids", "camids"):
        number_of: dict[tuple[int, int], int] = {}
        for source, row, new in zip(merged.sources, rows, getattr(merged, what), strict=True):
            old = int(getattr(parts[source], what)[row])
            if what == "camids" and old == UNKNOWN:
                assert new == UNKNOWN
                continue
            assert number_of.setdefault((int(source), old), int(new)) == new
        assert len(set(number_of.values())) == len(number_of), "two sources share a number"


def test_merging_merged_crops_keeps_sources_separate() -> None:
    twice = merge([merge([crops([0], [1], "a"), crops([0], [1], "b")]), crops([0], [1], "c")])
    assert twice.source_names == ("a", "b", "c")
    assert twice.sources.tolist() == [0, 1, 2]
    assert len(set(twice.pids.tolist())) == len(set(twice.camids.tolist())) == 3


@pytest.mark.parametrize("others", [[], [crops([1], source="b")]], ids=["alone", "with another"])
def test_merging_junk_raises_an_error(others: list[Crops]) -> None:
    with pytest.raises(ReidError, match="a: 1 crops have a negative pid"):
        merge([crops([3, -1]), *others])


def test_merging_nothing_raises_an_error() -> None:
    with pytest.raises(ReidError, match="No data set"):
        merge([])
