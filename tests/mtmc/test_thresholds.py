"""The automatic threshold: small changes of the data change it little, answers about pairs not at all."""

from __future__ import annotations

import numpy as np
import pytest

from reid.evaluation.clustering import MAX_THRESHOLD, select_threshold
from reid.mtmc import Constraints, cluster_scores, match
from reid.mtmc.constraints import compile_rules
from reid.mtmc.solvers import Clusters, agglomerative
from reid.mtmc.thresholds import PREFERRED_THRESHOLD
from tests.mtmc.synthetic_tracklets import make_tracklets


@pytest.fixture(scope="module")
def matched():
    """(tracklets, person of each, matches) of people who are hard to tell apart."""
    tracklets, person = make_tracklets(people=100, visits=6, noise=2.3)
    return tracklets, person, match(tracklets)


def selection_of(candidates, rules):
    joins = agglomerative(candidates, Clusters(rules), MAX_THRESHOLD * candidates.far)
    return select_threshold(candidates, np.arange(candidates.tracklets), joins, PREFERRED_THRESHOLD)


@pytest.mark.slow
def test_a_few_candidates_less_move_the_threshold_little(matched):
    """2 % of the candidate pairs are deleted at random, ten times: the interval moves by 0.03 at most."""
    tracklets, _, matches = matched
    rules = compile_rules(tracklets)
    candidates = matches.links
    whole = selection_of(candidates, rules)
    for seed in range(10):
        kept = np.random.default_rng(seed).random(len(candidates)) > 0.02
        found = selection_of(candidates.take(kept), rules)
        assert found.interval == pytest.approx(whole.interval, abs=0.03)
        assert found.threshold == pytest.approx(whole.threshold, abs=0.02)
        assert found.identity_size == pytest.approx(whole.identity_size, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 50, 200])
def test_correct_answers_do_not_change_the_threshold(matched, count):
    """Correct answers to the most doubtful pairs: no precision falls by more than the join of two identities costs."""
    tracklets, person, before = matched
    links = before.links
    free = np.flatnonzero(links.forbidden_by == "")
    rows = free[np.argsort(np.abs(links.margin[free]), kind="stable")[:count]]
    names = [tracklets.camera_names[number] for number in tracklets.camera]
    keys = [(name, track, -1) for name, track in zip(names, tracklets.track.tolist(), strict=True)]
    pairs = [(keys[a], keys[b]) for a, b in zip(links.first[rows], links.second[rows], strict=True)]
    same = person[links.first[rows]] == person[links.second[rows]]
    must, cannot = (tuple(p for p, s in zip(pairs, same, strict=True) if s == kind) for kind in (True, False))
    assert must
    assert cannot
    after = match(tracklets, constraints=Constraints(cannot, must))
    assert (after.threshold, after.threshold_interval) == (before.threshold, before.threshold_interval)
    assert after.protocol["distance"] == before.protocol["distance"]
    other = np.setdiff1d(np.arange(len(person)), np.concatenate([links.first[rows], links.second[rows]]))
    for part in (slice(None), other):
        was, now = (cluster_scores(person[part], found.identity[part]) for found in (before, after))
        assert now.pair_precision >= was.pair_precision - 0.015
        assert now.pair_f1 >= was.pair_f1 - 0.015
