from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reid.mtmc import Tracks
from reid.mtmc.score_causes import find_score_causes, score_with_causes


def walks(rng: np.random.Generator, cameras: int = 2, people: int = 6, frames: int = 60) -> Tracks:
    """People who cross the picture quickly, each in its own direction, with boxes of different sizes."""
    rows, boxes = [], []
    for camera in range(cameras):
        for person in range(people):
            start, speed = rng.uniform(200, 900, 2), rng.choice([-1, 1], 2) * rng.uniform(6, 12, 2)
            size = rng.uniform(40, 60) * np.array([1, 2.5])
            for frame in range(1, frames + 1):
                rows.append((camera, person, frame))
                boxes.append([*(start + frame * speed), *size])
    camera, person, frame = np.array(rows).T
    return Tracks.from_columns([f"cam{i}" for i in range(cameras)], camera, person, frame, np.abs(boxes))


@pytest.fixture(scope="module")
def truth() -> Tracks:
    return walks(np.random.default_rng(0))


def with_boxes(tracks: Tracks, function) -> Tracks:
    return replace(tracks, boxes=function(tracks.boxes))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda t: t.shift_frames(-1), "1 were added to the frame numbers", id="frames from 0"),
        pytest.param(lambda t: t.shift_frames(1), "1 were subtracted from the frame numbers", id="frames from 2"),
        pytest.param(
            lambda t: with_boxes(t, lambda b: np.c_[b[:, :2], b[:, :2] + b[:, 2:]]),
            "the predicted tracks had corners x2, y2", id="corners for sizes",
        ),
        pytest.param(
            lambda t: with_boxes(t, lambda b: np.c_[b[:, :2] + b[:, 2:] / 2, b[:, 2:]]),
            "the predicted tracks had box centres", id="centres",
        ),
        pytest.param(
            lambda t: with_boxes(t, lambda b: b / 1.5), "multiplied by 1.5 (x) and 1.5 (y)", id="1280 for 1920 pixels"
        ),
        pytest.param(
            lambda t: with_boxes(t, lambda b: b * [0.5, 0.8, 0.5, 0.8]), "multiplied by 2 (x) and 1.25 (y)",
            id="a stretched picture",
        ),
        pytest.param(
            lambda t: with_boxes(t, lambda b: b / [1920, 1080, 1920, 1080]), "multiplied by 1.92e+03 (x) and 1.08e+03",
            id="fractions of the picture",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_predicted_tracks_is_named_with_the_score_it_explains(truth, change, expected):
    scores = score_with_causes(truth, change(truth))
    assert scores.overall.IDF1 < 0.95
    cause = scores.causes[0]
    assert expected in cause.describe()
    assert cause.IDF1 > 0.99
    assert scores.as_dict()["causes"][0]["IDF1"] == cause.IDF1


def test_corners_in_the_truth_are_named(truth):
    corners = with_boxes(truth, lambda b: np.c_[b[:, :2], b[:, :2] + b[:, 2:]])
    assert "the truth had corners" in score_with_causes(corners, truth).causes[0].describe()


def test_truth_on_every_fifth_frame_is_named(truth):
    sparse = truth.take(truth.frame % 5 == 0)
    scores = score_with_causes(sparse, truth)
    assert pytest.approx(1 / 3) == scores.overall.IDF1
    assert scores.causes[0].IDF1 == 1
    text = scores.causes[0].describe()
    assert "only the frames in which the truth has boxes counted (every 5th frame, 144 of 720 boxes" in text
    assert (
        "only the frames of the predicted tracks counted (every 5th"
        in score_with_causes(truth, sparse).causes[0].change
    )


def test_good_tracks_have_no_causes(truth):
    rng = np.random.default_rng(1)
    noisy = with_boxes(truth, lambda b: b + rng.normal(size=b.shape))
    assert score_with_causes(truth, noisy).causes == ()
    assert find_score_causes(truth, truth.take([]), 0.0) == []


def test_wrong_identities_are_not_blamed_on_the_files(truth):
    swapped = truth.with_ids(np.where(truth.camera == 1, (truth.track + 1) % 6, truth.track))
    scores = score_with_causes(truth, swapped)
    assert scores.overall.IDF1 < 0.6
    assert scores.causes == ()
