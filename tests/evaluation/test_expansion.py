from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.core.errors import ReidError
from reid.evaluation import evaluate, expand_gallery, expand_queries
from tests.oracles import expand_loop


def normal(n_query, n_gallery, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_query, dim)), rng.normal(size=(n_gallery, dim))


def with_duplicates():
    query, gallery = normal(6, 40, 5)
    gallery[10:20], query[3], query[4] = gallery[:10], gallery[0], 2 * gallery[11]
    return query, gallery


CASES = [
    pytest.param(normal(10, 50, 8), id="normal"),
    pytest.param(normal(10, 700, 3), id="rows cut in slabs"),
    pytest.param(normal(1, 1, 4), id="one query, one gallery item"),
    pytest.param(normal(5, 3, 4), id="fewer than k items"),
    pytest.param(with_duplicates(), id="duplicates, at other lengths"),
    pytest.param((np.eye(4), -np.eye(4)), id="opposite and perpendicular: similarities of 0 and below"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("alpha", [pytest.param(0, id="average"), 0.5, 3.0])
def test_queries_equal_the_loop(case, k, alpha):
    got = expand_queries(*case, k=k, alpha=alpha)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expand_loop(*case, k, alpha), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [pytest.param(0, id="average"), 3.0])
def test_gallery_equals_the_loop(case, alpha):
    gallery = case[1][:100]
    expected = expand_loop(gallery, gallery, 4, alpha, within=True)
    np.testing.assert_allclose(expand_gallery(gallery, k=4, alpha=alpha), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first_camera", [0, pytest.param(-1, id="some unknown")])
@pytest.mark.parametrize("n_cameras", [1, 2, 7])
def test_pairs_across_cameras_only(n_cameras, first_camera):
    case = normal(20, 60, 5)
    cameras = np.random.default_rng(1).integers(0, n_cameras, 80) + first_camera
    got = expand_queries(*case, k=4, alpha=2, query_camids=cameras[:20], gallery_camids=cameras[20:])
    expected = expand_loop(*case, 4, 2, cameras[:20], cameras[20:])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_the_block_size_changes_nothing(rows):
    case = normal(20, 100, 6)
    limit = rows * 100 * 4
    np.testing.assert_allclose(expand_queries(*case, memory_limit=limit), expand_queries(*case), rtol=0, atol=1e-6)
    np.testing.assert_allclose(expand_gallery(case[1], memory_limit=limit), expand_gallery(case[1]), rtol=0, atol=1e-6)


def test_torch_features_and_unmodified_inputs():
    case = [features.astype(np.float32) for features in normal(10, 50, 8)]
    copies = [features.copy() for features in case]
    expected = expand_queries(*case)
    np.testing.assert_array_equal(expand_queries(*map(torch.from_numpy, case)), expected)
    np.testing.assert_array_equal(case[0], copies[0])
    np.testing.assert_array_equal(case[1], copies[1])


def test_expansion_improves_the_ranking_of_clusters():
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(20, 8))
    who = rng.integers(0, 20, 460)
    points = centres[who] + 0.9 * rng.normal(size=(460, 8))
    labels = {"query_pids": who[:60], "gallery_pids": who[60:], "cross_camera": False}
    before = evaluate(points[:60], points[60:], **labels).mAP
    gallery = expand_gallery(points[60:])
    after = evaluate(expand_queries(points[:60], gallery), gallery, **labels).mAP
    assert after > before + 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"k": 0}, "k must be 1 or more; got 0", id="no neighbour"),
        pytest.param({"alpha": -1}, "alpha must be 0 or more; got -1", id="negative power"),
        pytest.param({"alpha": float("nan")}, "alpha must be 0 or more; got nan", id="power not a number"),
        pytest.param({"query_camids": [0, 0, 0]}, "for one side only", id="cameras of one side"),
        pytest.param({"query_camids": [0], "gallery_camids": [0] * 9}, "query_camids must be", id="too few cameras"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ReidError, match=message):
        expand_queries(*normal(3, 9, 4), **settings)


def test_a_zero_feature_is_named():
    query, gallery = normal(3, 9, 4)
    gallery[5] = 0
    with pytest.raises(ReidError, match=r"1 of 9 gallery features .*rows 5"):
        expand_queries(query, gallery)
