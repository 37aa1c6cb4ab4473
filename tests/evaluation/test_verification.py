from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from reid.core.errors import ReidError
from reid.evaluation import PairCounts, count_pairs, open_set, pairs, verification, verify
from reid.evaluation.pairs import BINS
from reid.evaluation.verification import score_counts
from tests.evaluation.cases import DIFFICULT, changed, half_unknown, made, squared_distances
from tests.evaluation.test_real_embeddings import load
from tests.oracles import open_set_loop, pairs_loop, weighted_tar_loop


def people(n_ids=8, per_id=5, cameras=3, dim=6, noise=0.7, seed=0):
    """Features, pids from 1 and camids of people about their own points."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, n_ids + 1), per_id)
    features = rng.normal(size=(n_ids, dim))[pids - 1] + noise * rng.normal(size=(len(pids), dim))
    return features.astype(np.float32), pids, rng.integers(1, cameras + 1, len(pids))


def relabelled(case, **columns):
    names = ("features", "pids", "camids")
    return [columns.get(name, column) for name, column in zip(names, case, strict=True)]


def with_junk_and_distractors():
    features, pids, camids = people(seed=3)
    pids = pids.copy()
    pids[::6], pids[1::5] = -1, 0
    return features, pids, camids


CASES = {
    "ordinary": people(),
    "many ties, whole numbers": relabelled(people(), features=made(n_query=40, dim=2, low=0, high=3)[0] + 1),
    "junk and distractors": with_junk_and_distractors(),
    "one identity has one item": relabelled(people(), pids=np.append(people()[1][:-1], 99)),
    "huge and negative codes": relabelled(people(), pids=people()[1] * 2**40 - 2**42, camids=-(2**40) * people()[2]),
    "two cameras": people(cameras=2, seed=4),
    "half of the cameras unknown": relabelled(people(seed=7), camids=half_unknown(people(seed=7)[2])),
    "all cameras unknown": relabelled(people(seed=8), camids=np.full(40, -1)),
    "not in order": [column[np.random.default_rng(5).permutation(40)] for column in people(seed=5)],
    "one number a feature": people(dim=1, seed=6),
    "float64 and far from the origin": relabelled(people(), features=people()[0].astype(np.float64) + 30),
}


def as_counted(counts, kind):
    """Number of pairs below each bin edge."""
    return np.concatenate([[0], np.cumsum(getattr(counts, kind))])


@pytest.mark.parametrize("cross_camera", [True, False], ids=["cross-camera", "any camera"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_counts_are_those_of_the_loop(case, metric, cross_camera):
    counts = count_pairs(*case, metric=metric, cross_camera=cross_camera)
    pairs = pairs_loop(*case, metric=metric, cross_camera=cross_camera)
    for kind, wanted in (
        ("genuine", [d for d, a, b in pairs if a == b]),
        ("impostor", [d for d, a, b in pairs if a != b]),
    ):
        ordered = np.sort(wanted)
        below = as_counted(counts, kind)
        assert below[-1] == len(ordered)
        # Within a bin and the rounding of float32 on either side of each edge.
        slack = 1e-3 if metric == "euclidean" else 1e-5
        assert (below >= np.searchsorted(ordered, counts.edges - slack, "left")).all()
        assert (below[:-1] <= np.searchsorted(ordered, counts.edges[:-1] + slack, "right")).all()
        assert (getattr(counts, kind) >= 0).all()


def test_counts_do_not_depend_on_the_memory_limit():
    case = people(n_ids=6, per_id=8)
    whole = count_pairs(*case)
    for limit in (1, 4000, 10**9):
        part = count_pairs(*case, memory_limit=limit)
        for kind in ("genuine", "impostor"):
            # A distance on a bin's edge may round to either side.
            tested_loss, reference = as_counted(part, kind), as_counted(whole, kind)
            assert tested_loss[-1] == reference[-1]
            assert (tested_loss[:-1] <= reference[1:]).all()
            assert (reference[:-1] <= tested_loss[1:]).all()


def test_no_block_is_above_the_memory_limit(monkeypatch):
    sizes = []
    plain = pairs.LabelledPairs._bins

    def watched(self, rows, columns):
        bins = plain(self, rows, columns)
        sizes.append(bins.numel())
        return bins

    monkeypatch.setattr(pairs.LabelledPairs, "_bins", watched)
    count_pairs(*people(n_ids=30, per_id=5), memory_limit=16 * 1000)
    assert max(sizes) <= 1000


def test_torch_tensors_give_the_same_counts():
    features, pids, camids = people()
    given = count_pairs(torch.from_numpy(features), pids.tolist(), torch.from_numpy(camids))
    assert np.array_equal(given.impostor, count_pairs(features, pids, camids).impostor)


def test_all_items_at_one_point():
    result = verify(np.ones((6, 3)), [1, 1, 2, 2, 3, 3], cross_camera=False, metric="euclidean", bootstrap=0)
    assert result.auc == 0.5
    assert result.eer == pytest.approx(0.5)


def gaussians(n=10**9, same=(0.4, 0.1), different=(0.9, 0.15)):
    """Counts as they are expected of two normal distributions of distance."""
    edges = np.linspace(0, 2, BINS + 1)
    parts = [np.diff(np.rint(n * norm(*spread).cdf(edges))).astype(np.int64) for spread in (same, different)]
    return PairCounts(edges, *parts, "cosine", "made")


def test_scores_of_normal_distributions():
    result = score_counts(gaussians())
    assert result.auc == pytest.approx(norm.cdf(0.5 / math.hypot(0.1, 0.15)), abs=1e-5)
    assert result.auc_within < 1e-4
    # Both errors are equal where the threshold is as many deviations from one mean as from the other.
    assert result.eer == pytest.approx(norm.cdf(-0.5 / 0.25), abs=1e-5)
    assert result.eer_threshold == pytest.approx(0.6, abs=1e-4)
    for point in result.tar:
        threshold = norm(0.9, 0.15).ppf(point.far)
        assert point.threshold == pytest.approx(threshold, abs=2e-4)
        assert point.rate == pytest.approx(norm(0.4, 0.1).cdf(threshold), abs=2e-3)
    precision, recall, at = result.precision_recall()
    half = np.searchsorted(at, 0.4)
    assert recall[half] == pytest.approx(0.5, abs=1e-3)
    assert precision[half] == pytest.approx(0.5 / (0.5 + norm(0.9, 0.15).cdf(0.4)), abs=1e-3)


def test_swapping_genuine_and_impostor_pairs_inverts_the_auc():
    """Swapping genuine and impostor pairs turns the AUC into 1 − AUC."""
    near, far = gaussians(), gaussians(same=(0.9, 0.15), different=(0.4, 0.1))
    assert score_counts(near).auc == pytest.approx(1 - score_counts(far).auc, abs=1e-6)
    assert score_counts(near).auc > 0.95


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_agrees_with_scikit_learn(metric):
    case = people(n_ids=25, seed=8)
    result = verify(*case, metric=metric, bootstrap=0, fars=(0.1, 0.01))
    pairs = pairs_loop(*case, metric=metric)
    labels, scores = [a == b for _, a, b in pairs], [-d for d, _, _ in pairs]
    assert result.auc == pytest.approx(roc_auc_score(labels, scores), abs=result.auc_within + 1e-5)
    far, tar, _ = roc_curve(labels, scores, drop_intermediate=False)
    tested_far, tested_tar, _ = result.roc()
    assert (np.diff(tested_far) >= 0).all()
    assert (tested_far[0], tested_tar[0], tested_far[-1], tested_tar[-1]) == (0, 0, 1, 1)
    highest = tar[np.searchsorted(far, tested_far + 1e-9, "right") - 1]
    lowest = tar[np.searchsorted(far, tested_far - 1e-9, "left")]
    assert (tested_tar <= highest + 0.01).all()
    assert (tested_tar >= lowest - 0.01).all()
    precision, recall, _ = precision_recall_curve(labels, scores)
    tested_precision, tested_recall, _ = result.precision_recall()
    assert auc(tested_recall, tested_precision) == pytest.approx(auc(recall, precision), abs=0.01)
    for point in result.tar:
        assert point.rate == pytest.approx(tar[np.searchsorted(far, point.far, "right") - 1], abs=0.01)


@pytest.mark.slow
def test_intervals_are_those_of_the_slow_bootstrap():
    """With few identities each is one group: the same draws, weighted pair by pair."""
    case = people(n_ids=14, per_id=8, noise=0.9, seed=9)
    fars = (0.2, 0.05)
    result = verify(*case, fars=fars, bootstrap=150, seed=4)
    pairs = pairs_loop(*case)
    draws = np.random.default_rng(4).multinomial(14, np.full(14, 1 / 14), 150)
    for point in result.tar:
        slow = [weighted_tar_loop(pairs, dict(enumerate(weights, 1)), point.far) for weights in draws]
        low, high = np.nanpercentile(slow, [2.5, 97.5])
        assert (point.low, point.high) == pytest.approx((low, high), abs=0.03)
        assert point.low < point.rate < point.high


def test_groups_of_identities_give_similar_intervals(monkeypatch):
    case = people(n_ids=260, per_id=4, noise=0.9, seed=10)

    def widths():
        result = verify(*case, fars=(1e-1, 1e-2, 1e-3), bootstrap=1000)
        return np.array([point.high - point.low for point in result.tar])

    grouped = widths()
    monkeypatch.setattr(verification, "_GROUPS", 10**6)
    assert grouped == pytest.approx(widths(), rel=0.25)


def test_each_distractor_is_one_unit_of_the_bootstrap():
    features, pids, camids = people(n_ids=20, seed=11)
    pids = np.where(pids > 15, 0, pids)
    result = verify(features, pids, camids, fars=(0.1,))
    assert result.tar[0].low < result.tar[0].rate < result.tar[0].high
    assert result.protocol["identities"] == 15 + 25
    assert "pairs among 25 distractors (pid 0) ignored" in result.protocol["pairs"]


def test_rates_with_too_few_pairs_are_none_with_a_note():
    result = verify(*people(), fars=(0.1, 1e-5), bootstrap=20)
    assert result.tar[0].note == ""
    assert result.tar[1].rate is None
    assert "a FAR of 1e-05 needs 1,000,000 impostor pairs; there are " in result.tar[1].note
    stored = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert stored["tar"][1]["rate"] is None
    assert stored["roc"]["far"][0] == 0
    assert stored["roc"]["tar"][-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((np.eye(4), [1, 1, 2, 2]), "need camera ids", id="no cameras"),
        pytest.param((np.eye(4), [1, 1, 2, 2], [1, 1, 1, 1]), "no genuine pair.*in 1 camera,.*--any-camera", id="one"),
        pytest.param(
            (np.eye(4), [1, 2, 3, 4], [1, 2, 1, 2]), "no genuine pair to score: 4 items show 4", id="strangers"
        ),
        pytest.param((np.eye(4), [1, 1, 1, 1], [1, 2, 1, 2]), "no impostor pair", id="one person"),
        pytest.param((np.eye(4), [0, 0, 0, 0], [1, 2, 1, 2]), "no genuine pair", id="distractors only"),
        pytest.param((np.eye(4), [-1, -1, -1, 2], [1, 2, 1, 2]), "at least 2 items.*there are 1", id="junk"),
        pytest.param((np.eye(4), [1, 1, 2], [1, 2, 1, 2]), "pids must be one column of 4 rows", id="lengths"),
        pytest.param((np.zeros((4, 2)), [1, 1, 2, 2], [1, 2, 1, 2]), "only zeros", id="no direction"),
        pytest.param((np.eye(4), [0.5, 1, 2, 2], [1, 2, 1, 2]), "pids must contain integers", id="floats"),
    ],
)
def test_invalid_input_is_reported(arguments, message):
    with pytest.raises(ReidError, match=message):
        verify(*arguments)


def test_far_out_of_range():
    with pytest.raises(ReidError, match="above 0 and below 1; got 0"):
        verify(*people(), fars=(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("cross_camera", [True, False], ids=["cross-camera", "any camera"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("case", DIFFICULT.values(), ids=DIFFICULT.keys())
def test_open_set_is_that_of_the_loop(case, rank, cross_camera, monkeypatch):
    monkeypatch.setattr(pairs, "PAIRS_PER_ERROR", 0)
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = case
    gone = np.unique(query_pids)[::2]
    case = changed(case, gallery_pids=np.where(np.isin(gallery_pids, gone), gallery_pids.max() + 1, gallery_pids))
    distances = np.sqrt(squared_distances(query, gallery))
    labels = (query_pids, case[3], query_camids, gallery_camids)
    threshold, found, n_mated, n_unmated = open_set_loop(distances, *labels, rank, 0.25, cross_camera)
    settings = {"metric": "euclidean", "rank": rank, "cross_camera": cross_camera, "fars": (0.25,)}
    if not n_mated or not n_unmated:
        with pytest.raises(ReidError, match="Open-set scores need queries"):
            open_set(*case, **settings)
        return
    for memory_limit in (1, 2**20):
        result = open_set(*case, **settings, bootstrap=10, memory_limit=memory_limit)
        assert (result.n_mated, result.n_unmated) == (n_mated, n_unmated)
        assert result.points[0].threshold == pytest.approx(threshold, rel=1e-5)
        assert result.points[0].rate == found
        assert 0 <= result.points[0].low <= result.points[0].high <= 1


@pytest.mark.slow
def test_open_set_scores_of_normal_distributions():
    """One gallery item per person, queries at a known distance from it, all other items far away."""
    rng = np.random.default_rng(0)
    n = 2000
    gallery = 20 * np.eye(n)
    gap = np.concatenate([rng.normal(3, 1, n // 2), rng.normal(6, 1, n // 2)])
    pids = np.arange(1, n + 1)
    # The second half of the people are near an item of another identity: they are not enrolled.
    enrolled = np.where(pids > n // 2, pids + n, pids)
    result = open_set(
        gallery + np.diag(gap), gallery, pids, enrolled, metric="euclidean", cross_camera=False, fars=(0.1, 0.01)
    )
    for point in result.points:
        wanted = norm(3, 1).cdf(norm(6, 1).ppf(point.far))
        assert point.rate == pytest.approx(wanted, abs=0.05)
        assert point.low < wanted < point.high
    far, found, threshold = result.curve()
    at = np.searchsorted(threshold, result.points[0].threshold)
    assert (far[at], found[at]) == (pytest.approx(0.1), result.points[0].rate)


def test_when_every_identity_is_in_the_gallery_the_error_suggests_unenrolled():
    case = made(n_query=90, n_gallery=80, ids=10, seed=3)
    with pytest.raises(ReidError, match=r"of 90 with an identity, 90 are.*unenrolled=0\.5"):
        open_set(*case, cross_camera=False)
    result = open_set(*case, cross_camera=False, unenrolled=0.5, fars=(0.3, 1e-3))
    assert result.protocol["identities taken out of the gallery"] == 5
    assert 0 < result.points[0].rate < 1
    assert "needs 10,000 queries who are not in the gallery" in result.points[1].note
    json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"rank": 0}, "rank must be 1 or more; got 0", id="rank"),
        pytest.param({"fars": (1.0,)}, "above 0 and below 1; got 1", id="rate"),
        pytest.param({"unenrolled": 1.0}, "fraction of the query identities", id="everybody out"),
    ],
)
def test_open_set_settings_out_of_range(change, message):
    with pytest.raises(ReidError, match=message):
        open_set(*made(), **change)


def test_open_set_needs_cameras_for_its_rule():
    with pytest.raises(ReidError, match="needs camera ids"):
        open_set(*made()[:4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "auc", "eer", "tar"),
    [
        pytest.param("intel0288", 0.9842, 0.0599, (0.961, 0.826, 0.596, 0.331, 0.122), id="intel0288"),
        pytest.param("osnet_x0_25_msmt17", 0.9672, 0.0931, (0.913, 0.616, 0.300, 0.114, 0.037), id="osnet"),
    ],
)
def test_verification_scores_on_real_embeddings(name, auc, eer, tar):
    case = load(name)
    result = verify(*(np.concatenate(case[i : i + 2]) for i in (0, 2, 4)), bootstrap=0)
    assert result.counts.n_genuine == 166_987
    assert result.counts.n_impostor == 149_329_266
    assert (result.auc, result.eer) == pytest.approx((auc, eer), abs=1e-4)
    assert [point.rate for point in result.tar] == pytest.approx(tar, abs=1e-3)


def test_rates_at_a_threshold_are_those_of_the_loop():
    rng = np.random.default_rng(5)
    features, pids = rng.normal(size=(40, 4)), rng.integers(0, 6, 40)
    result = verify(features, pids, cross_camera=False)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = (1 - unit @ unit.T)[np.triu_indices(40, 1)]
    same = (pids[:, None] == pids)[np.triu_indices(40, 1)]
    for threshold in (0.0, 0.3, 0.8, 1.5, 2.0):
        far, tar = result.rates_at(threshold)
        assert far == pytest.approx((distances[~same] < threshold).mean(), abs=2e-3)
        assert tar == pytest.approx((distances[same] < threshold).mean(), abs=2e-2)
