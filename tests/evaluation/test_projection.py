from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.evaluation.projection import choose_identities, project


def groups(n=20, seed=0):
    """Three distant directions, `n` features near each."""
    rng = np.random.default_rng(seed)
    return np.repeat(np.eye(8)[:3], n, axis=0) + 0.05 * rng.normal(size=(3 * n, 8)), np.repeat([0, 1, 2], n)


def test_pca_is_the_singular_vectors_of_centred_features_of_length_one():
    features = np.random.default_rng(1).normal(size=(40, 6))
    points = project(3 * features, "pca")
    ready = features / np.linalg.norm(features, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(ready - ready.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(u[:, :2] * s[:2]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projection_keeps_groups_and_is_reproducible(method):
    features, who = groups()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    points = project(features, method)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert points.shape == (60, 2)
    far = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(far, np.inf)
    assert (who[far.argmin(axis=1)] == who).all()
    np.testing.assert_array_equal(points, project(features, method))


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_features(method, n):
    points = project(np.random.default_rng(0).normal(size=(n, 8)), method)
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("features", [np.ones((6, 4)), np.ones((6, 1))], ids=["one point", "one number each"])
def test_features_without_any_spread(method, features):
    np.testing.assert_allclose(project(features, method), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "method", "message"),
    [
        (np.ones((3, 2)), "tsen", "Did you mean 'tsne'"),
        (np.ones((0, 2)), "pca", "shape"),
        ([[1.0, 0], [0, 0]], "pca", "rows 1"),
        ([[1.0, np.nan]], "pca", "rows 0"),
    ],
)
def test_features_that_cannot_be_projected_are_reported(features, method, message):
    with pytest.raises(ReidError, match=message):
        project(features, method)


def test_identities_are_drawn_among_those_seen_twice():
    pids = np.repeat([-1, 3, 4, 5, 6], [9, 1, 2, 3, 50])
    rows = choose_identities(pids, 10, per_identity=4)
    assert (np.diff(rows) > 0).all()
    found, counts = np.unique(pids[rows], return_counts=True)
    assert (found.tolist(), counts.tolist()) == ([4, 5, 6], [2, 3, 4])
    assert len(np.unique(pids[choose_identities(pids, 2)])) == 2
    np.testing.assert_array_equal(choose_identities(pids, 2), choose_identities(pids, 2))
    draws = {tuple(np.unique(pids[choose_identities(pids, 2, seed=seed)])) for seed in range(20)}
    assert draws == {(4, 5), (4, 6), (5, 6)}


@pytest.mark.parametrize("pids", [[], [1, 2, 3], [-1, -1]], ids=["nothing", "each once", "junk"])
def test_without_identities_nothing_is_chosen(pids):
    assert choose_identities(np.array(pids, dtype=np.int64)).tolist() == []
