from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.data.tracks import camera_number, natural_sort_key, same_cameras
from reid.mtmc import Camera, Cameras
from reid.mtmc.track_files import read_cameras

NAMES = ("cam01", "cam02", "cam03")
LISTED = "cameras: {cam01: , cam02: , cam03: }\n"


def read(tmp_path, text, names=NAMES):
    (tmp_path / "cameras.yaml").write_text(text)
    return read_cameras(tmp_path / "cameras.yaml", names)


def test_everything_that_can_be_said(tmp_path):
    cameras = read(
        tmp_path,
        """
cameras:
  cam01: {fps: 10, offset: 3.5, drift: 1e-3, size: [960, 540], position: [1, 2], azimuth: 0.5}
  cam02: {homography: [[0.1, 0, 0], [0, 0.1, 0], [0, 0, 1]]}
  cam03:
pairs:
- {from: cam01, to: cam02, min: 5, max: 60}
- {from: cam02, to: cam01, min: 6, max: null}
- {from: cam02, to: cam03, min: .inf}
- {from: cam03, to: cam01, min: -2, max: 4}
overlapping: [[cam03, cam01]]
""",
    )
    one = cameras["cam01"]
    assert (one.fps, one.offset, one.drift, one.size) == (10, 3.5, 1e-3, (960, 540))
    assert cameras["cam03"] == cameras.cameras["cam03"]
    assert (cameras["cam03"].fps, cameras["cam03"].offset, cameras["cam03"].size) == (25, 0, None)
    assert cameras.seconds("cam01", [1, 11, 10001]).tolist() == pytest.approx([3.5, 4.501, 1004.5])
    assert cameras["cam01"].ground([[1, 2, 3, 4]]) is None
    assert cameras["cam02"].ground([[10, 20, 40, 80]])[0] == pytest.approx([3, 10])
    assert (cameras.min_transition_time("cam01", "cam02"), cameras.max_transition_time("cam01", "cam02")) == (5, 60)
    assert (cameras.min_transition_time("cam02", "cam01"), cameras.max_transition_time("cam02", "cam01")) == (
        6,
        math.inf,
    )
    assert cameras.min_transition_time("cam02", "cam03") == math.inf  # nobody goes there
    assert (cameras.min_transition_time("cam03", "cam02"), cameras.max_transition_time("cam03", "cam02")) == (
        -math.inf,
        math.inf,
    )  # nobody said
    assert cameras.overlapping == {frozenset(("cam01", "cam03"))}
    assert (cameras.non_overlapping("cam01", "cam02"), cameras.non_overlapping("cam01", "cam03")) == (True, False)
    assert (cameras.stated, cameras.overlaps_known, cameras.warnings) == (True, True, ())


def test_the_example_of_the_documents_can_be_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "track-files.md"
    example = page.read_text("utf-8").split("```yaml\n")[1].split("```")[0]
    cameras = read(tmp_path, example)
    assert cameras.min_transition_time("cam01", "cam02") == 12
    assert cameras.overlapping == {frozenset(("cam02", "cam03"))}


def test_nothing_said():
    cameras = Cameras.from_names(NAMES)
    assert not cameras.stated
    assert cameras.seconds("cam01", 26) == 1
    assert cameras.transition_times == {}
    assert not cameras.non_overlapping("cam01", "cam02")


def test_cameras_are_apart_only_where_someone_said_so(tmp_path):
    assert not read(tmp_path, LISTED).non_overlapping("cam01", "cam02")
    assert read(tmp_path, LISTED + "overlapping: []").non_overlapping("cam01", "cam02")
    one_way = LISTED + "pairs:\n- {from: cam01, to: cam02, min: 3}\n"
    assert not read(tmp_path, one_way).non_overlapping("cam01", "cam02")
    assert read(tmp_path, one_way + "- {from: cam02, to: cam01, min: 3}\n").non_overlapping("cam02", "cam01")
    assert not read(tmp_path, LISTED + "overlapping: []").non_overlapping("cam01", "cam01")


def test_a_file_without_cameras_leaves_defaults(tmp_path):
    assert set(read(tmp_path, "").cameras) == set(NAMES)
    cameras = read(tmp_path, "pairs:\n- {from: cam01, to: cam02, min: 3}\n")
    assert cameras.min_transition_time("cam01", "cam02") == 3


def test_cameras_meet_by_number_where_no_name_is_equal(tmp_path):
    text = "cameras: {c001: {fps: 10}, c002: , 3: }\npairs:\n- {from: c001, to: 3, min: 3}\noverlapping: [[c001, c002]]"
    cameras = read(tmp_path, text)
    assert set(cameras.cameras) == set(NAMES)
    assert (cameras["cam01"].name, cameras["cam01"].fps, cameras.min_transition_time("cam01", "cam03")) == (
        "cam01",
        10,
        3,
    )
    assert cameras.overlapping == {frozenset(("cam01", "cam02"))}


def test_a_camera_without_tracks_stays_and_is_named(tmp_path):
    cameras = read(tmp_path, LISTED, names=("cam01", "cam03"))
    assert list(cameras.cameras) == list(NAMES)
    assert "lists cameras without tracks: cam02." in cameras.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("camera: {}", "no key 'camera'. Did you mean 'cameras'", id="unknown key above"),
        pytest.param("cameras: {cam01: {ofset: 1}, cam02: , cam03: }", "cam01: there is no key 'ofset'. Did you mean "
                     "'offset'", id="unknown key of a camera"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, minimum: 1}]",
                     "pair 1: .*'minimum'. Did you mean 'min'", id="unknown key of a pair"),
        pytest.param("cameras: {cam01: , cam2: , cam03: }", "tracks of 'cam02', which is not listed.*Did you mean",
                     id="tracks of a camera that is not listed"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam9, min: 1}]", "pair 1: there is no camera 'cam9'",
                     id="a pair with an unknown camera"),
        pytest.param(LISTED + "overlapping: [[cam01, cam9]]", "entry 1: there is no camera 'cam9'",
                     id="an overlap with an unknown camera"),
        pytest.param(LISTED + "overlapping: [[cam01, cam01]]", "give two cameras", id="an overlap with itself"),
        pytest.param(LISTED + "overlapping: [cam01, cam02]", "give two cameras", id="an overlap that is no pair"),
        pytest.param(LISTED + "pairs: [{from: cam01, min: 1}]", "pair 1 has no 'to'", id="a pair of one"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: 5, max: 4}]", "min is 5.0 and max 4.0",
                     id="min above max"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: soon}]", "min is 'soon'; it must be a number",
                     id="a word for a number"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02}, {from: cam01, to: cam02}]", "given twice",
                     id="a way given twice"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: 1}]\noverlapping: [[cam01, cam02]]",
                     "takes 1.0 s or more, yet the two are said to overlap", id="overlapping, and a way between"),
        pytest.param(LISTED + "pairs: {from: cam01}", "pairs must be a list", id="pairs that are no list"),
        pytest.param("cameras: [cam01, cam02, cam03]", "must hold `key: value`", id="cameras as a list"),
        pytest.param("- 1", "must hold `key: value`", id="a list above"),
        pytest.param("cameras: {cam01: {fps: 0}, cam02: , cam03: }", "fps is 0", id="no frames a second"),
        pytest.param("cameras: {cam01: {fps: yes}, cam02: , cam03: }", "fps is True; it must be", id="a truth value"),
        pytest.param("cameras: {cam01: {offset: .nan}, cam02: , cam03: }", "offset is nan", id="no offset"),
        pytest.param("cameras: {cam01: {drift: 5}, cam02: , cam03: }", "drift is 5", id="drift in other units"),
        pytest.param("cameras: {cam01: {size: 640x480}, cam02: , cam03: }", "size must be a list", id="size as text"),
        pytest.param("cameras: {cam01: {size: [640, 0]}, cam02: , cam03: }", "size is", id="an empty frame"),
        pytest.param("cameras: {cam01: {homography: [1, 2]}, cam02: , cam03: }", "three rows of three", id="no matrix"),
        pytest.param("cameras: {cam01: {homography: [1, 2, 3, 2, 4, 6, 0, 0, 1]}, cam02: , cam03: }",
                     "can be inverted", id="a matrix of a lower rank"),
        pytest.param("cameras: {cam01: [", "not valid YAML", id="not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ReidError, match=message):
        read(tmp_path, text)


def test_no_such_file_and_no_such_camera(tmp_path):
    with pytest.raises(ReidError, match="Cannot read"):
        read_cameras(tmp_path / "none.yaml", NAMES)
    with pytest.raises(ReidError, match=r"no camera 'cam1'\. Did you mean 'cam0"):
        Cameras.from_names(NAMES).seconds("cam1", 1)


def test_feet_through_a_homography():
    h = np.array([[2, 0, 1], [0, 3, -1], [0, 0.01, 1.0]])
    boxes = np.array([[10, 20, 4, 8], [0, 0, 2, 2.0]])
    got = Camera("a", homography=h).ground(boxes)
    for place, (x, y, w, height) in zip(got, boxes, strict=True):
        foot = h @ [x + w / 2, y + height, 1]
        assert place == pytest.approx(foot[:2] / foot[2])


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        pytest.param(["cam01", "cam02"], ["cam02", "cam01"], {"cam01": "cam01", "cam02": "cam02"}, id="equal names"),
        pytest.param(["cam01", "cam02"], ["1", "c002"], {"1": "cam01", "c002": "cam02"}, id="equal numbers"),
        pytest.param(["cam01", "cam02"], ["cam01", "2"], {"cam01": "cam01"}, id="a name is equal: numbers no more"),
        pytest.param(["a1b1", "a2b1"], ["1"], {}, id="two cameras of one number"),
        pytest.param(["door", "hall"], ["1", "2"], {}, id="no numbers"),
        pytest.param([], ["1"], {}, id="nothing"),
    ],
)  # fmt: skip
def test_which_cameras_are_the_same(names, others, expected):
    assert same_cameras(names, others) == expected


def test_names_in_the_order_that_people_expect():
    assert sorted(["cam10", "cam2", "a", "10", "9"], key=natural_sort_key) == ["9", "10", "a", "cam2", "cam10"]
    assert [camera_number(name) for name in ("cam01", "s02_c041", "door")] == [1, 41, None]
