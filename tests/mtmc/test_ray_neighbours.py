"""Neighbours that a cluster finds in shares are those of one process. Nothing here needs Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.config import MatchSettings
from reid.core.errors import ConfigError, DataError
from reid.evaluation import neighbours
from reid.evaluation.neighbour_search import find_neighbours
from reid.evaluation.neighbours import merge_edges, nearest_in_part, nearest_items
from reid.mtmc import Tracklets, match, ray_neighbours
from reid.mtmc.ray_neighbours import SharedFeatures, find_neighbours_on_ray
from reid.pipelines.match import match_files
from reid.pipelines.settings import MatchFiles
from tests.embedding.test_units import OneByOne


def draw(kind, n, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, 8)).astype(np.float32)
    if kind == "duplicates":
        features = features[rng.integers(0, max(1, n // 6), n)]
    if kind == "grid":
        features = rng.integers(0, 2, (n, 8)).astype(np.float32)
    return features


@pytest.mark.parametrize("kind", ["random", "duplicates", "grid"])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 3), (60, 1), (61, 4), (130, 7)])
def test_parts_equal_the_whole(monkeypatch, kind, n, count):
    monkeypatch.setattr(neighbours, "_ROWS", 16)
    x = torch.from_numpy(draw(kind, n))
    k = min(5, n - 1)
    expected = nearest_items(x, k, 2**20)
    parts = [nearest_in_part(x, k, part, count, 2**20) for part in range(count)]
    found = merge_edges(x, k, parts[::-1])
    np.testing.assert_array_equal(found.nearest, expected.nearest)
    np.testing.assert_allclose(found.largest, expected.largest, rtol=1e-6)
    assert sum(len(part.item) for part in parts) < n * n or n < 10


def test_search_on_a_cluster(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "_ROWS", 16)
    monkeypatch.setattr(ray_neighbours, "ROWS_PER_PART", 30)
    features, folder = draw("random", 100), tmp_path / "neighbours"
    opened = []

    class Cluster(OneByOne):
        def run(self, work, units, place, meta):
            opened.append(len(units))
            self.embedder = SharedFeatures(folder.absolute() / "features.npy")
            super().run(work, units, place, meta)

    found = find_neighbours_on_ray(features, 7, folder=folder, cluster=Cluster())
    expected = find_neighbours(features, 7)
    np.testing.assert_array_equal(found.nearest, expected.nearest)
    assert opened == [4]
    assert not folder.exists()
    with pytest.raises(DataError, match="Put --out on a disk that every machine can read"):
        SharedFeatures(tmp_path / "features.npy")


@pytest.mark.slow
def test_identities_do_not_depend_on_where_neighbours_are_found(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 32)
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((40, 16)), 4, axis=0) + 0.3 * rng.standard_normal((160, 16))
    camera, number = np.tile(np.arange(4), 40), np.repeat(np.arange(40), 4)
    columns = {"camera": camera, "track": number, "frame": 10 * number + 3, "features": features.astype(np.float32)}
    tracklets = Tracklets.from_features(["a", "b", "c", "d"], **columns)

    def search(features, k):
        x = torch.from_numpy(features - features.mean(axis=0))
        return merge_edges(x, k, [nearest_in_part(x, k, part, 3, 2**20) for part in range(3)])

    one, other = match(tracklets), match(tracklets, search=search)
    np.testing.assert_array_equal(one.identity, other.identity)
    assert one.threshold == pytest.approx(other.threshold, abs=1e-6)
    assert one.protocol["distance"] == other.protocol["distance"]


def test_approximate_search_is_refused_on_ray(tmp_path):
    with pytest.raises(ConfigError, match="--engine ray searches exactly"):
        match_files(MatchFiles(tracks=tmp_path, engine="ray"), tmp_path / "o", MatchSettings(neighbour_search="faiss"))
