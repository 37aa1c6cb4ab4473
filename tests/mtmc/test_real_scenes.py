"""Matching real scenes with open trackers never makes them worse. Needs the folder of scenes: `REID_SCENES`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reid.mtmc import Tracklets, match, read_cameras, read_tracks, score_tracks
from reid.mtmc.results import global_tracks
from reid.pipelines.match import read_appearance

ROOT = Path(os.environ.get("REID_SCENES", "missing"))
SCENES = sorted(folder for folder in ROOT.glob("*/*") if (folder / "truth").is_dir())


@pytest.mark.slow
@pytest.mark.skipif(not SCENES, reason="REID_SCENES does not name a folder of scenes")
@pytest.mark.parametrize("scene", SCENES or [ROOT], ids=lambda scene: f"{scene.parent.name}-{scene.name}")
def test_matching_is_never_worse_than_its_input(scene):
    truth, tracks = read_tracks(scene / "truth"), read_tracks(scene / "tracks")
    cameras = read_cameras(scene / "cameras.yaml", tracks.camera_names)
    features, names = scene / "features.parquet", dict(enumerate(tracks.camera_names))
    table = read_appearance(features, tracks).embeddings if features.is_file() else None
    matches = match(Tracklets.from_tracks(tracks, table, cameras, camera_names=names), cameras=cameras)
    before, after = score_tracks(truth, tracks), score_tracks(truth, global_tracks(matches, tracks))
    assert after.overall.IDF1 >= before.overall.IDF1
    assert after.overall.HOTA >= before.overall.HOTA
    for camera, scores in before.per_camera.items():
        assert after.per_camera[camera].IDF1 >= scores.IDF1, camera
