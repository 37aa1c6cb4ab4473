"""Crops of tracks: a table without identities, and a benchmark with them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.core.errors import ConfigError, DataError
from reid.data.layouts import load_benchmark
from reid.data.tracks import Tracks
from reid.embedding.table import Embeddings
from reid.mtmc.track_writers import write_tracks
from reid.pipelines.adapt_data import target_crops
from reid.pipelines.from_tracks import cut_tracks
from reid.pipelines.settings import AdaptSettings, CutSettings

PEOPLE, SHOTS = 8, 3


def colour(person: int) -> np.ndarray:
    """Return BGR."""
    return np.random.default_rng(person).integers(40, 215, 3)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, each person alone in three frames of both, with the last person's last box outside the frame."""
    root = tmp_path_factory.mktemp("recording")
    rows = []
    for camera, name in enumerate(("door", "hall")):
        (root / "videos" / name).mkdir(parents=True)
        for person in range(PEOPLE):
            for shot in range(SHOTS):
                frame = 1 + 10 * person + shot
                image = np.zeros((60, 80, 3), np.uint8)
                image[10:50, 20:40] = colour(person)
                cv2.imwrite(str(root / "videos" / name / f"{frame:06d}.png"), image)
                outside = 100 * (person == PEOPLE - 1 and shot == SHOTS - 1)
                rows.append([camera, person, frame, 20 + outside, 10, 20, 40])
    columns = np.array(rows)
    tracks = Tracks.from_columns(["door", "hall"], *columns[:, :3].T, columns[:, 3:])
    write_tracks(tracks, root / "tracks")
    return root


def test_tracks_without_identities(recording: Path, tmp_path: Path) -> None:
    settings = CutSettings(tracks=recording / "tracks", videos=recording / "videos", per_track=2)
    done = cut_tracks(tmp_path / "crops", settings)
    benchmark = load_benchmark(f"table:{done.table}")
    crops = benchmark.train
    assert len(crops) == done.crops["train"] == 2 * 2 * PEOPLE
    assert set(crops.pids) == {0}
    assert crops.names["camids"] == ("door", "hall")
    assert sorted(zip(crops.camids, crops.tracks, strict=True))[::2] == [(c, t) for c in (0, 1) for t in range(PEOPLE)]
    for path, person in zip(crops.paths, crops.tracks, strict=True):
        image = cv2.imread(path)
        assert image.shape == (40, 20, 3)
        assert np.abs(image.mean(axis=(0, 1)) - colour(int(person))).max() < 3


def test_people_are_divided_by_the_time_at_which_they_appear(recording: Path, tmp_path: Path) -> None:
    options = ["--tracks", str(recording / "tracks"), "--videos", str(recording / "videos"), "--global-ids"]
    done = CliRunner().invoke(main, ["data", "from-tracks", *options, "--test", "0.25", "--out", str(tmp_path / "set")])
    assert done.exit_code == 0, done.output
    assert f"train: {6 * 2 * SHOTS} crops of 6 identities" in done.output
    benchmark = load_benchmark(f"table:{tmp_path / 'set'}")
    assert set(benchmark.train.pids) == set(range(6))
    assert set(benchmark.query.pids) == set(benchmark.gallery.pids) == {6, 7}
    assert benchmark.cross_camera
    assert len(benchmark.query) == 4


def test_a_tree_in_the_layout_of_market1501(recording: Path, tmp_path: Path) -> None:
    options = ["--tracks", str(recording / "tracks"), "--videos", str(recording / "videos"), "--layout", "market1501"]
    out = tmp_path / "set"
    refused = CliRunner().invoke(main, ["data", "from-tracks", *options, "--out", str(out)])
    assert "Add --global-ids" in refused.output
    done = CliRunner().invoke(main, ["data", "from-tracks", *options, "--global-ids", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"market1501:{out}" in done.output.replace("\n", "")
    tree, table = load_benchmark(f"market1501:{out}"), load_benchmark(f"table:{out}")
    assert tree.warnings == ()
    assert sorted(path.name for path in out.iterdir()) == [
        "bounding_box_test",
        "bounding_box_train",
        "query",
        "table.csv",
    ]
    for name in ("train", "query", "gallery"):
        ours, theirs = getattr(tree, name), getattr(table, name)
        rows = {path: row for row, path in enumerate(theirs.paths)}
        order = [rows[path] for path in ours.paths]
        assert len(order) == len(theirs) > 0
        assert np.array_equal(ours.pids, theirs.pids[order] + 1)  # pid 0 is reserved for distractors
        assert np.array_equal(ours.camids, theirs.camids[order] + 1)
        assert np.array_equal(ours.frames, theirs.frames[order])
    assert set(tree.train.pids) == {1, 2, 3, 4}
    assert len(target_crops(AdaptSettings(data=f"market1501:{out}"), tmp_path / "none")) == 4 * 2 * SHOTS


def test_boxes_that_cannot_be_cut_are_counted(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "door").symlink_to(recording / "videos" / "door")
    settings = CutSettings(tracks=recording / "tracks", videos=tmp_path / "videos")
    done = cut_tracks(tmp_path / "crops", settings)
    assert done.crops["train"] == PEOPLE * SHOTS - 1
    assert any("hall" in text and "no video" in text for text in done.warnings)


def test_too_few_people_to_divide_are_an_error(recording: Path, tmp_path: Path) -> None:
    settings = CutSettings(tracks=recording / "tracks", videos=recording / "videos", global_ids=True, test=0.1)
    with pytest.raises(DataError, match="8 people, of whom 1 would be for the test"):
        cut_tracks(tmp_path / "crops", settings)
    assert not (tmp_path / "crops").exists()


def test_crops_to_adapt_to(recording: Path, tmp_path: Path) -> None:
    """Crops of videos are cut once; a table of embeddings names the same crops."""
    inputs = {"tracks": recording / "tracks", "videos": recording / "videos"}
    crops = target_crops(AdaptSettings(**inputs), tmp_path / "crops")
    assert len(crops) == 2 * PEOPLE * SHOTS - 2
    inputs["videos"] = tmp_path / "removed"
    assert target_crops(AdaptSettings(**inputs), tmp_path / "crops").paths.tolist() == crops.paths.tolist()
    names = [str(Path(path).relative_to(tmp_path)) for path in crops.paths]
    columns = {"camids": crops.camids, "tracks": crops.tracks, "frames": crops.frames, "paths": names}
    Embeddings(np.ones((len(crops), 2)), **columns).save(tmp_path / "e.parquet")
    other = target_crops(AdaptSettings(embeddings=tmp_path / "e.parquet", crops=tmp_path), tmp_path / "none")
    assert other.paths.tolist() == crops.paths.tolist()
    assert np.array_equal(other.tracks, crops.tracks)
    with pytest.raises(ConfigError, match="exactly one of"):
        target_crops(AdaptSettings(data="table:x", **inputs), tmp_path / "crops")
    Embeddings(np.ones((1, 2)), paths=["a.jpg"]).save(tmp_path / "few.parquet")
    with pytest.raises(DataError, match="no column camid, track, frame"):
        target_crops(AdaptSettings(embeddings=tmp_path / "few.parquet", crops=tmp_path), tmp_path / "none")
