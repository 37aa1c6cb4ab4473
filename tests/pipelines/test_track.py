from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import reid.pipelines.track as pipeline
from reid.commands import main
from reid.core.errors import DataError, ModelError, ReidError
from reid.mtmc import read_cameras, read_tracks
from reid.pipelines.run import run_videos
from reid.pipelines.settings import RunSettings, TrackSettings
from reid.pipelines.track import clock_knots, list_cameras, track_videos
from reid.tracking import read_detections
from tests.tracking.toys import (
    SIZE,
    boxes_at,
    picture,
    toy_detector,
    write_images,
    write_stamped_video,
    write_video,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_detector(tmp_path_factory.mktemp("toy") / "toy.onnx")


Run = Callable[..., pipeline.TrackedVideos]


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Run:
    def track(*videos: Path, **keys: Any) -> pipeline.TrackedVideos:
        return track_videos(videos, tmp_path / "out", TrackSettings(**{"detector": str(toy), "workers": 1, **keys}))

    return track


def no_detector(*arguments: Any) -> Any:
    def detect(images: Any) -> Any:
        raise AssertionError("the detector ran")

    real = pipeline_open(*arguments)
    detect.name, detect.batch_size = real.name, 1  # type: ignore[attr-defined]
    return detect


pipeline_open = pipeline.open_detector


def test_videos_become_track_files_that_can_be_matched_and_scored(run: Run, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "door.avi", 12, people=2)
    write_video(videos / "yard.avi", 30, fps=25)
    result = run(videos)
    out = tmp_path / "out"
    assert result.failed == {}
    tracks = read_tracks(out / "tracks")
    assert tracks.camera_names == ("door", "yard")
    door = tracks.take(tracks.camera == 0)
    expected = [(n, *box) for n in range(1, 13) for box in boxes_at(n, 2)]
    assert sorted(zip(door.frame.tolist(), *door.boxes.T.tolist(), strict=True)) == sorted(expected)
    assert len(np.unique(door.track)) == 2
    yard = tracks.frame[tracks.camera == 1]
    assert yard.tolist()[:4] == [1, 3, 6, 8]
    assert (out / "cameras.yaml").read_text() == (
        "cameras:\n  door:\n    fps: 10\n    size: [128, 96]\n  yard:\n    fps: 25\n    size: [128, 96]\n"
    )
    summary = json.loads((out / "track.json").read_text())
    assert summary["tracker"] == "cbiou"
    assert summary["versions"]["trackers"].startswith("2.6")
    assert summary["cameras"]["yard"]["frames"] == 30
    assert summary["cameras"]["yard"]["analysed_frames"] == len(read_detections(out / "detections", "yard").frames)
    assert summary["cameras"]["door"]["frames_per_second"] > 0
    assert str(tmp_path) not in (out / "track.json").read_text()


def test_a_second_run_needs_no_detector(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "door.avi", 12)
    first = run(video)
    monkeypatch.setattr(pipeline, "open_detector", no_detector)
    again = run(video, tracker="bytetrack", floor=0.5)
    assert len(again.tracks) > 0
    same = run(video)
    assert (same.tracks.boxes == first.tracks.boxes).all()
    for changed in ({"rate": 5}, {"detector": str(toy_detector(tmp_path / "toy2.onnx", bias=0.8))}):
        with pytest.raises(AssertionError, match="the detector ran"):
            run(video, **changed)
    write_video(tmp_path / "door.avi", 14)
    with pytest.raises(AssertionError, match="the detector ran"):
        run(video)


def test_an_interrupted_run_continues_with_the_next_camera(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [write_video(tmp_path / f"{name}.avi", 8) for name in ("a", "b")]
    seen = []

    def stop_at_b(*arguments: Any) -> Any:
        detector = pipeline_open(*arguments)

        def detect(images: Any) -> Any:
            if len(seen) == 8:
                raise KeyboardInterrupt
            seen.append(1)
            return detector(images)

        detect.name, detect.batch_size = detector.name, 1  # type: ignore[attr-defined]
        return detect

    monkeypatch.setattr(pipeline, "open_detector", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        run(*videos)
    assert not (tmp_path / "out/track.json").exists()
    assert not (tmp_path / "out/tracks").exists()
    monkeypatch.setattr(pipeline, "open_detector", pipeline_open)
    assert len(run(*videos).tracks) == 16
    assert len(seen) == 8


def test_bad_videos_are_reported_and_the_other_cameras_processed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.avi", 8)
    write_video(videos / "empty.avi", 0)
    write_video(videos / "nobody.avi", 5, people=0)
    write_video(videos / "second.avi", 10, fps=10)
    (videos / "noise.mp4").write_bytes(b"x" * 1000)
    cut = write_video(videos / "cut.avi", 30)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_images(videos / "folder", [2, 3, 5])
    result = run(videos, tmp_path / "missing.mp4", fps=10)
    assert set(result.failed) == {"empty", "missing", "noise"}
    assert set(result.summary) == {"good", "nobody", "second", "cut", "folder"}
    assert result.summary["nobody"]["tracks"] == 0
    assert (tmp_path / "out/tracks/nobody.txt").read_text() == ""
    text = " ".join(capsys.readouterr().out.split())
    for message in (
        "camera 'empty' is left out: No frame of", "camera 'missing' is left out: There is no video",
        "camera 'noise' is left out:", "nobody: no people were found", "cut: it ends after", "folder: 1 of the frame",
    ):  # fmt: skip
        assert message in text, message
    assert json.loads((tmp_path / "out/track.json").read_text())["failed"].keys() == result.failed.keys()
    with pytest.raises(DataError, match=r"noise\.mp4 cannot be opened as a video"):
        run(videos / "noise.mp4")


@pytest.mark.slow
def test_boxes_of_a_4k_video_are_in_its_pixels(run: Run, tmp_path: Path) -> None:
    size = 3840, 2160
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
    for frame in range(1, 4):
        writer.write(cv2.resize(picture(frame), size, interpolation=cv2.INTER_NEAREST))
    writer.release()
    result = run(tmp_path / "a.mp4")
    assert result.summary["a"]["size"] == list(size)
    scale = np.tile(np.divide(size, SIZE), 2)
    expected = [np.multiply(boxes_at(frame)[0], scale) for frame in range(1, 4)]
    assert np.allclose(result.tracks.boxes, expected)
    assert len(np.unique(result.tracks.track)) == 1


def test_another_frame_rate_than_said_is_found_in_the_time_stamps(run: Run, tmp_path: Path) -> None:
    video = write_stamped_video(tmp_path / "a.mp4", (np.arange(12) / 5).tolist())
    found = read_detections_after(run, video, tmp_path, {"header_fps": 20.0})
    assert found == {"fps": 5, "size": [128, 96]}


def test_a_varying_frame_rate_becomes_a_clock(run: Run, tmp_path: Path) -> None:
    times = np.cumsum([0, 0.1, 0.1, 0.1, 0.1, 2.0, 0.1, 0.1, 0.5, 0.1, 0.1])
    video = write_stamped_video(tmp_path / "a.mp4", times.tolist())
    result = run(video)
    assert "the frame rate varies around" in result.summary["a"]["notes"][0]
    cameras = read_cameras(tmp_path / "out/cameras.yaml", ["a"])
    assert np.abs(cameras["a"].seconds(np.arange(1, 12)) - times).max() <= 0.051


def read_detections_after(run: Run, video: Path, tmp_path: Path, meta: dict[str, Any]) -> Any:
    """Track, then change what the header of the video said, track again, and return the camera's entry."""
    run(video)
    file = tmp_path / "out/detections/a.parquet"
    found = read_detections(file.parent, "a")
    found.meta.update(meta)
    found.save(file)
    assert "the header says 20 frames per second, the time stamps 5" in run(video).summary["a"]["notes"][0]
    return yaml.safe_load((tmp_path / "out/cameras.yaml").read_text())["cameras"]["a"]


def test_detections_of_others_replace_the_detector(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "open_detector", no_detector)
    video = write_video(tmp_path / "door.avi", 8)
    given_boxes = tmp_path / "boxes"
    given_boxes.mkdir()
    (given_boxes / "door.txt").write_text(
        "".join(f"{n},-1,{','.join(map(str, boxes_at(n)[0]))},0.9\n" for n in range(1, 9))
    )
    result = run(video, detections=given_boxes)
    assert len(result.tracks) == 8
    assert result.summary["door"]["detector"] == "given"
    assert not (tmp_path / "out/detections").exists()
    with pytest.raises(DataError, match="no detections of camera 'door'"):
        run(video, detections=tmp_path)


def test_unusable_detectors_and_trackers_stop_the_run_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "door.avi", 2)
    with pytest.raises(ModelError, match="no detector"):
        run(video, detector=str(tmp_path / "none.onnx"))
    with pytest.raises(DataError, match=r"There is no folder .*none\."):
        run(video, detections=tmp_path / "none")
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ModelError, match=r"pip install 'reid-toolkit\[video\]'"):
        run(video)
    assert not (tmp_path / "out").exists()


def test_missing_videos_are_reported_before_a_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REID_MODELS_URL", "http://127.0.0.1:9")
    for command in ("track", "run"):
        words = [command, str(tmp_path / "missing.mp4"), "--out", str(tmp_path / "new/out")]
        done = CliRunner().invoke(main, words)
        assert done.exit_code != 0
        assert "There is no video" in " ".join(done.output.split())
        done = CliRunner().invoke(main, [*words, str(write_video(tmp_path / "door.avi", 2))])
        assert done.exit_code != 0
        assert "Cannot download" in " ".join(done.output.split())
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["truth", "cameras", "constraints", "calibration", "model"])
def test_other_files_of_a_run_are_read_before_people_are_detected(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(pipeline, "open_detector", no_detector)
    (tmp_path / "empty.yaml").write_text("cameras: {yard: {fps: 10}}")
    given = {"detector": str(toy), option: tmp_path / ("empty.yaml" if option == "cameras" else "missing")}
    with pytest.raises(ReidError, match="'door'" if option == "cameras" else "missing"):
        run_videos(write_video(tmp_path / "door.avi", 2), tmp_path / "out", RunSettings(**given))
    assert not (tmp_path / "out").exists()


def test_cameras_are_named_like_their_files_and_folders(tmp_path: Path) -> None:
    write_video(tmp_path / "videos.avi", 1)
    (tmp_path / "all").mkdir()
    write_video(tmp_path / "all/cam2.avi", 1)
    write_images(tmp_path / "all/cam1/img1", [1, 2])
    found = list_cameras([tmp_path / "all", tmp_path / "videos.avi"])
    assert {name: video.images is not None for name, video in found.items()} == {
        "cam1": True,
        "cam2": False,
        "videos": False,
    }
    assert list(list_cameras([tmp_path / "all/cam1"])) == ["cam1"]
    with pytest.raises(DataError, match="Two videos are called 'cam2'"):
        list_cameras([tmp_path / "all", tmp_path / "all/cam2.avi"])
    with pytest.raises(DataError, match="There is no video"):
        list_cameras([])


@pytest.mark.slow
def test_worker_processes_give_the_same_tracks(toy: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.avi", 10, people=2)
    (tmp_path / "c.avi").write_bytes(b"")
    videos = [str(tmp_path / f"{name}.avi") for name in "abc"]
    for workers in (1, 2):
        arguments = [
            "track",
            *videos,
            "--detector",
            str(toy),
            "--workers",
            str(workers),
            "--out",
            str(tmp_path / f"out{workers}"),
        ]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        assert "a: 2 tracks, 20 boxes in 10 frames" in " ".join(done.output.split())
    for name in "ab":
        one, two = ((tmp_path / f"out{workers}/tracks/{name}.txt").read_text() for workers in (1, 2))
        assert one == two


@given(st.lists(st.floats(0.01, 3), min_size=1, max_size=40), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_time_between_knots_is_right_within_the_tolerance(steps: list[float], tolerance: float) -> None:
    times = np.cumsum([0, *steps])
    frames = np.arange(len(times)) * 2 + 1
    knots = clock_knots(frames, times, tolerance)
    assert knots[0] == 0
    assert knots[-1] == len(times) - 1
    assert np.abs(np.interp(frames, frames[knots], times[knots]) - times).max() <= tolerance + 1e-9
