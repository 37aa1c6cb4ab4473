"""Nearest neighbours of every item: exact against brute force, FAISS against exact."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from reid import rerank
from reid.core.errors import ConfigError, ReidError
from reid.evaluation import neighbour_search
from reid.evaluation.clustering import cosine_candidates
from reid.evaluation.neighbour_search import chosen_search, find_neighbours
from reid.evaluation.rerank import Reranking, rerank_within
from tests.oracles.evaluation import nearest_by_sorting

SEARCHES = ("exact", "faiss")


@pytest.fixture(autouse=True)
def _faiss(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbour_search, "FLAT_UP_TO", 0)


def people(n: int, size: int, dim: int, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(-(-n // size), dim))[np.arange(n) // size] + noise * rng.normal(size=(n, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("k", [1, 7, 60])
def test_small_sets_are_searched_as_by_sorting(how, k):
    """Whole numbers, with ties and copies; 60 is more than there are."""
    features = np.random.default_rng(k).integers(0, 4, (50, 3)).astype(np.float32)
    features[20:24] = features[3]
    np.testing.assert_array_equal(find_neighbours(features, k, how).nearest, nearest_by_sorting(features, k))


@pytest.mark.parametrize("how", SEARCHES)
def test_one_item_and_equal_items(how):
    alone = find_neighbours(np.ones((1, 4), np.float32), 5, how)
    assert alone.nearest.tolist() == [[0]]
    assert alone.largest.tolist() == [0]
    equal = find_neighbours(np.ones((300, 4), np.float32), 3, how)
    assert equal.nearest[:2].tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
    assert (equal.nearest[:, 0] == np.arange(300)).all()


@pytest.mark.parametrize("how", SEARCHES)
def test_nan_is_refused(how):
    features = people(20, 2, 8)
    features[3, 1] = np.nan
    with pytest.raises(ReidError, match=r"1 of 20 item features contain NaN.*rows 3"):
        find_neighbours(features, 3, how)


@pytest.mark.slow
def test_faiss_finds_the_exact_pairs_of_clustered_features():
    features = people(6000, 8, 64)
    exact, found = (find_neighbours(features, 10, how) for how in SEARCHES)
    assert (found.nearest[:, 0] == np.arange(6000)).all()
    assert all(len(set(row)) == 11 for row in found.nearest.tolist())
    same = exact.nearest[:, 1:, None] // 8 == np.arange(6000)[:, None, None] // 8
    hit = (exact.nearest[:, 1:, None] == found.nearest[:, None, 1:]).any(axis=2)
    assert hit[same[..., 0]].mean() > 0.99
    assert hit.mean() > 0.9
    assert (found.largest <= exact.largest * 1.00001).all()
    assert (found.largest / exact.largest).mean() > 0.9
    again = find_neighbours(features, 10, "faiss")
    np.testing.assert_array_equal(again.nearest, found.nearest)


def test_faiss_compares_all_pairs_of_few_items(monkeypatch):
    monkeypatch.setattr(neighbour_search, "FLAT_UP_TO", 600)
    features = people(600, 4, 64)
    exact, found = (find_neighbours(features, 10, how) for how in SEARCHES)
    np.testing.assert_array_equal(found.nearest, exact.nearest)
    np.testing.assert_allclose(found.largest, exact.largest, rtol=1e-5)


@pytest.mark.slow
def test_copies_that_fill_whole_cells():
    """More copies of an item than a list has places: each list has k + 1 different items, the item itself first."""
    features = people(3000, 5, 16)
    features[1000:2500] = features[0]
    nearest = find_neighbours(features, 12, "faiss").nearest
    assert (nearest[:, 0] == np.arange(3000)).all()
    assert all(len(set(row)) == 13 for row in nearest.tolist())
    copies = np.r_[0, 1000:2500]
    assert np.isin(nearest[copies], copies).all()


def test_auto_is_exact_up_to_a_size_and_on_gpus_and_without_faiss(monkeypatch):
    assert chosen_search("auto", 30_000) == "exact"
    assert chosen_search("auto", 30_001) == "faiss"
    assert chosen_search("auto", 30_001, "cuda") == "exact"
    assert chosen_search("faiss", 2) == "faiss"
    monkeypatch.setattr(neighbour_search, "_faiss", lambda: None)
    assert chosen_search("auto", 30_001) == "exact"


def test_missing_faiss_and_unknown_names_are_errors_with_a_fix(monkeypatch):
    imported = builtins.__import__

    def without_faiss(name, *rest):
        if name == "faiss":
            raise ModuleNotFoundError(name="faiss")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ConfigError, match=r"pip install 'reid-toolkit\[faiss\]'"):
        find_neighbours(np.eye(3, dtype=np.float32), 1, "faiss")
    with pytest.raises(ConfigError, match="neighbour_search"):
        find_neighbours(np.eye(3, dtype=np.float32), 1, "fais")
    with pytest.raises(ConfigError, match="neighbour_search"):
        Reranking(neighbour_search="fais")
    with pytest.raises(ConfigError, match="Camera-aware re-ranking searches exactly"):
        Reranking(neighbour_search="faiss", camera_aware=True)


def test_candidates_leave_out_the_padding_of_short_lists():
    features = people(20, 2, 8)
    found = find_neighbours(features, 3)
    whole = cosine_candidates(features, found)
    found.nearest[:, -1] = -1
    assert 0 < len(cosine_candidates(features, found)) < len(whole)


@pytest.mark.slow
def test_galleries_are_reranked_with_faiss_almost_as_exactly():
    features = people(4000, 8, 64)
    exact, found = (rerank(features[:100], features[100:], neighbour_search=how, k1=8, k2=3) for how in SEARCHES)
    assert np.abs(exact - found).mean() < 0.02
    assert (exact.argmin(axis=1) == found.argmin(axis=1)).mean() > 0.95
    exact, found = (
        rerank_within(features[:500], settings=Reranking(k1=8, k2=3, neighbour_search=how)).distances
        for how in SEARCHES
    )
    assert found.nnz > 0.97 * exact.nnz
