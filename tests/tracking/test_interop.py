from __future__ import annotations

import numpy as np
import pytest
import supervision as sv

from reid import Embedder
from reid.core.errors import DataError
from reid.data.tracks import Tracks
from reid.models import build_model
from reid.tracking import tracks_from_supervision, tracks_to_supervision


def test_tracks_survive_the_way_to_supervision_and_back() -> None:
    rng = np.random.default_rng(0)
    n = 30
    boxes = np.concatenate([rng.uniform(0, 500, (n, 2)), rng.uniform(5, 90, (n, 2))], axis=1)
    tracks = Tracks.from_columns(
        ["a", "b", "c"], np.arange(n) % 2, np.arange(n) // 6, np.arange(n) % 7, boxes, rng.random(n)
    )
    again = tracks_from_supervision({name: tracks_to_supervision(tracks, name) for name in tracks.camera_names})
    assert again.camera_names == tracks.camera_names
    for name in ("camera", "track", "frame", "confidence"):
        assert (getattr(again, name) == getattr(tracks, name)).all()
    assert np.allclose(again.boxes, tracks.boxes)
    assert tracks_to_supervision(tracks, "c") == {}
    with pytest.raises(DataError, match=r"no camera 'd' in the tracks\. Known: a, b, c"):
        tracks_to_supervision(tracks, "d")


def test_detections_without_an_id_are_no_tracks() -> None:
    boxes = np.array([[0, 0, 9, 9], [5, 5, 9, 9]], float)
    without = {1: sv.Detections(boxes), 2: sv.Detections(boxes, tracker_id=np.array([-1, 4])), 3: sv.Detections.empty()}
    assert tracks_from_supervision({"a": without}).track.tolist() == [4]


def test_features_are_those_of_the_crops_in_rgb() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    embedder = Embedder(build_model("light10", height=64, width=32), device="cpu")
    found = sv.Detections(np.array([[10.2, 5, 30, 50], [90, 5, 99, 50], [-5, -5, 20, 20.4]]))
    features = embedder.embed_detections(image, found).data["embedding"]
    crops = [np.ascontiguousarray(image[5:50, 10:30, ::-1]), np.ascontiguousarray(image[:20, :20, ::-1])]
    assert np.allclose(features[[0, 2]], embedder(crops), atol=1e-6)
    assert np.isnan(features[1]).all()
    assert embedder.embed_detections(image, sv.Detections.empty()).data["embedding"].shape == (0, embedder.dimension)
    with pytest.raises(DataError, match=r"float64 \[60, 80, 3\]"):
        embedder.embed_detections(image.astype(float), found)  # type: ignore[arg-type]
