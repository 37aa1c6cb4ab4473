"""Solvers against slow and obvious ones, and the guarantee: no solver ever breaks a rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, fcluster, linkage

from reid.core.errors import ReidError
from reid.evaluation.clustering import Candidates, cosine_candidates, find_neighbours, select_threshold
from reid.mtmc import Camera, Cameras, Constraints, find_violations
from reid.mtmc.candidates import CameraWhitening, pair_distances, reranked_candidates
from reid.mtmc.constraints import compile_rules
from reid.mtmc.solvers import (
    Clusters,
    agglomerative,
    apply_must_links,
    correlation,
    decision_distances,
    hungarian,
    move_single_tracklets,
    reassign,
    single_linkage,
)
from reid.mtmc.thresholds import fit_odds
from tests.mtmc.synthetic_tracklets import tracklets_of


def rules_of(n, *, camera=None, start=None, end=None, cameras=None, constraints=None):
    camera = np.zeros(n, int) if camera is None else camera
    start = np.arange(n) * 10.0 if start is None else start
    end = start + 5 if end is None else end
    return compile_rules(tracklets_of(camera, start, end), cameras, constraints)


def candidates_of(matrix, far=1.0, fraction=1.0, seed=0):
    """Candidates of a full matrix, each kept with the chance `fraction`."""
    n = len(matrix)
    first, second = np.triu_indices(n, 1)
    keep = np.random.default_rng(seed).random(len(first)) < fraction
    first, second = first[keep], second[keep]
    return Candidates(first, second, matrix[first, second].astype(np.float32), far, n)


def random_distances(n, seed, groups=5):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(groups, 3))[rng.integers(0, groups, n)] + 0.4 * rng.normal(size=(n, 3))
    matrix = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.float32(matrix / matrix.max()).astype(float)


def replay(clusters, joins, threshold):
    for distance, kept, removed in zip(joins.distance, joins.kept, joins.removed, strict=True):
        if distance <= threshold:
            clusters.join(kept, removed)


def partition(of):
    return sorted(sorted(np.flatnonzero(np.asarray(of) == c).tolist()) for c in np.unique(of))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5])
def test_average_linkage_equals_scipy(seed, threshold):
    matrix = random_distances(40, seed)
    clusters = Clusters(rules_of(40))
    agglomerative(candidates_of(matrix), clusters, threshold)
    want = fcluster(linkage(matrix[np.triu_indices(40, 1)], "average"), threshold, "distance")
    assert partition(clusters.labels) == partition(want)


def slow_average_linkage(matrix, rules, threshold):
    groups = [[row] for row in range(len(matrix))]
    while True:
        best = None
        for a, b in itertools.combinations(range(len(groups)), 2):
            if rules.allow(np.array(groups[a]), np.array(groups[b])):
                value = matrix[np.ix_(groups[a], groups[b])].mean()
                if value <= threshold and (best is None or value < best[0]):
                    best = (value, a, b)
        if best is None:
            return sorted(sorted(group) for group in groups)
        groups[best[1]] += groups.pop(best[2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_constrained_sparse_average_linkage_against_a_slow_one(seed):
    """Pairs that are no candidates count as far; every pair of members must be allowed."""
    rng = np.random.default_rng(seed)
    n = 25
    matrix = random_distances(n, seed) + rng.random((n, n)) * 1e-4
    matrix = (np.triu(matrix, 1) + np.triu(matrix, 1).T).astype(np.float32).astype(float)
    start = rng.uniform(0, 60, n)
    rules = rules_of(n, camera=rng.integers(0, 3, n), start=start, end=start + rng.uniform(0, 10, n))
    found = candidates_of(matrix, far=1.0, fraction=0.6, seed=seed)
    whole = np.ones((n, n))
    whole[found.first, found.second] = whole[found.second, found.first] = found.distance
    clusters = Clusters(rules)
    agglomerative(found, clusters, 0.5)
    assert partition(clusters.labels) == slow_average_linkage(whole, rules, 0.5)


def test_a_join_is_refused_if_one_pair_of_members_is_forbidden():
    """0 and 2 are simultaneous; 1 is close to both. One compatible pair is not enough."""
    rules = rules_of(3, start=np.array([0.0, 20.0, 1.0]), end=np.array([5.0, 25.0, 6.0]))
    matrix = np.array([[0, 0.1, 0.3], [0.1, 0, 0.2], [0.3, 0.2, 0]])
    for solve in (agglomerative, single_linkage, hungarian):
        clusters = Clusters(rules)
        solve(candidates_of(matrix), clusters, 0.9)
        assert partition(clusters.labels) == [[0, 1], [2]], solve.__name__


def test_joins_up_to_a_lower_threshold_are_those_of_that_threshold():
    matrix = random_distances(50, 3)
    whole = Clusters(rules_of(50))
    joins = agglomerative(candidates_of(matrix, fraction=0.7), whole, 0.9)
    for threshold in (0.05, 0.2, 0.4, 0.9):
        again, cut = Clusters(rules_of(50)), Clusters(rules_of(50))
        agglomerative(candidates_of(matrix, fraction=0.7), again, threshold)
        replay(cut, joins, threshold)
        assert (again.labels == cut.labels).all()


def random_world(seed, n=60):
    """Difficult times, cameras, travel, places, decisions; distances that know nothing of them."""
    rng = np.random.default_rng(seed)
    names = ("cam01", "cam02", "cam03", "cam04")
    camera = rng.integers(0, 4, n)
    start = rng.integers(0, 80, n) / 2
    place = rng.uniform(0, 30, (n, 2))
    tracklets = tracklets_of(camera, start, start + rng.integers(0, 10, n) / 2, names=names, entry=place, leave=place)
    travel = {(a, b): (float(rng.uniform(0, 8)), 30.0) for a in names for b in names if rng.random() < 0.4}
    cameras = Cameras(
        {name: Camera() for name in names}, transition_times=travel, overlaps_known=bool(rng.random() < 0.5)
    )
    keys = [(names[camera[row]], row, -1) for row in range(n)]
    pairs = rng.integers(0, n, (6, 2))
    cannot = tuple((keys[a], keys[b]) for a, b in pairs[:5] if a != b)
    free = Constraints(cannot_link=cannot, tolerance=0.5, max_speed=6.0 if rng.random() < 0.5 else None)
    rules = compile_rules(tracklets, cameras, free)
    first, second = np.triu_indices(n, 1)
    allowed = np.flatnonzero(rules.violations(first, second) == 0)[:1]
    must = tuple((keys[first[row]], keys[second[row]]) for row in allowed)
    constraints = Constraints(cannot, must, free.tolerance, free.max_speed)
    return tracklets, cameras, constraints, candidates_of(random_distances(n, seed, groups=4), fraction=0.8, seed=seed)


@pytest.mark.parametrize("block", [4, 2**20])
def test_pairs_of_clusters_may_join_as_checked_one_by_one(block, monkeypatch):
    """Pairs of clusters are checked in blocks of pairs of members; joins keep labels and members consistent."""
    monkeypatch.setattr("reid.mtmc.solvers._PAIRS_PER_BLOCK", block)
    tracklets, cameras, constraints, _ = random_world(3)
    rng = np.random.default_rng(0)
    clusters = Clusters(compile_rules(tracklets, cameras, constraints), rng.integers(0, 45, len(tracklets)))
    filled = rng.permutation(np.unique(clusters.labels))
    kept, removed = np.sort(filled[: len(filled) // 2 * 2].reshape(2, -1), axis=0)
    members = {number: np.flatnonzero(clusters.labels == number) for number in filled.tolist()}
    want = [clusters.rules.allow(members[a], members[b]) for a, b in zip(kept.tolist(), removed.tolist(), strict=True)]
    assert clusters.join_each(kept, removed).tolist() == want
    assert 0 < sum(want) < len(want)
    for a, b, joined in zip(kept.tolist(), removed.tolist(), want, strict=True):
        assert set(clusters.members[a]) == set(members[a]) | (set(members[b]) if joined else set())
        assert (clusters.labels[clusters.members[a]] == a).all()


def solve_correlation(candidates, clusters):
    costs = Candidates(
        candidates.first,
        candidates.second,
        (10 * (candidates.distance - 0.4)).astype(np.float32),
        6.0,
        len(clusters.labels),
    )
    correlation(costs, clusters)


SOLVE = {
    "agglomerative": lambda c, k: agglomerative(c, k, 0.5),
    "single_linkage": lambda c, k: single_linkage(c, k, 0.5),
    "hungarian": lambda c, k: hungarian(c, k, 0.5),
    "correlation": solve_correlation,
    "single_linkage, reassigned": lambda c, k: (single_linkage(c, k, 0.5), reassign(c, k, 0.4)),
    "hungarian, reassigned": lambda c, k: (hungarian(c, k, 0.5), reassign(c, k, 0.4)),
    "agglomerative, reassigned": lambda c, k: (agglomerative(c, k, 0.7), reassign(c, k, 0.4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVE)
def test_no_solver_breaks_a_rule(solver):
    together = 0
    for seed in range(25):
        tracklets, cameras, constraints, candidates = random_world(seed)
        clusters = Clusters(compile_rules(tracklets, cameras, constraints))
        apply_must_links(clusters)
        SOLVE[solver](candidates, clusters)
        assert find_violations(tracklets, clusters.labels + 1, cameras, constraints) == []
        assert sorted(row for rows in clusters.members for row in rows) == list(range(len(tracklets)))
        assert all((clusters.labels[rows] == number).all() for number, rows in enumerate(clusters.members) if len(rows))
        together += len(tracklets) - len(np.unique(clusters.labels))
        # The same again is the same.
        again = Clusters(compile_rules(tracklets, cameras, constraints))
        apply_must_links(again)
        SOLVE[solver](candidates, again)
        assert (again.labels == clusters.labels).all()
    assert together > 200, "they do join"


def test_a_must_link_that_breaks_a_rule_is_an_error():
    constraints = Constraints(must_link=((("cam01", 0, -1), ("cam01", 1, -1)),))
    rules = compile_rules(tracklets_of([0, 0], [0, 3], [5, 9]), None, constraints)
    with pytest.raises(ReidError, match="camera cam01, track 0 and camera cam01, track 1 are must-linked"):
        apply_must_links(Clusters(rules))


def test_hungarian_gives_each_one_successor():
    """Both of camera 1 are nearest to 2; the total decides, as in the textbook."""
    tracklets = tracklets_of([0, 0, 1, 1], [0, 1, 20, 21], [5, 6, 25, 26])
    matrix = np.ones((4, 4))
    matrix[0, 2], matrix[0, 3], matrix[1, 2], matrix[1, 3] = 0.1, 0.2, 0.15, 0.5
    matrix = np.minimum(matrix, matrix.T)
    clusters = Clusters(compile_rules(tracklets))
    hungarian(candidates_of(matrix), clusters, 0.6)
    assert partition(clusters.labels) == [[0, 3], [1, 2]]


def total_cost(costs, of):
    n = costs.tracklets
    matrix = np.full((n, n), costs.far)
    matrix[costs.first, costs.second] = matrix[costs.second, costs.first] = costs.distance
    same = of[:, None] == of[None]
    return matrix[np.triu(same, 1)].sum()


@pytest.mark.parametrize("seed", range(10))
def test_correlation_clustering_of_few_is_near_the_best_of_all_partitions(seed):
    rng = np.random.default_rng(seed)
    n = 7
    truth = rng.integers(0, 3, n)
    matrix = np.where(truth[:, None] == truth[None], -1.0, 1.0) + rng.normal(0, 0.9, (n, n))
    costs = candidates_of(matrix, far=2.0, fraction=0.9, seed=seed)
    clusters = Clusters(rules_of(n))
    correlation(costs, clusters)

    def partitions(labels, used):
        if len(labels) == n:
            yield np.array(labels)
            return
        for label in range(used + 1):
            yield from partitions([*labels, label], max(used, label + 1))

    best = min(total_cost(costs, of) for of in partitions([0], 1))
    got = total_cost(costs, clusters.labels)
    assert got <= 0
    assert got <= 0.85 * best
    before = clusters.labels.copy()
    assert move_single_tracklets(costs, clusters, lambda total, count: -total) == 0
    assert (clusters.labels == before).all()


@pytest.mark.parametrize("seed", range(4))
def test_silhouettes_equal_scikit_learn(seed):
    from sklearn.metrics import silhouette_score

    matrix = random_distances(40, seed)
    np.fill_diagonal(matrix, 0)
    found = candidates_of(matrix)
    joins = agglomerative(found, Clusters(rules_of(40)), 0.96)
    choice = select_threshold(found, np.arange(40), joins)
    for place in range(0, len(choice.thresholds), 8):
        clusters = Clusters(rules_of(40))
        replay(clusters, joins, choice.thresholds[place])
        if 1 < len(np.unique(clusters.labels)) < 40:
            want = silhouette_score(matrix, clusters.labels, metric="precomputed")
            assert choice.silhouettes[place] == pytest.approx(want, abs=1e-6)


def test_odds_fall_with_distance_and_recover_a_known_line():
    rng = np.random.default_rng(0)
    distance = rng.random(20_000)
    joined = rng.random(20_000) < 1 / (1 + np.exp(-(6 - 12 * distance)))
    odds = fit_odds(distance, joined, 0.3)
    assert odds == pytest.approx((6, -12), rel=0.05)
    few = fit_odds(distance[:5], joined[:5], 0.3)
    assert few[0] + few[1] * 0.3 == pytest.approx(0)


@pytest.mark.parametrize(("n", "k"), [(40, 5), (3, 9), (2, 1)])
def test_neighbours_and_cosine_candidates_equal_a_full_matrix(n, k):
    rng = np.random.default_rng(n)
    features = rng.normal(size=(n, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    matrix = 1 - features @ features.T
    found = cosine_candidates(features, find_neighbours(features, k))
    want = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(n)
        for j in np.argsort(np.where(np.arange(n) == i, np.inf, matrix[i]), kind="stable")[: min(k, n - 1)]
    }
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == want
    assert found.distance == pytest.approx(matrix[found.first, found.second], abs=1e-5)
    first, second = np.triu_indices(n, 1)
    there = pair_distances(found, second, first)
    known = [(a, b) in want for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert there == pytest.approx(np.where(known, matrix[first, second], found.far), abs=1e-5)


def test_reranked_distances_separate_groups():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(12), 6)
    features = rng.normal(size=(12, 24))[person] + 0.7 * rng.normal(size=(72, 24))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    found = reranked_candidates(features, find_neighbours(features, 15), 6)
    same = person[found.first] == person[found.second]
    assert found.distance[same].max() < found.distance[~same].min()
    assert found.distance.min() >= 0


def test_camera_whitening_removes_the_bias_and_follows_its_formula():
    rng = np.random.default_rng(0)
    people, cameras = 60, 3
    face = rng.normal(size=(people, 20))
    light = 6 * rng.normal(size=(cameras, 20))
    person, camera = (column.reshape(-1) for column in np.mgrid[:people, :cameras])
    features = face[person] + light[camera] + 0.3 * rng.normal(size=(len(person), 20))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)

    def right(x):
        product = x @ x.T
        product[camera[:, None] == camera[None]] = -9
        return (person[product.argmax(axis=1)] == person).mean()

    whitening = CameraWhitening().fit(features, camera)
    clean = whitening.transform(features, camera)
    assert np.linalg.norm(clean, axis=1) == pytest.approx(1, abs=1e-5)
    assert right(features) < 0.5
    assert right(clean) > 0.95
    # The formula, written out, for one camera of many tracklets.
    rows = camera == 1
    n, prior = rows.sum(), 10.0
    middle = features.sum(axis=0) / (len(features) + prior)
    means = {c: (features[camera == c].sum(axis=0) + prior * middle) / ((camera == c).sum() + prior) for c in range(3)}
    moved = features - np.array([means[c] for c in camera])
    spread = (moved[rows].T @ moved[rows] + prior * moved.T @ moved / len(moved)) / (n + prior)
    values, vectors = np.linalg.eigh(spread.astype(float))
    want = moved[rows] @ (vectors / np.sqrt(values + values.mean())) @ vectors.T
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert clean[rows] == pytest.approx(want, abs=1e-3)
    unseen = whitening.transform(features[:2], np.array([7, 7]))
    assert np.isfinite(unseen).all()


def test_tracklets_of_an_unknown_camera_are_whitened_as_those_of_an_unseen_one():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    camera = np.arange(30) % 3 - 1
    whitening = CameraWhitening().fit(features, camera)
    unseen = whitening.transform(features, np.where(camera == -1, 7, camera))
    np.testing.assert_array_equal(whitening.transform(features, camera), unseen)
    assert whitening.camera.tolist() == [0, 1, -1]
    with pytest.raises(ReidError, match="all are -1"):
        CameraWhitening().fit(features, np.full(30, -1))


def test_whitening_a_camera_with_one_tracklet_keeps_its_feature():
    features = np.eye(6, dtype=np.float32)[[0, 1, 2, 3, 4, 5]]
    clean = (
        CameraWhitening().fit(features, np.array([0, 0, 0, 0, 0, 1])).transform(features, np.array([0, 0, 0, 0, 0, 1]))
    )
    assert np.linalg.norm(clean, axis=1) == pytest.approx(1, abs=1e-5)


def test_whitening_uses_float64_if_float32_eigenvalues_do_not_converge(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 12)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    camera = np.arange(20) % 2
    want = CameraWhitening().fit(features, camera).transform(features, camera)
    eigh = torch.linalg.eigh

    def only_double(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", only_double)
    assert CameraWhitening().fit(features, camera).transform(features, camera) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_decision_distances_are_cophenetic_distances_within_and_mean_distances_between_identities(seed):
    matrix = random_distances(30, seed)
    found = candidates_of(matrix)
    clusters = Clusters(rules_of(30))
    agglomerative(found, clusters, 0.3)
    identity = np.unique(clusters.labels, return_inverse=True)[1] + 1
    got = decision_distances(found, identity, Clusters(rules_of(30)))
    tree = linkage(matrix[np.triu_indices(30, 1)], "average")
    same = identity[found.first] == identity[found.second]
    assert got[same] == pytest.approx(cophenet(tree)[same], abs=1e-6)
    means = [matrix[np.ix_(identity == identity[a], identity == identity[b])].mean()
             for a, b in zip(found.first[~same], found.second[~same], strict=True)]  # fmt: skip
    assert got[~same] == pytest.approx(means, abs=1e-6)
    joined_beforehand = decision_distances(found, identity, Clusters(rules_of(30), clusters.labels))
    assert (joined_beforehand[same] == 0).all()
