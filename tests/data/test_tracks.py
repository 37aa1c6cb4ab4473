from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import DataError
from reid.data.tracks import Tracks

GOOD = {
    "camera_names": ["door", "hall"],
    "camera": [1, 0, 0],
    "track": [4, 2, 1],
    "frame": [3, 2, 2],
    "boxes": [[0, 0, 5, 9], [1, 1, 5, 9], [2, 2, 5, 9]],
}


def test_rows_are_sorted_by_camera_frame_and_id():
    tracks = Tracks.from_columns(**GOOD)
    assert tracks.camera.tolist() == [0, 0, 1]
    assert tracks.track.tolist() == [1, 2, 4]
    assert tracks.boxes[:, 0].tolist() == [2, 1, 0]
    assert tracks.confidence.tolist() == [1, 1, 1]
    assert len(Tracks.from_columns(["door"], [], [], [], [])) == 0


def test_take_and_with_ids_keep_all_cameras():
    tracks = Tracks.from_columns(**GOOD)
    assert tracks.take([2, 0]).track.tolist() == [1, 4]
    assert tracks.take([]).camera_names == ("door", "hall")
    renamed = tracks.with_ids([9, 8, 7])
    assert renamed.track.tolist() == [8, 9, 7]
    assert renamed.boxes[:, 0].tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="id 9 occurs twice in frame 2 of camera 'door'"):
        tracks.with_ids([9, 9, 9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_names": ["a", "a"]}, "camera name 'a' occurs twice"),
        ({"camera": [1, 0]}, r"Tracks.camera must be one column of 3 rows"),
        ({"camera": [2, 0, 0]}, "Tracks.camera must be an index into camera_names, 0 to 1"),
        ({"camera": [-1, 0, 0]}, "Tracks.camera is -1 in row 0"),
        ({"track": [1.5, 2, 3]}, "Tracks.track must contain integers"),
        ({"track": [4, 2, -7]}, "Tracks.track is -7 in row 2"),
        ({"frame": [3, -2, 2]}, "Tracks.frame is -2 in row 1"),
        ({"boxes": [[0, 0, 5]] * 3}, r"Tracks.boxes must be \[N, 4\]"),
        ({"boxes": [[0, 0, 5, 9], [0, 0, 0, 9], [0, 0, 5, 9]]}, "row 1 has box"),
        ({"boxes": [[0, 0, 5, 9], [np.nan, 0, 5, 9], [0, 0, 5, 9]]}, "row 1 has box"),
        ({"confidence": [1, 1, np.inf]}, "row 2 has box"),
        ({"confidence": [1, 1]}, "Tracks.confidence must be one column of 3 rows"),
        ({"track": [4, 1, 1]}, r"id 1 occurs twice in frame 2 of camera 'door' \(1 such rows\)"),
    ],
)
def test_bad_columns_are_refused_with_the_first_bad_row(changes, message):
    with pytest.raises(DataError, match=message):
        Tracks.from_columns(**{**GOOD, **changes})
