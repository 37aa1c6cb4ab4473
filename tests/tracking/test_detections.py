from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid.core.errors import DataError
from reid.tracking.detections import Detections, read_detections


def some() -> Detections:
    return Detections.from_columns(
        [1, 4, 7],
        [0.0, 0.25, 0.5],
        [7, 1, 1],
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 2, 2]],
        [0.5, 0.25, 0.75],
        {"a": [1]},
    )


def same(a: Detections, b: Detections) -> bool:
    names = ("frames", "times", "row", "boxes", "confidence")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_boxes_are_sorted_by_frame_and_confidence() -> None:
    assert some().row.tolist() == [0, 0, 2]
    assert some().confidence.tolist() == [0.75, 0.25, 0.5]


def test_parquet_keeps_frames_without_boxes_times_and_meta(tmp_path: Path) -> None:
    some().save(tmp_path / "a.parquet")
    again = read_detections(tmp_path, "a")
    assert same(again, some())
    assert again.meta == {"a": [1]}
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert table[2] == {"frame": 4, "time": 0.25, "x": None, "y": None, "w": None, "h": None, "confidence": None}


@pytest.mark.parametrize("n", [0, 1, 40])
def test_any_detections_survive_the_file(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    frames = np.sort(rng.choice(100, n, replace=False))
    frame = rng.choice(frames, 3 * n) if n else []
    boxes = rng.uniform(1, 50, (3 * n, 4)).astype(np.float32)
    found = Detections.from_columns(frames, np.arange(n) / 7, frame, boxes, rng.random(3 * n).astype(np.float32))
    found.save(tmp_path / "a.parquet")
    assert same(Detections.load(tmp_path / "a.parquet"), found)


def test_motchallenge_text_of_any_detector(tmp_path: Path) -> None:
    (tmp_path / "cam01/det").mkdir(parents=True)
    (tmp_path / "cam01/det/det.txt").write_text("2,-1,10,20,30,60,0.9,-1,-1,-1\n1,-1,1,2,3,4,0.5,-1,-1,-1\n")
    found = read_detections(tmp_path, "cam01")
    assert found.frames.tolist() == [1, 2]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [10, 20, 30, 60]]
    assert np.isnan(found.times).all()
    (tmp_path / "cam02.txt").write_text("")
    assert len(read_detections(tmp_path, "cam02").frames) == 0


def test_parquet_of_other_projects_needs_no_time_and_no_confidence(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"frame": [3, 2], "x": [1, 2], "y": [1, 2], "w": [1, 2], "h": [5, 6]}), tmp_path / "a.parquet"
    )
    found = read_detections(tmp_path, "a")
    assert found.frames.tolist() == [2, 3]
    assert found.confidence.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.txt", "1,2,3\n", "has 3 columns"),
        ("b.txt", "1,2,3,4,5,6,7\n1,2\n", "cannot be read"),
        ("b.txt", "1,-1,a,4,5,6,7\n", "column x contains something other than numbers"),
        ("b.txt", "1.5,-1,3,4,5,6,1\n", "row 0 has frame 1.5"),
        ("b.txt", "1,-1,3,4,0,6,1\n", "width and height above 0"),
        ("b.txt", "1,-1,3,4,inf,6,1\n", "values must be"),
        ("b.parquet", "no parquet", "cannot be read as Parquet"),
        ("c.txt", "", "no detections of camera 'b'"),
    ],
)
def test_damaged_files_are_errors_that_name_them(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"(?i){message}"):
        read_detections(tmp_path, "b")


def test_columns_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(DataError, match="must rise and be at most"):
        Detections.from_columns([2, 1], None, [], np.zeros((0, 4)))
    with pytest.raises(DataError, match="times must rise"):
        Detections.from_columns([1, 2], [0.5, 0.5], [], np.zeros((0, 4)))
    with pytest.raises(DataError, match="frame 3 has a box"):
        Detections.from_columns([1, 2], None, [3], [[1, 1, 2, 2]])
