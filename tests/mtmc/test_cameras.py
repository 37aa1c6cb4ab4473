from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from reid.core.errors import ConfigError
from reid.data.tracks import last_number, natural_sort_key, same_cameras
from reid.mtmc import Camera, Cameras
from reid.mtmc.cameras import read_cameras, read_sequences

NAMES = ("cam01", "cam02", "cam03")
LISTED = "cameras: {cam01: , cam02: , cam03: }\n"


def read(tmp_path, text, names=NAMES):
    (tmp_path / "cameras.yaml").write_text(text)
    return read_cameras(tmp_path / "cameras.yaml", names)


def test_every_key_of_cameras_yaml_is_read(tmp_path):
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
    assert cameras["cam01"].seconds([1, 11, 10001]).tolist() == pytest.approx([3.5, 4.501, 1004.5])
    assert np.isnan(cameras["cam01"].ground([[1, 2, 3, 4]])).all()
    assert cameras["cam02"].ground([[10, 20, 40, 80]])[0] == pytest.approx([3, 10])
    assert cameras.transition_times == {
        ("cam01", "cam02"): (5, 60),
        ("cam02", "cam01"): (6, math.inf),
        ("cam02", "cam03"): (math.inf, math.inf),
        ("cam03", "cam01"): (-2, 4),
    }
    assert cameras.min_transition_time("cam02", "cam03") == math.inf  # nobody goes there
    assert cameras.min_transition_time("cam03", "cam02") == -math.inf  # unknown
    assert cameras.overlapping == {frozenset(("cam01", "cam03"))}
    assert (cameras.non_overlapping("cam01", "cam02"), cameras.non_overlapping("cam01", "cam03")) == (True, False)
    assert (cameras.overlaps_known, cameras.warnings) == (True, ())


def test_the_example_in_the_docs_is_valid(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "track-files.md"
    example = page.read_text("utf-8").split("```yaml\n")[1].split("```")[0]
    cameras = read(tmp_path, example)
    assert cameras.min_transition_time("cam01", "cam02") == 12
    assert cameras.overlapping == {frozenset(("cam02", "cam03"))}


def test_nothing_is_assumed_about_cameras_without_a_file():
    cameras = Cameras({name: Camera() for name in NAMES})
    assert cameras["cam01"].seconds(26) == 1
    assert cameras.transition_times == {}
    assert not cameras.non_overlapping("cam01", "cam02")


def test_cameras_are_non_overlapping_only_if_the_file_says_so(tmp_path):
    assert not read(tmp_path, LISTED).non_overlapping("cam01", "cam02")
    assert read(tmp_path, LISTED + "overlapping: []").non_overlapping("cam01", "cam02")
    one_way = LISTED + "pairs:\n- {from: cam01, to: cam02, min: 3}\n"
    assert not read(tmp_path, one_way).non_overlapping("cam01", "cam02")
    assert read(tmp_path, one_way + "- {from: cam02, to: cam01, min: 3}\n").non_overlapping("cam02", "cam01")
    assert not read(tmp_path, LISTED + "overlapping: []").non_overlapping("cam01", "cam01")


def test_a_file_without_cameras_keeps_the_defaults(tmp_path):
    assert set(read(tmp_path, "").cameras) == set(NAMES)
    cameras = read(tmp_path, "pairs:\n- {from: cam01, to: cam02, min: 3}\n")
    assert cameras.min_transition_time("cam01", "cam02") == 3


def test_cameras_correspond_by_number_if_no_names_are_equal(tmp_path):
    text = "cameras: {c001: {fps: 10}, c002: , 3: }\npairs:\n- {from: c001, to: 3, min: 3}\noverlapping: [[c001, c002]]"
    cameras = read(tmp_path, text)
    assert set(cameras.cameras) == set(NAMES)
    assert (cameras["cam01"].fps, cameras.min_transition_time("cam01", "cam03")) == (10, 3)
    assert cameras.overlapping == {frozenset(("cam01", "cam02"))}


def test_a_camera_without_tracks_is_kept_and_reported(tmp_path):
    cameras = read(tmp_path, LISTED, names=("cam01", "cam03"))
    assert list(cameras.cameras) == list(NAMES)
    assert "lists cameras without tracks: cam02." in cameras.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("camera: {}", "setting camera in .*cameras.yaml. Did you mean 'cameras'", id="key of file"),
        pytest.param("cameras: {cam01: {ofset: 1}, cam02: , cam03: }",
                     "setting cameras.cam01.ofset in .*yaml. Did you mean 'offset'", id="key of a camera"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, minimum: 1}]",
                     "pairs.0.minimum in .* mean 'min'. Known: from, max, min, to", id="key of a pair"),
        pytest.param("cameras: {cam01: , cam2: , cam03: }", "tracks of 'cam02', which is not listed.*Did you mean",
                     id="tracks of a camera that is not listed"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam9, min: 1}]", "pairs.0: there is no camera 'cam9'",
                     id="a pair with an unknown camera"),
        pytest.param(LISTED + "overlapping: [[cam01, cam9]]", "overlapping.0: there is no camera 'cam9'",
                     id="an overlap with an unknown camera"),
        pytest.param(LISTED + "overlapping: [[cam01, cam01]]", "not a pair of cameras", id="an overlap with itself"),
        pytest.param(LISTED + "overlapping: [cam01, cam02]", "overlapping.0='cam01' in .* must be a valid tuple",
                     id="an overlap that is not a pair"),
        pytest.param(LISTED + "pairs: [{from: cam01, min: 1}]", "pairs.0.to in .*yaml is missing", id="a pair of one"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: 5, max: 4}]", "yaml: .*min is 5.0 and max 4.0",
                     id="min above max"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: soon}]",
                     "pairs.0.min='soon' in .* must be a valid number", id="a word for a number"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02}, {from: cam01, to: cam02}]",
                     "pairs.1: from 'cam01' to 'cam02' is given twice", id="a pair given twice"),
        pytest.param(LISTED + "pairs: [{from: cam01, to: cam02, min: 1}]\noverlapping: [[cam01, cam02]]",
                     "min is 1.0 s, but the two overlap", id="overlapping with a positive min"),
        pytest.param(LISTED + "pairs: {from: cam01}", "pairs={.* must be a valid list", id="pairs that are not a list"),
        pytest.param("cameras: [cam01, cam02, cam03]", "cameras=.* must be a valid dictionary", id="cameras as a list"),
        pytest.param("- 1", "must contain `key: value`", id="a list instead of keys"),
        pytest.param("cameras: {cam01: {fps: 0}, cam02: , cam03: }", "cam01.fps=0.* greater than or equal", id="fps"),
        pytest.param("cameras: {cam01: {fps: yes}, cam02: , cam03: }", "fps=True .* valid number", id="a truth value"),
        pytest.param("cameras: {cam01: {offset: .nan}, cam02: , cam03: }", "offset=nan .* finite", id="offset NaN"),
        pytest.param("cameras: {cam01: {drift: 5}, cam02: , cam03: }", "drift=5 .* less than 0.5", id="drift"),
        pytest.param("cameras: {cam01: {size: 640x480}, cam02: , cam03: }", "size='640x480'", id="size as text"),
        pytest.param("cameras: {cam01: {size: [640, 0]}, cam02: , cam03: }", "size.1=0", id="an empty frame"),
        pytest.param("cameras: {cam01: {homography: [1, 2]}, cam02: , cam03: }",
                     "cam01.homography in .*: must be three rows of three", id="not a matrix"),
        pytest.param("cameras: {cam01: {homography: [1, 2, 3, 2, 4, 6, 0, 0, 1]}, cam02: , cam03: }",
                     "be invertible", id="a singular matrix"),
        pytest.param("cameras: {cam01: [", "not valid YAML", id="not YAML"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_key_and_the_value(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_missing_file_and_an_unknown_camera_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="There is no file"):
        read_cameras(tmp_path / "none.yaml", NAMES)
    with pytest.raises(ConfigError, match=r"no camera 'cam1'\. Did you mean 'cam0"):
        Cameras({name: Camera() for name in NAMES})["cam1"]


def test_ground_position_of_the_lower_edge():
    h = np.array([[2, 0, 1], [0, 3, -1], [0, 0.01, 1.0]])
    boxes = np.array([[10, 20, 4, 8], [0, 0, 2, 2.0]])
    got = Camera(homography=h).ground(boxes)
    for place, (x, y, w, height) in zip(got, boxes, strict=True):
        foot = h @ [x + w / 2, y + height, 1]
        assert place == pytest.approx(foot[:2] / foot[2])


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        pytest.param(["cam01", "cam02"], ["cam02", "cam01"], {"cam01": "cam01", "cam02": "cam02"}, id="equal names"),
        pytest.param(["cam01", "cam02"], ["1", "c002"], {"1": "cam01", "c002": "cam02"}, id="equal numbers"),
        pytest.param(["cam01", "cam02"], ["cam01", "2"], {"cam01": "cam01"}, id="one equal name: numbers are not used"),
        pytest.param(["a1b1", "a2b1"], ["1"], {}, id="two cameras with one number"),
        pytest.param(["door", "hall"], ["1", "2"], {}, id="no numbers"),
        pytest.param([], ["1"], {}, id="nothing"),
    ],
)  # fmt: skip
def test_corresponding_cameras(names, others, expected):
    assert same_cameras(names, others) == expected


def test_natural_order_and_camera_numbers():
    assert sorted(["cam10", "cam2", "a", "10", "9"], key=natural_sort_key) == ["9", "10", "a", "cam2", "cam10"]
    assert [last_number(name) for name in ("cam01", "s02_c041", "door")] == [1, 41, None]


def test_seqinfo_gives_frame_rate_and_size_of_sequences(tmp_path):
    for name, text in (("A", "frameRate=30\nimWidth=640\nimHeight=480\nseqLength=600"), ("B", "name=B"), ("C", None)):
        (tmp_path / name / "gt").mkdir(parents=True)
        if text is not None:
            (tmp_path / name / "seqinfo.ini").write_text(f"[Sequence]\n{text}\n")
    cameras = read_sequences(tmp_path, ("A", "B", "C"))
    assert (cameras["A"].fps, cameras["A"].size) == (30, (640, 480))
    assert (cameras["B"].fps, cameras["B"].size, cameras["C"].fps) == (25, None, 25)
    for path in ("A", "A/gt", "A/gt/gt.txt"):
        assert read_sequences(tmp_path / path, ("A",))["A"].fps == 30
    assert read_sequences(tmp_path, ("C",)) is None
    for text, message in (
        ("[Sequence]\nframeRate=0", "framerate='0' in .*A/seqinfo.ini"),
        ("frameRate=30", "cannot be"),
    ):
        (tmp_path / "A" / "seqinfo.ini").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_sequences(tmp_path, ("A",))


@pytest.mark.parametrize("setting", ["fps: 1.0e-300", "fps: 1.0e300", "offset: 1.0e300", "size: [1000000000, 10]"])
def test_absurd_numbers_in_cameras_yaml_are_errors(tmp_path, setting):
    with pytest.raises(ConfigError, match=r"must be (less|greater) than or equal to"):
        read(tmp_path, f"cameras: {{cam01: {{{setting}}}, cam02: , cam03: }}")


def test_the_epoch_is_a_time_with_an_offset(tmp_path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text("epoch: 2026-11-23T08:00:00+01:00\ncameras: {a: {}}\n")
    epoch = read_cameras(path, ["a"]).epoch
    assert epoch is not None
    assert epoch.isoformat() == "2026-11-23T08:00:00+01:00"
    for text in ("2026-11-23T08:00:00", "2026-11-23", "soon"):
        path.write_text(f"epoch: {text}\n")
        with pytest.raises(ConfigError, match=r"epoch.*must be a date and time with an offset"):
            read_cameras(path, ["a"])
