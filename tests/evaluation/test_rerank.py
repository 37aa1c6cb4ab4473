from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from reid.core.errors import ConfigError, DataError, ReidError
from reid.evaluation import (
    Reranking,
    auto_neighbours,
    estimate_identity_size,
    evaluate_distances,
    rerank,
    rerank_blocks,
    rerank_within,
)
from reid.evaluation.features import centred
from reid.evaluation.neighbours import nearest_items
from tests.oracles import rerank_camera_aware_dense, rerank_dense, rerank_within_dense


def normal(n_query, n_gallery, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_query, dim)).astype(np.float32), rng.normal(size=(n_gallery, dim)).astype(np.float32)


def clusters(n_query, n_gallery, dim=6, people=8, spread=0.3, seed=0):
    """People as clouds of points: what re-ranking is for."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dim))
    who = rng.integers(0, people, n_query + n_gallery)
    points = (centres[who] + spread * rng.normal(size=(len(who), dim))).astype(np.float32)
    return points[:n_query], points[n_query:], who[:n_query], who[n_query:]


def with_duplicates():
    query, gallery = normal(6, 40, 5)
    gallery[10:20], gallery[20:23], query[3], query[4] = gallery[:10], gallery[0], gallery[0], gallery[11]
    return query, gallery


def lattice(side, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, side, (8, dim)), rng.integers(0, side, (50, dim))


def crowded(*places):
    """Items so near each other, and so far from the origin, that a float32 product blurs their distances."""
    query, gallery = (0.003 * features for features in normal(12, 60, 8, seed=4))
    for i, place in enumerate(places):
        query[i :: len(places)] += np.float32(place)
        gallery[i :: len(places)] += np.float32(place)
    return query, gallery


def with_an_outlier():
    query, gallery = normal(10, 60, 8, seed=5)
    gallery[7] *= 300
    return query, gallery


CASES = [
    pytest.param(normal(10, 50, 8), id="normal"),
    pytest.param(clusters(12, 70)[:2], id="clusters"),
    pytest.param(normal(10, 50, 300), id="more dimensions than items"),
    pytest.param(normal(1, 50, 8), id="one query"),
    pytest.param(normal(50, 1, 8), id="one gallery item"),
    pytest.param(normal(1, 1, 4), id="one query, one gallery item"),
    pytest.param(normal(4, 9, 4), id="fewer than k1 items"),
    pytest.param(normal(5, 16, 4), id="exactly k1 + 1 items"),
    pytest.param(with_duplicates(), id="duplicates"),
    pytest.param(lattice(3, 3), id="many ties"),
    pytest.param(lattice(5, 4, seed=1), id="ties that a shift by the mean would break"),
    pytest.param((np.ones((3, 4)), np.ones((40, 4))), id="all items are one point"),
    pytest.param((np.full((3, 64), 0.1), np.full((4, 64), 0.1)), id="fewer than k1, all one point"),
    pytest.param((normal(3, 30, 4)[0], np.repeat(normal(3, 2, 4)[1], 30, axis=0)), id="two points, thirty times each"),
    pytest.param((normal(4, 40, 4)[0] * 1e-1, normal(4, 40, 4)[1] * 1e3), id="very different scales"),
    pytest.param(crowded(3.0), id="crowded far from the origin"),
    pytest.param(crowded(0.0, 3.0), id="two crowds"),
    pytest.param(with_an_outlier(), id="an outlier"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [
        pytest.param(20, 6, 0.3, id="the authors' settings"),
        pytest.param(5, 3, 0.3, id="small"),
        pytest.param(7, 1, 0.5, id="odd k1, no query expansion"),
        pytest.param(1, 2, 0.0, id="one neighbour, Jaccard alone"),
        pytest.param(3, 9, 0.9, id="k2 beyond k1"),
        pytest.param(10, 4, 1.0, id="original distance alone"),
    ],
)
def test_equals_the_dense_form(case, k1, k2, lambda_value):
    got = rerank(*case, k1=k1, k2=k2, lambda_value=lambda_value)
    assert got.dtype == np.float32
    assert got.shape == (len(case[0]), len(case[1]))
    np.testing.assert_allclose(got, rerank_dense(*case, k1, k2, lambda_value), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(normal(10, 60, 8), id="normal"),
        pytest.param(clusters(12, 70)[:2], id="clusters"),
        pytest.param(with_duplicates(), id="duplicates"),
    ],
)
def test_cosine_is_euclidean_at_length_one(case):
    got = rerank(*case, metric="cosine")
    np.testing.assert_allclose(got, rerank_dense(*case, 20, 6, 0.3, "cosine"), rtol=0, atol=1e-5)
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in case]
    np.testing.assert_allclose(got, rerank(*unit), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_block_size_changes_nothing(rows):
    case = clusters(20, 100)[:2]
    np.testing.assert_allclose(rerank(*case, memory_limit=rows * 120 * 4), rerank(*case), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_are_the_rows_of_the_whole(rows):
    case = clusters(20, 100)[:2]
    memory_limit = rows * 100 * 4
    starts, blocks = zip(
        *((start, block.copy()) for start, block in rerank_blocks(*case, memory_limit=memory_limit)), strict=True
    )
    assert list(starts) == list(range(0, 20, rows))
    np.testing.assert_allclose(np.concatenate(blocks), rerank(*case), rtol=0, atol=1e-6)


def test_blocks_refuse_bad_settings_before_the_first_is_asked_for():
    with pytest.raises(ReidError, match="k1 must be 1 or more; got 0"):
        rerank_blocks(*normal(3, 9, 4), settings=Reranking(k1=0))


def test_blocks_can_be_scored_as_they_come():
    query, gallery, query_pids, gallery_pids = clusters(60, 400, dim=4, people=20, spread=0.45, seed=3)
    labels = {"query_pids": query_pids, "gallery_pids": gallery_pids, "cross_camera": False}
    whole = evaluate_distances(rerank(query, gallery), **labels)
    assert evaluate_distances(rerank_blocks(query, gallery, memory_limit=2**14), **labels).mAP == pytest.approx(
        whole.mAP, abs=1e-6
    )


@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize(
    "n",
    [
        pytest.param(700, id="rows cut in slabs"),
        pytest.param(1500, id="blocks of the most rows"),
    ],
)
def test_neighbours_of_larger_sets(n, dim):
    rng = np.random.default_rng(n)
    features = rng.integers(0, 9, (n, dim)).astype(np.float32)
    features[n // 2 : n // 2 + 40] = features[:40]
    got = nearest_items(centred(torch.from_numpy(features.copy())), 20, 2**22)
    exact = features.astype(np.int64)
    squared = (exact**2).sum(axis=1)[:, None] + (exact**2).sum(axis=1) - 2 * exact @ exact.T
    np.testing.assert_array_equal(got.largest, squared.max(axis=1))
    np.fill_diagonal(squared, -1)
    np.testing.assert_array_equal(got.nearest, np.argsort(squared, axis=1, kind="stable")[:, :21])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_neighbours_found_by_several_workers(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        test_neighbours_of_larger_sets(3100, 16)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "copies",
    [
        pytest.param(100, id="rounding decides, so they are measured again"),
        pytest.param(700, id="more than are measured again"),
    ],
)
def test_neighbours_in_a_crowd_of_equal_items(copies):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(800, 6)).astype(np.float32)
    features[50 : 50 + copies] = features[50]
    nearest = nearest_items(centred(torch.from_numpy(features.copy())), 10, 2**22).nearest
    np.testing.assert_array_equal(nearest[:, 0], np.arange(800))
    crowd = nearest[50 : 50 + copies]
    assert ((crowd >= 50) & (crowd < 50 + copies)).all()
    assert all(len(set(row)) == 11 for row in crowd.tolist())


def test_items_sorted_so_that_each_block_is_nearer_than_all_before():
    features = np.abs(np.arange(1500) - 1499.0)[:, None] ** 0.5 * np.ones((1, 2))
    nearest = nearest_items(centred(torch.from_numpy(features.astype(np.float32))), 5, 2**18).nearest
    squared = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, -1)
    expected = np.take_along_axis(squared, np.argsort(squared, axis=1)[:, :6], axis=1)
    np.testing.assert_allclose(np.take_along_axis(squared, nearest, axis=1), expected, rtol=1e-3)


def test_torch_features_and_float16():
    query, gallery = (features.astype(np.float16) for features in normal(10, 50, 8))
    expected = rerank(query, gallery)
    np.testing.assert_array_equal(rerank(torch.from_numpy(query), torch.from_numpy(gallery)), expected)
    np.testing.assert_array_equal(rerank(query.astype(np.float64), gallery.astype(np.float64)), expected)


def test_inputs_are_not_modified():
    query, gallery = normal(10, 50, 8)
    copies = query.copy(), gallery.copy()
    rerank(query, gallery)
    np.testing.assert_array_equal(query, copies[0])
    np.testing.assert_array_equal(gallery, copies[1])


def test_it_improves_the_ranking_of_clusters():
    query, gallery, query_pids, gallery_pids = clusters(60, 400, dim=4, people=20, spread=0.45, seed=3)
    plain = ((query[:, None] - gallery[None]) ** 2).sum(axis=2)
    labels = {"query_pids": query_pids, "gallery_pids": gallery_pids, "cross_camera": False}
    before = evaluate_distances(plain, **labels).mAP
    after = evaluate_distances(rerank(query, gallery), **labels).mAP
    assert after > before + 0.02


def test_no_matrix_of_all_pairs_is_built():
    query, gallery, *_ = clusters(50, 3950, people=400)
    tracemalloc.start()
    rerank(query, gallery, memory_limit=2**22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 4000 * 4 / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"k1": 0}, "k1 must be 1 or more; got 0", id="no neighbour"),
        pytest.param({"k2": 0}, "k2 must be 1 or more; got 0", id="nothing to average"),
        pytest.param({"lambda_value": 1.5}, "at most 1; got 1.5", id="weight above 1"),
        pytest.param({"lambda_value": float("nan")}, "at most 1; got nan", id="weight not a number"),
        pytest.param({"metric": "euclid"}, "Did you mean 'euclidean'", id="metric"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        rerank(*normal(3, 9, 4), **settings)


def test_bad_features_are_named():
    query, gallery = normal(3, 9, 4)
    gallery[5, 1] = np.nan
    with pytest.raises(ReidError, match=r"1 of 9 gallery features .*rows 5"):
        rerank(query, gallery)


def test_description_of_the_settings():
    text = Reranking(k1=30, lambda_value=0.25, metric="cosine").describe()
    assert "k1=30, k2=6, λ=0.25" in text
    assert "of L2-normalised features" in text


def cameras(case, n=3, seed=0):
    return np.random.default_rng(seed).integers(0, n, len(case[0]) + len(case[1]))


def by_camera(case, camids):
    return (*case, camids[: len(case[0])], camids[len(case[0]) :])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("k1_intra", "k1_inter", "k2_intra", "k2_inter", "lambda_value"),
    [
        pytest.param(5, 20, 3, 3, 0.3, id="the authors' settings"),
        pytest.param(2, 4, 1, 2, 0.0, id="small, Jaccard alone"),
        pytest.param(1, 3, 4, 6, 0.5, id="k2 beyond k1"),
        pytest.param(3, 5, 2, 0, 0.3, id="expansion in its own camera alone"),
        pytest.param(3, 5, 1, 0, 0.3, id="no expansion"),
    ],
)
def test_camera_aware_equals_the_dense_form(case, k1_intra, k1_inter, k2_intra, k2_inter, lambda_value):
    camids = cameras(case)
    got = rerank(
        *by_camera(case, camids),
        camera_aware=True,
        k1_intra=k1_intra,
        k1=k1_inter,
        k2_intra=k2_intra,
        k2=k2_intra + k2_inter,
        lambda_value=lambda_value,
    )
    expected = rerank_camera_aware_dense(*case, camids, k1_intra, k1_inter, k2_intra, k2_inter, lambda_value)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "camids",
    [
        pytest.param(np.zeros(60, dtype=int), id="one camera"),
        pytest.param(np.arange(60), id="one camera per item"),
        pytest.param(np.r_[7, np.full(59, -2)], id="one item against all, any numbers"),
        pytest.param(np.repeat([3, 1, 2], 20), id="cameras not in order"),
        pytest.param(np.arange(60) % 4 - 1, id="some unknown"),
        pytest.param(np.full(60, -1), id="all unknown"),
        pytest.param(np.r_[np.full(59, 2), -1], id="one unknown"),
    ],
)
def test_camera_aware_with_unusual_cameras(camids):
    case = normal(10, 50, 8)
    got = rerank(*by_camera(case, camids), camera_aware=True)
    np.testing.assert_allclose(got, rerank_camera_aware_dense(*case, camids, 5, 20, 3, 3, 0.3), rtol=0, atol=1e-5)


def test_camera_aware_blocks_are_the_rows_of_the_whole():
    case = clusters(20, 100)[:2]
    given = by_camera(case, cameras(case))
    settings = Reranking(camera_aware=True)
    blocks = [block.copy() for _, block in rerank_blocks(*given, settings=settings, memory_limit=7 * 100 * 4)]
    np.testing.assert_allclose(np.concatenate(blocks), rerank(*given, camera_aware=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("camids", "message"),
    [
        pytest.param(([0, 1], [0] * 9), "query_camids must be one column of 3 rows", id="too few"),
        pytest.param(([0, 1, 2], [0.5] * 9), "gallery_camids must contain integers", id="not integers"),
    ],
)
def test_bad_cameras_are_named(camids, message):
    with pytest.raises(DataError, match=message):
        rerank(*normal(3, 9, 4), *camids, camera_aware=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(np.concatenate(normal(10, 50, 8)), id="normal"),
        pytest.param(np.concatenate(clusters(12, 70)[:2]), id="clusters"),
        pytest.param(np.concatenate(with_duplicates()), id="duplicates"),
        pytest.param(normal(4, 1, 5)[0], id="four items"),
        pytest.param(normal(1, 1, 5)[0], id="one item"),
    ],
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("n_cameras", [pytest.param(None, id="whatever camera"), pytest.param(3, id="by camera")])
def test_within_equals_the_dense_form(case, metric, n_cameras):
    camids = None if n_cameras is None else np.random.default_rng(0).integers(0, n_cameras, len(case))
    aware = camids is not None
    settings = Reranking(k1=6, k2=5 if aware else 3, k1_intra=3, k2_intra=2, metric=metric, camera_aware=aware)
    got = rerank_within(case, camids, settings=settings)
    distances, jaccard, original = rerank_within_dense(case, camids, 6, 3, 3, 2, 0.3, metric)
    stored = np.zeros(jaccard.shape, dtype=bool)
    pairs = got.distances.tocoo()
    stored[pairs.row, pairs.col] = True
    np.testing.assert_array_equal(stored, (jaccard < 1 - 1e-9) & ~np.eye(len(case), dtype=bool))
    np.testing.assert_allclose(pairs.data, distances[pairs.row, pairs.col], rtol=0, atol=1e-5)
    pairs = got.original.tocoo()
    np.testing.assert_allclose(pairs.data, original[pairs.row, pairs.col], rtol=0, atol=1e-5)
    absent = ~stored & ~np.eye(len(case), dtype=bool)
    assert (distances[absent] >= got.absent - 1e-9).all()


def test_within_is_symmetric_and_does_not_modify_its_input():
    features = normal(60, 1, 8)[0]
    copy = features.copy()
    got = rerank_within(features)
    assert abs(got.distances - got.distances.T).max() == 0
    np.testing.assert_array_equal(features, copy)


def test_within_accepts_known_neighbours():
    features = normal(60, 1, 8)[0]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = nearest_items(centred(torch.from_numpy(features.copy())), 15, 2**20)
    settings = Reranking(k1=5, k2=4, metric="cosine")
    got = rerank_within(features, settings=settings, neighbours=found)
    expected = rerank_within(features, settings=settings)
    np.testing.assert_allclose(got.distances.toarray(), expected.distances.toarray(), rtol=0, atol=1e-6)


def test_description_of_the_camera_aware_settings():
    text = Reranking(camera_aware=True, k1_intra=4, lambda_value=0.25).describe()
    assert "k1=4 in the own camera and 20 in others, k2=3 and 3" in text
    assert "λ=0.25" in text


def test_camera_aware_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="k2=2 and k2_intra=3"):
        Reranking(k2=2, camera_aware=True)
    with pytest.raises(DataError, match="Pass query_camids and gallery_camids"):
        rerank(*normal(3, 9, 4), camera_aware=True)


@pytest.mark.parametrize(("size", "found"), [(2, (1.5, 3)), (4, (3, 5)), (8, (6, 10))])
def test_the_size_of_identities_is_estimated_without_labels(size, found):
    rng = np.random.default_rng(size)
    features = np.repeat(rng.normal(size=(60, 32)), size, axis=0)
    features += 0.4 * rng.normal(size=features.shape) + 5.0  # far from the origin, as features of real models
    estimate = estimate_identity_size(features)
    assert found[0] <= estimate <= found[1]
    assert estimate_identity_size(torch.from_numpy(features).float()) == pytest.approx(estimate, rel=0.05)
    assert estimate_identity_size(features[::-1].copy()) == pytest.approx(estimate, rel=1e-6)


@pytest.mark.parametrize("features", [np.ones((1, 4)), np.eye(2), np.ones((5, 3)), np.zeros((4, 2)), np.eye(3)])
def test_the_size_of_identities_of_hardly_any_items_is_a_number(features):
    assert 1 <= estimate_identity_size(features) <= len(features)


def test_automatic_k1_is_that_of_the_estimated_size():
    query, gallery, *_ = clusters(6, 90, people=30, dim=16)
    k1, k2 = auto_neighbours(estimate_identity_size(np.concatenate([query, gallery])))
    assert (k1, k2) != (20, 6)
    expected = rerank(query, gallery, k1=k1, k2=k2, metric="euclidean")
    np.testing.assert_array_equal(rerank(query, gallery, k1="auto", metric="euclidean"), expected)
    blocks = rerank_blocks(query, gallery, settings=Reranking(k1="auto"))
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), expected, atol=1e-6)
    np.testing.assert_array_equal(rerank(query, gallery, k1="auto", k2=1), rerank(query, gallery, k1=k1, k2=1))


@pytest.mark.parametrize("size", [1.0, 2.6, 6.1, 10.0, 1000.0])
def test_automatic_k1_is_between_4_and_that_of_the_authors(size):
    k1, k2 = auto_neighbours(size)
    assert 4 <= k1 <= 20
    assert 1 <= k2 <= 6
    assert auto_neighbours(1000) == (20, 6)


def test_automatic_k1_is_refused_where_it_is_not_defined():
    with pytest.raises(ConfigError, match="k1='auto' is for plain re-ranking"):
        Reranking(k1="auto", camera_aware=True)
    for wrong in ("best", 2.5, None, True):
        with pytest.raises(ConfigError, match="k1 must be a whole number; got"):
            Reranking(k1=wrong)
    with pytest.raises(ConfigError, match="lambda_value"):
        Reranking(lambda_value=None)
    assert Reranking(k1=np.int64(7)).k1 == 7
