from __future__ import annotations

import numpy as np
import pytest

from reid.core.errors import ReidError
from reid.evaluation import evaluate, single_shot_cmc
from tests.evaluation.cases import DIFFICULT, made, squared_distances
from tests.oracles import single_shot_loop

EVERY_CASE = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in DIFFICULT.items()])


@EVERY_CASE
@pytest.mark.parametrize("cross_camera", [True, False], ids=["cross-camera", "any camera"])
def test_equals_the_loop_over_the_same_draws(case, cross_camera):
    repeats, seed = 4, 3
    result = single_shot_cmc(
        *case, metric="euclidean", cross_camera=cross_camera, repeats=repeats, seed=seed, max_rank=8
    )
    kept = np.flatnonzero(case[3] != -1)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(repeats):
        draw = np.full(len(case[3]), 10**9)
        draw[kept] = rng.permutation(len(kept))
        draws.append(draw)
    ranks = [single_shot_loop(squared_distances(*case[:2]), *case[2:], cross_camera, draw) for draw in draws]
    fractions = np.array([[np.mean(np.array(one) <= k) for k in range(1, 9)] for one in ranks])
    np.testing.assert_allclose(result.cmc, fractions.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(result.spread, fractions.std(axis=0), atol=1e-12)
    assert result.n_valid == len(ranks[0])
    assert result.dropped == evaluate(*case, metric="euclidean", cross_camera=cross_camera).dropped


def test_it_equals_the_cmc_if_every_identity_has_one_item():
    rng = np.random.default_rng(0)
    pids = rng.permutation(30)
    query, gallery = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    one = single_shot_cmc(query, gallery, np.arange(30), pids, cross_camera=False, repeats=2)
    np.testing.assert_allclose(one.cmc, evaluate(query, gallery, np.arange(30), pids, cross_camera=False).cmc)
    assert (one.spread == 0).all()


def test_blocks_do_not_change_the_cmc_and_seeds_do():
    case = made(n_gallery=200, dim=16, low=-9, high=10)
    whole = single_shot_cmc(*case, repeats=5)
    np.testing.assert_array_equal(whole.cmc, single_shot_cmc(*case, repeats=5, memory_limit=1).cmc)
    assert (whole.cmc != single_shot_cmc(*case, repeats=5, seed=1).cmc).any()


@pytest.mark.parametrize("setting", ["max_rank", "repeats"])
def test_settings_below_one_are_refused(setting):
    with pytest.raises(ReidError, match=f"{setting} must be 1 or more"):
        single_shot_cmc(*made(), **{setting: 0})


def test_no_match_at_all_is_explained():
    case = made(cameras=1)
    with pytest.raises(ReidError, match="All items are of one camera"):
        single_shot_cmc(*case)
