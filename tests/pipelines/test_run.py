from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.data.videos import Video
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc import Tracks, read_tracks
from reid.report.annotated_video import draw_tracks
from tests.tracking.toys import boxes_at, picture, toy_detector, write_video


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    toy_detector(folder / "toy.onnx")
    save_checkpoint(folder / "best.pt", build_model("light10", height=64, width=32))
    (folder / "videos").mkdir()
    write_video(folder / "videos/a.avi", 12, people=2)
    write_video(folder / "videos/b.avi", 12)
    (folder / "videos/bad.avi").write_bytes(b"")
    return folder


def run(files: Path, out: Path, *words: Any, videos: str = "videos") -> str:
    chosen = ["--detector", files / "toy.onnx", "--model", files / "best.pt", "--workers", "1"]
    arguments = ["run", files / videos, "--out", out, *chosen, *words]
    done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.slow
def test_one_command_from_videos_to_identities(files: Path, tmp_path: Path) -> None:
    text = run(files, tmp_path, "--draw", "--pixelate-heads", "threshold=0.5")
    assert "camera 'bad' is left out" in text
    assert "identities from 3 tracklets" in text
    assert "24 crops embedded (0 of them by an earlier run)" in text
    with (tmp_path / "identities.csv").open() as lines:
        assert {row["camera"] for row in csv.DictReader(lines)} == {"a", "b"}
    assert read_tracks(tmp_path / "tracks").camera_names == ("a", "b")
    assert (tmp_path / "report.html").is_file()
    assert json.loads((tmp_path / "tracked/track.json").read_text())["failed"].keys() == {"bad"}
    drawn = Video(tmp_path / "videos/a.mp4")
    assert drawn.info() == (128, 96, 10, 12)
    again = run(files, tmp_path, "--tracker", "sort")
    assert "crops embedded" in again
    assert "(0 of them by an earlier run)" not in again
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_videos_without_people_give_an_empty_result(files: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "nobody.avi", 5, people=0)
    text = run(files, tmp_path / "out", "--draw", videos=str(tmp_path / "nobody.avi"))
    assert "nobody: no people were found" in text
    assert "0 identities from 0 tracklets" in text


@pytest.mark.slow
def test_cameras_without_given_boxes_are_drawn_too(files: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / "a.txt").write_text("".join(f"{n},-1,{','.join(map(str, boxes_at(n)[0]))},0.9\n" for n in range(3, 9)))
    (boxes / "b.txt").write_text("")
    run(files, tmp_path / "out", "--detections", boxes, "--draw")
    assert {name: Video(tmp_path / f"out/videos/{name}.mp4").info().frames for name in "ab"} == {"a": 12, "b": 12}


def test_drawn_boxes_are_where_the_people_are_and_heads_are_pixelated(tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "a.avi", 6))
    frames = np.arange(2, 5)
    tracks = Tracks.from_columns(["a"], 0 * frames, 0 * frames + 7, frames, [boxes_at(n)[0] for n in frames.tolist()])
    path = draw_tracks(video, tracks, frames.tolist(), tmp_path / "drawn.mp4", fps=5)
    assert Video(path).info() == (128, 96, 5, 3)
    drawn = next(iter(Video(path).read([1]))).image
    x, y, w, h = boxes_at(2)[0]
    assert drawn is not None
    plain = picture(2)
    changed = np.abs(drawn.astype(int) - plain).max(axis=2) > 60
    assert changed[y - 2 : y + h + 2, x - 2 : x + w + 2].mean() > 0.1
    assert changed[:, x + w + 30 :].mean() < 0.02
    hidden = draw_tracks(video, tracks, [2], tmp_path / "hidden.mp4", heads=False)
    assert Video(hidden).info().frames == 1
    assert cv2.VideoCapture(str(hidden)).isOpened()
