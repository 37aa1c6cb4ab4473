from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from reid.core.errors import DataError, ReidError
from reid.embedding.table import Embeddings
from reid.evaluation import (
    count_pairs,
    evaluate,
    evaluate_distances,
    protocol,
    ranking,
    rerank,
    single_shot_cmc,
    top_matches,
)
from reid.evaluation import features as features_module
from reid.evaluation.features import distance_blocks, prepare_features
from tests.evaluation.cases import DIFFICULT, changed, made, squared_distances
from tests.oracles import average_precision_loop, camera_pair_loop, cmc_loop, match_ranks_loop

EVERY_CASE = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in DIFFICULT.items()])
BOTH_RULES = pytest.mark.parametrize("cross_camera", [True, False], ids=["cross-camera", "any camera"])
BOTH_AP = pytest.mark.parametrize("ap", ["precision", "trapezoid"])


def agrees(result, all_ranks, ap):
    for i, ranks in enumerate(all_ranks):
        if isinstance(ranks, str):
            assert np.isnan(result.ap[i])
            assert np.isnan(result.inp[i])
            assert result.first_match[i] == result.n_matches[i] == 0
        else:
            assert result.ap[i] == pytest.approx(average_precision_loop(ranks, ap), abs=1e-12)
            assert result.inp[i] == pytest.approx(len(ranks) / ranks[-1], abs=1e-12)
            assert (result.first_match[i], result.n_matches[i]) == (ranks[0], len(ranks))
    for k in range(1, len(result.cmc) + 1):
        assert result.cmc[k - 1] == pytest.approx(cmc_loop(all_ranks, k), abs=1e-12)
        assert result.rank(k) == pytest.approx(cmc_loop(all_ranks, k), abs=1e-12)
    reasons = [ranks for ranks in all_ranks if isinstance(ranks, str)]
    assert result.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert (result.n_valid, result.n_dropped) == (len(all_ranks) - len(reasons), len(reasons))


# One query, one row, by hand. Gallery in order of distance: right, wrong, right, wrong, wrong, right.
#   precision: (1/1 + 2/3 + 3/6) / 3 = 13/18
#   trapezoid: ((1 + 1) + (2/3 + 1/2) + (3/6 + 2/5)) / 2 / 3 = 61/90
#   INP: 3/6
HAND = ([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], [7], [7, 8, 7, 8, 9, 7], [1], [2, 2, 3, 1, 1, 3])


@pytest.mark.parametrize(
    ("pids", "camids", "ranks", "precision", "trapezoid"),
    [
        pytest.param(HAND[2], HAND[4], [1, 3, 6], 13 / 18, 61 / 90, id="as written above"),
        pytest.param([8, 7, 8, 8, 8, 8], [2] * 6, [2], 1 / 2, (1 / 2 + 0) / 2, id="one match, second"),
        pytest.param([7, 7, 7, 7, 7, 7], [2] * 6, [1, 2, 3, 4, 5, 6], 1, 1, id="all right"),
        pytest.param([8, 8, 8, 8, 8, 7], [2] * 6, [6], 1 / 6, 1 / 12, id="the last is the only right one"),
        pytest.param([7, 8, 7, 8, 8, 8], [1, 2, 2, 2, 2, 2], [2], 1 / 2, 1 / 4, id="own camera first: left out"),
        pytest.param([8, -1, 7, -1, 8, 7], [1] * 4 + [2, 2], [3], 1 / 3, 1 / 6, id="junk and own camera: left out"),
        pytest.param([8, 0, 7, 0, 0, 8], [1, 1, 2, 1, 2, 2], [3], 1 / 3, 1 / 6, id="distractors are wrong answers"),
        pytest.param([8, 7, 8, 8, 8, 8], [1, 2, 1, 1, 1, 1], [2], 1 / 2, 1 / 4, id="wrong ones in own camera count"),
    ],
)
def test_hand_worked_rankings(pids, camids, ranks, precision, trapezoid):
    for ap, expected in (("precision", precision), ("trapezoid", trapezoid)):
        result = evaluate_distances(HAND[0], HAND[1], pids, HAND[3], camids, ap=ap, max_rank=6)
        assert result.mAP == pytest.approx(expected)
        assert result.mINP == pytest.approx(len(ranks) / ranks[-1])
        np.testing.assert_array_equal(result.cmc, np.arange(1, 7) >= ranks[0])


@pytest.mark.parametrize(
    ("right", "rank"),
    [
        pytest.param(0, 1, id="the first of four equals"),
        pytest.param(2, 3, id="the third of four equals"),
        pytest.param(4, 5, id="farther than the equals"),
    ],
)
def test_equal_distances_rank_in_gallery_order(right, rank):
    pids = np.full(5, 8)
    pids[right] = 7
    result = evaluate_distances([[1.0, 1.0, 1.0, 1.0, 2.0]], [7], pids, [1], [2] * 5)
    assert result.first_match[0] == rank


@EVERY_CASE
@BOTH_RULES
@BOTH_AP
def test_equals_the_loop(case, cross_camera, ap):
    distances = squared_distances(*case[:2])
    ranks = match_ranks_loop(distances, *case[2:], cross_camera=cross_camera)
    settings = {"cross_camera": cross_camera, "ap": ap, "max_rank": 12}
    agrees(evaluate(*case, metric="euclidean", **settings), ranks, ap)
    agrees(evaluate_distances(distances, *case[2:], **settings), ranks, ap)


@pytest.mark.parametrize("offset", [0, 30, 1000])
def test_euclidean_distances_far_from_the_origin_rank_as_in_float64(offset):
    rng = np.random.default_rng(0)
    pids, cameras = np.repeat(np.arange(40), 5), np.arange(200) % 5
    features = (rng.normal(size=(40, 64))[pids] + 0.9 * rng.normal(size=(200, 64)) + offset).astype(np.float32)
    labels = (pids, pids, cameras, cameras)
    exact = evaluate_distances(squared_distances(features, features), *labels)
    assert evaluate(features, features, *labels, metric="euclidean").mAP == exact.mAP
    nearest, distances = top_matches(features, features, *labels, k=1, metric="euclidean", cross_camera=False)
    assert (distances == 0).all()
    np.testing.assert_array_equal(nearest[:, 0], np.arange(200))


@pytest.mark.parametrize(
    "few", [pytest.param(0, id="all in float64"), pytest.param(1, id="each pair from its difference")]
)
def test_near_pairs_far_from_the_origin_are_exact(few, monkeypatch):
    """Two crowds far apart: no single centre is near both."""
    monkeypatch.setattr(features_module, "_FEW", few)
    rng = np.random.default_rng(1)
    crowds = (0.01 * rng.normal(size=(80, 16)) + np.where(np.arange(80) % 2, 500, -500)[:, None]).astype(np.float32)
    query, gallery = prepare_features(crowds[:30], crowds, "euclidean")
    ((_, block),) = distance_blocks(query, gallery, "euclidean", 2**20)
    np.testing.assert_allclose(block, squared_distances(crowds[:30], crowds), rtol=1e-5)


@BOTH_RULES
@EVERY_CASE
def test_counting_smaller_distances_equals_sorting_near_ones_or_all(case, cross_camera, monkeypatch):
    found = []
    for mostly_near, counted in ((1, 0), (-1, 0), (-1, 10**6)):  # near ones sorted, all sorted, counted
        monkeypatch.setattr(ranking, "_MOSTLY_NEAR", mostly_near)
        monkeypatch.setattr(ranking, "_COUNTED_ITEMS", counted)
        found.append(evaluate(*case, metric="euclidean", cross_camera=cross_camera))
    for other in found[1:]:
        np.testing.assert_array_equal(other.ap, found[0].ap)
        np.testing.assert_array_equal(other.first_match, found[0].first_match)


@BOTH_RULES
def test_cosine_equals_the_loop_where_it_is_exact(cross_camera):
    """Features of ±1 in 4 dimensions: lengths are 2, cosines quarters, and there are many ties."""
    case = made(seed=3)
    signs = [np.where(np.random.default_rng(i).random((n, 4)) < 0.5, -1, 1) for i, n in ((0, 12), (1, 60))]
    ranks = match_ranks_loop(1 - signs[0] @ signs[1].T / 4, *case[2:], cross_camera=cross_camera)
    agrees(evaluate(signs[0] * 3, signs[1] * 5, *case[2:], cross_camera=cross_camera), ranks, "precision")


@pytest.mark.parametrize("seed", range(5))
def test_precision_equals_scikit_learn_where_nothing_ties(seed):
    rng = np.random.default_rng(seed)
    case = changed(made(seed=seed, ids=4), query=rng.normal(size=(12, 8)), gallery=rng.normal(size=(60, 8)))
    result = evaluate(*case)
    query, gallery, q_pids, g_pids, q_cams, g_cams = case
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (query, gallery)]
    for i in range(12):
        counted = ~((g_pids == q_pids[i]) & (g_cams == q_cams[i]))
        scores = (unit[1] @ unit[0][i])[counted]
        assert result.ap[i] == pytest.approx(average_precision_score((g_pids == q_pids[i])[counted], scores))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda x: x.astype(np.int8), id="int8"),
        pytest.param(lambda x: x.astype(np.int64), id="int64"),
        pytest.param(lambda x: x.astype(np.float16), id="float16"),
        pytest.param(lambda x: x.astype(">f8"), id="float64 of the other byte order"),
        pytest.param(lambda x: np.asfortranarray(x), id="column by column"),
        pytest.param(lambda x: x[:, ::-1][:, ::-1], id="a view with strides"),
        pytest.param(lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape), id="read-only"),
        pytest.param(lambda x: x.tolist(), id="lists"),
        pytest.param(lambda x: torch.from_numpy(x), id="torch float32"),
        pytest.param(lambda x: torch.from_numpy(x).to(torch.bfloat16), id="torch bfloat16"),
        pytest.param(lambda x: torch.from_numpy(x).short(), id="torch int16"),
        pytest.param(lambda x: torch.from_numpy(x).requires_grad_(), id="torch with a gradient"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_features_of_any_number_type(kind):
    case = made()
    expected = evaluate(*case, metric="euclidean")
    given = changed(case, query=kind(case[0]), gallery=kind(case[1]))
    np.testing.assert_array_equal(evaluate(*given, metric="euclidean").ap, expected.ap)


def test_labels_of_any_integer_type():
    case = made()
    expected = evaluate(*case)
    for kind in (list, torch.from_numpy, lambda x: x.astype(np.uint8)):
        np.testing.assert_array_equal(evaluate(*case[:2], *map(kind, case[2:])).ap, expected.ap)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_on_a_gpu():
    case = made()
    given = changed(case, query=torch.from_numpy(case[0]).cuda(), gallery=torch.from_numpy(case[1]).cuda())
    np.testing.assert_array_equal(evaluate(*given, metric="euclidean").ap, evaluate(*case, metric="euclidean").ap)


def test_inputs_are_not_modified():
    case = made()
    copies = [column.copy() for column in case]
    distances = squared_distances(*case[:2]).astype(np.float32)
    before = distances.copy()
    evaluate(*case)
    evaluate_distances(distances, *case[2:])
    evaluate_distances(torch.from_numpy(distances), *case[2:])
    top_matches(*case)
    for column, copy in zip(case, copies, strict=True):
        np.testing.assert_array_equal(column, copy)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize("rows", [1, 2, 5, 11, 12, 1000])
def test_the_block_size_changes_nothing(rows):
    case = made(dim=3)
    limit = rows * 60 * 4
    for score in (
        lambda limit: evaluate(*case, metric="euclidean", memory_limit=limit),
        lambda limit: evaluate_distances(squared_distances(*case[:2]), *case[2:], memory_limit=limit),
    ):
        whole, blocks = score(2**30), score(limit)
        for column in ("ap", "inp", "cmc", "first_match", "n_matches"):
            np.testing.assert_array_equal(getattr(blocks, column), getattr(whole, column))
        assert blocks.protocol == whole.protocol
    for got, expected in zip(
        top_matches(*case, metric="euclidean", memory_limit=limit), top_matches(*case, metric="euclidean"), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_blocks_stay_under_the_memory_limit(monkeypatch):
    seen = []

    def watched(*arguments):
        for start, block in distance_blocks(*arguments):
            seen.append(block.nbytes)
            yield start, block

    monkeypatch.setattr(protocol, "distance_blocks", watched)
    case = made(n_query=100, n_gallery=500)
    evaluate(*case, memory_limit=16_000)
    assert len(seen) == 13
    assert max(seen) == 16_000
    seen.clear()
    evaluate(*case, memory_limit=1)
    assert seen == [2_000] * 100  # one row is the least


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_contain_the_distances(metric):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(7, 33)), rng.normal(size=(11, 33))
    blocks = distance_blocks(*prepare_features(query, gallery, metric), metric, 2 * 11 * 4)
    got = np.concatenate([block.copy() for _, block in blocks])
    if metric == "euclidean":
        expected = squared_distances(query, gallery)
    else:
        lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
        expected = 1 - query @ gallery.T / lengths
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_gallery_order_does_not_matter_without_ties():
    rng = np.random.default_rng(4)
    case = changed(made(), query=rng.normal(size=(12, 8)), gallery=rng.normal(size=(60, 8)))
    order = rng.permutation(60)
    shuffled = changed(case, gallery=case[1][order], gallery_pids=case[3][order], gallery_camids=case[5][order])
    np.testing.assert_array_equal(evaluate(*shuffled).ap, evaluate(*case).ap)


def test_cmc_longer_than_the_gallery_stays_flat():
    result = evaluate(*made(n_gallery=5, ids=1), max_rank=50)
    assert result.cmc.shape == (50,)
    assert (result.cmc[5:] == 1).all()
    assert result.rank(1000) == 1


def test_result_as_plain_python():
    result = evaluate(*DIFFICULT["unlabelled queries and identities absent from the gallery"], max_rank=7)
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["mAP"] == result.mAP
    assert plain["rank-1"] == result.cmc[0]
    assert plain["cmc"] == result.cmc.tolist()
    assert plain["dropped"] == {"no identity (pid -1)": 3, "identity not in gallery": 2}
    assert plain["queries_used"] + plain["queries_dropped"] == 12
    assert plain["protocol"]["queries"] == 12
    assert plain["protocol"]["metric"] == "cosine distance"
    assert "own identity and camera" in plain["protocol"]["cross-camera"]
    assert plain["protocol"]["average precision"].startswith("precision (")


def test_without_cameras():
    case = made()
    result = evaluate(*case[:4], cross_camera=False)
    assert result.mAP == evaluate(*case, cross_camera=False).mAP
    assert result.protocol["cross-camera"].startswith("off")
    with pytest.raises(ReidError, match="set cross_camera=False"):
        evaluate(*case[:4])


ONE_CAMERA = changed(made(cameras=1), query_pids=np.arange(12) % 3, gallery_pids=np.arange(60) % 3)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(ONE_CAMERA, "12 only in the query's own camera", id="cameras all equal: the reason"),
        pytest.param(ONE_CAMERA, "All items are of one camera \\(1\\)", id="cameras all equal: said so"),
        pytest.param(ONE_CAMERA, "set cross_camera=False", id="cameras all equal: the remedy"),
        pytest.param(changed(made(), query_pids=np.full(12, 99)), "12 identity not in gallery", id="other people"),
        pytest.param(changed(made(), query_pids=np.full(12, -1)), "unlabelled", id="unlabelled queries"),
        pytest.param(changed(made(), gallery_pids=np.full(60, -1)), "None of the 12 queries", id="all junk"),
    ],
)
def test_no_valid_query_is_an_error_that_explains(case, message):
    with pytest.raises(ReidError, match=message):
        evaluate(*case)
    with pytest.raises(ReidError, match=message):
        evaluate_distances(squared_distances(*case[:2]), *case[2:])


def spoiled(rows, value, which):
    case = made(n_query=30, low=1)
    features = case[which].copy()
    features[rows] = value
    return changed(case, **{("query", "gallery")[which]: features})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(spoiled([4, 9], np.nan, 0), "2 of 30 query features .* \\(rows 4, 9\\)", id="NaN"),
        pytest.param(spoiled([59], np.inf, 1), "1 of 60 gallery features .* \\(rows 59\\)", id="infinity"),
        pytest.param(spoiled(list(range(20)), -np.inf, 0), "rows 0, .*, 9, …", id="many: the first ten"),
        pytest.param(spoiled([2], 3e38, 0), "too large for float32", id="squares overflow"),
        pytest.param(spoiled([0, 7], 0, 1), "2 of 60 gallery features contain only zeros.* \\(rows 0, 7", id="zeros"),
        pytest.param(changed(made(), query=np.zeros((12, 8), dtype=complex)), "type complex128", id="complex"),
        pytest.param(changed(made(), query=np.array([["a"] * 8] * 12)), "Pass numbers", id="text"),
        pytest.param(changed(made(), query=np.ones(12)), "shape \\[12\\]; expected \\[N, D\\]", id="flat"),
        pytest.param(changed(made(), gallery=np.ones((0, 8)), gallery_pids=[], gallery_camids=[]), "0, 8", id="empty"),
        pytest.param(changed(made(), query=np.ones((12, 9))), "9 dimensions and gallery features 8", id="widths"),
        pytest.param(changed(made(), query=np.ones((13, 8))), "13 query items but 12 query_pids", id="queries"),
        pytest.param(changed(made(), gallery_pids=[1], gallery_camids=[1]), "60 gallery items but 1", id="gallery"),
        pytest.param(changed(made(), query_camids=[1]), "query_camids must be one column of 12 rows", id="cameras"),
        pytest.param(changed(made(), query_pids=np.ones(12)), "query_pids must contain integers", id="floats"),
        pytest.param(changed(made(), gallery_pids=np.ones((60, 1), int)), "got shape \\[60, 1\\]", id="2-d labels"),
    ],
)
def test_invalid_input_is_reported(case, message):
    with pytest.raises(ReidError, match=message):
        evaluate(*case)
    with pytest.raises(ReidError, match=message):
        top_matches(*case)


def test_zero_features_are_valid_with_the_euclidean_metric():
    case = spoiled([0, 7], 0, 1)
    ranks = match_ranks_loop(squared_distances(*case[:2]), *case[2:])
    agrees(evaluate(*case, metric="euclidean"), ranks, "precision")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"metric": "cosin"}, "Did you mean 'cosine'", id="metric"),
        pytest.param({"ap": "trapezium"}, "Did you mean 'trapezoid'", id="average precision"),
        pytest.param({"max_rank": 0}, "max_rank must be 1 or more; got 0", id="no rank"),
    ],
)
def test_unknown_settings(settings, message):
    with pytest.raises(ReidError, match=message):
        evaluate(*made(), **settings)


def test_rank_0_is_refused():
    with pytest.raises(ReidError, match="rank must be 1 or more"):
        evaluate(*made()).rank(0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_distances_are_named(value):
    case = made()
    distances = squared_distances(*case[:2])
    distances[8, 3] = value
    with pytest.raises(ReidError, match="Distances of query 8"):
        evaluate_distances(distances, *case[2:], memory_limit=3 * 60 * 4)


@pytest.mark.parametrize("shape", [(12,), (12, 61), (11, 60), (0, 60)])
def test_distances_of_another_shape_are_refused(shape):
    with pytest.raises(ReidError):
        evaluate_distances(np.zeros(shape), *made()[2:])


@EVERY_CASE
@BOTH_RULES
@pytest.mark.parametrize("k", [1, 7, 300])
def test_top_matches_equal_a_sorted_row(case, cross_camera, k):
    query, gallery, q_pids, g_pids, q_cams, g_cams = case
    indices, distances = top_matches(*case, k=k, metric="euclidean", cross_camera=cross_camera)
    assert indices.shape == distances.shape == (len(query), k)
    exact = squared_distances(query, gallery)
    for i in range(len(query)):
        expected = [
            g
            for g in sorted(range(len(gallery)), key=lambda g: (exact[i, g], g))
            if g_pids[g] != -1 and not (cross_camera and g_pids[g] == q_pids[i] and g_cams[g] == q_cams[i] != -1)
        ][:k]
        assert indices[i].tolist() == expected + [-1] * (k - len(expected))
        np.testing.assert_allclose(distances[i, : len(expected)], np.sqrt(exact[i, expected]), rtol=1e-6)
        assert np.isposinf(distances[i, len(expected) :]).all()


def test_top_matches_need_at_least_one_place():
    with pytest.raises(ReidError, match="k must be 1 or more; got 0"):
        top_matches(*made(), k=0)


@pytest.mark.slow
@EVERY_CASE
@BOTH_RULES
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9], ids=["empty mask", "some excluded", "most excluded"])
def test_exclusion_masks_equal_the_loop(case, cross_camera, fraction):
    distances = squared_distances(*case[:2])
    excluded = np.random.default_rng(4).random(distances.shape) < fraction
    ranks = match_ranks_loop(distances, *case[2:], cross_camera=cross_camera, excluded=excluded)
    settings = {"cross_camera": cross_camera, "excluded": excluded}
    if all(isinstance(one, str) for one in ranks):
        with pytest.raises(ReidError, match="None of the"):
            evaluate(*case, metric="euclidean", **settings)
    else:
        agrees(evaluate(*case, metric="euclidean", **settings), ranks, "precision")
        agrees(evaluate_distances(distances, *case[2:], **settings), ranks, "precision")


def test_a_mask_that_excludes_every_match_is_reported():
    case = made()
    with pytest.raises(ReidError, match="mask `excluded` removes every right match"):
        evaluate(*case, excluded=np.ones((12, 60), dtype=bool))


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.zeros((12, 59), dtype=bool), id="another shape"),
        pytest.param(np.zeros((12, 60), dtype=int), id="not true or false"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask):
    with pytest.raises(ReidError, match=r"excluded must be a boolean for each pair, \[12, 60\]"):
        evaluate(*made(), excluded=mask)


@EVERY_CASE
@BOTH_RULES
@BOTH_AP
def test_scores_by_camera_pair_equal_the_loop(case, cross_camera, ap):
    distances = squared_distances(*case[:2])
    result = evaluate(*case, metric="euclidean", cross_camera=cross_camera, ap=ap, camera_pairs=True)
    pairs = result.pairs
    np.testing.assert_array_equal(pairs.query_cameras, np.setdiff1d(case[4], -1))
    np.testing.assert_array_equal(pairs.gallery_cameras, np.setdiff1d(case[5][case[3] != -1], -1))
    for i, a in enumerate(pairs.query_cameras):
        for j, b in enumerate(pairs.gallery_cameras):
            ranks = camera_pair_loop(distances, *case[2:], cross_camera, a, b)
            assert pairs.queries[i, j] == len(ranks)
            if not ranks:
                assert np.isnan(pairs.mAP[i, j])
                assert np.isnan(pairs.rank1[i, j])
                continue
            assert pairs.mAP[i, j] == pytest.approx(np.mean([average_precision_loop(one, ap) for one in ranks]))
            assert pairs.rank1[i, j] == pytest.approx(np.mean([one[0] == 1 for one in ranks]))
    json.dumps(result.as_dict(), allow_nan=False)


def test_camera_pairs_need_cameras():
    case = made()
    with pytest.raises(ReidError, match="camera pair need camera ids"):
        evaluate(*case[:4], cross_camera=False, camera_pairs=True)


@EVERY_CASE
@pytest.mark.parametrize("rows", [1, 5, 1000], ids=["row by row", "five rows", "one block"])
def test_distances_may_come_in_blocks(case, rows):
    distances = squared_distances(*case[:2])
    blocks = ((start, distances[start : start + rows]) for start in range(0, len(distances), rows))
    agrees(evaluate_distances(blocks, *case[2:]), match_ranks_loop(distances, *case[2:]), "precision")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        pytest.param([(0, np.zeros((3, 60)))], "end after 3 of 12", id="the last rows are missing"),
        pytest.param([(4, np.zeros((3, 60)))], "expected rows from 0 on", id="the first rows are missing"),
        pytest.param([(0, np.zeros((3, 60))), (0, np.zeros((3, 60)))], "expected rows from 3 on", id="rows twice"),
        pytest.param([(0, np.zeros((13, 60)))], "rows 0 to 13", id="too many rows"),
        pytest.param([(0, np.zeros((12, 59)))], "with 60 columns", id="a column is missing"),
        pytest.param([(0, np.full((12, 60), np.nan))], "query 0 contain NaN", id="NaN"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks, message):
    with pytest.raises(ReidError, match=message):
        evaluate_distances(iter(blocks), *made()[2:])


def test_more_queries_than_are_ranked_together():
    """More queries than are ranked at a time, some without matches between those with them."""
    case = made(n_query=3 * ranking._ROWS + 7, n_gallery=150, ids=90, cameras=2, seed=12)
    agrees(evaluate(*case, metric="euclidean"), match_ranks_loop(squared_distances(*case[:2]), *case[2:]), "precision")


def as_tables(case, **kept):
    """Query and gallery as `Embeddings`."""
    columns = {"pids": 2, "camids": 4}
    return [
        Embeddings(case[side], **{name: case[at + side] for name, at in columns.items() if kept.get(name, True)})
        for side in (0, 1)
    ]


def test_two_embeddings_score_as_their_columns():
    case = made(seed=5)
    tables = as_tables(case)
    np.testing.assert_array_equal(evaluate(*tables).ap, evaluate(*case).ap)
    np.testing.assert_array_equal(top_matches(*tables, k=3)[0], top_matches(*case, k=3)[0])
    np.testing.assert_array_equal(single_shot_cmc(*tables, repeats=3).cmc, single_shot_cmc(*case, repeats=3).cmc)
    np.testing.assert_array_equal(rerank(*tables), rerank(*case[:2]))
    aware = rerank(*case[:2], *case[4:], camera_aware=True)
    np.testing.assert_array_equal(rerank(*tables, camera_aware=True), aware)
    assert evaluate(*as_tables(case, camids=False), cross_camera=False).mAP == evaluate(*case, cross_camera=False).mAP


def test_one_table_counts_pairs_as_its_columns():
    case = made(n_query=40)
    table = as_tables(case)[0]
    expected = count_pairs(case[0], case[2], case[4])
    np.testing.assert_array_equal(count_pairs(table).impostor, expected.impostor)
    with pytest.raises(DataError, match="There are no pids"):
        count_pairs(as_tables(case, pids=False)[0])
    with pytest.raises(DataError, match="Pass Embeddings only"):
        count_pairs(table, case[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(as_tables(made(), pids=False), "query has no pids. Pass query_pids", id="no pids"),
        pytest.param(as_tables(made(), camids=False), "needs camera ids. Pass query_camids", id="no cameras"),
        pytest.param((as_tables(made())[0], made()[1]), "Pass Embeddings only", id="table and array"),
        pytest.param((*as_tables(made()), made()[2]), "Pass Embeddings only", id="tables and a column"),
    ],
)
def test_embeddings_that_cannot_be_scored(arguments, message):
    with pytest.raises(DataError, match=message):
        evaluate(*arguments)
