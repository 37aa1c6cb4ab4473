"""`match` from end to end on synthetic people, and edge cases."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from reid import Embeddings
from reid.core.errors import ReidError
from reid.evaluation.calibration import calibrate
from reid.mtmc import Camera, Cameras, Constraints, MatchSettings, Tracklets, cluster_scores, match
from reid.mtmc.solvers import SOLVERS
from tests.mtmc.synthetic_tracklets import make_tracklets, tracklets_of, with_moved_clocks


def pairwise_f1(person, identity):
    return cluster_scores(person, identity).pair_f1


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_people(solver):
    tracklets, person = make_tracklets(people=30, cameras=4, visits=6, noise=0.6)
    result = match(tracklets, settings=MatchSettings(solver=solver))
    assert pairwise_f1(person, result.identity) > 0.9
    assert abs(result.identity.max() - 30) <= 5
    assert set(result.identity) == set(range(1, result.identity.max() + 1))
    assert (np.diff([result.tracklets.start[result.identity == n].min() for n in range(1, 5)]) >= 0).all()
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
    links = result.links
    assert (links.first < links.second).all()
    assert (links.joined == (result.identity[links.first] == result.identity[links.second])).all()
    assert (links.probability[links.forbidden_by != ""] == 0).all()
    assert (links.margin[links.joined] >= 0).all()
    assert (links.margin[~links.joined] <= 0).all()
    assert (np.diff(links.probability[np.argsort(links.margin)]) >= 0).all()
    assert links.probability[links.margin == 0] == pytest.approx(0.5)
    assert links.probability[links.joined].mean() > 0.8 > 0.2 > links.probability[~links.joined].mean()


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_matching_is_deterministic(solver):
    tracklets, _ = make_tracklets(noise=1.0)
    first, second = (match(tracklets, settings=MatchSettings(solver=solver)) for _ in range(2))
    assert (first.identity == second.identity).all()
    for column in fields(first.links):
        assert np.array_equal(getattr(first.links, column.name), getattr(second.links, column.name))


def test_the_protocol_describes_the_run():
    tracklets, _ = make_tracklets(people=30)
    result = match(tracklets)
    assert "re-ranked (k1=" in result.protocol["distance"]
    assert "silhouette" in result.protocol["threshold"]
    assert result.protocol["settings"]["solver"] == "agglomerative"
    assert result.protocol["identities"] == result.identity.max()
    assert 0 <= result.fmr < 0.2
    given = match(tracklets, settings=MatchSettings(threshold=0.4))
    assert (given.threshold, given.protocol["threshold"]) == (0.4, "given")
    rate = match(tracklets, settings=MatchSettings(fmr=0.1))
    assert rate.fmr <= 0.11
    assert rate.threshold <= 0.96


def test_embeddings_can_be_matched_directly():
    tracklets, person = make_tracklets(people=20)
    embeddings = Embeddings(
        tracklets.features, camids=tracklets.camera + 1, tracks=tracklets.track, frames=tracklets.first_frame
    )
    result = match(embeddings)
    assert pairwise_f1(person, result.identity) > 0.9


def test_a_calibration_gives_the_threshold():
    tracklets, person = make_tracklets(people=30, noise=0.6)
    calibration = calibrate(tracklets.features, person, tracklets.camera, fmr=0.01)
    result = match(tracklets, calibration=calibration)
    assert result.protocol["threshold"].startswith("calibration")
    assert pairwise_f1(person, result.identity) > 0.7


@pytest.mark.slow
def test_transition_times_help_where_appearance_does_not():
    travel = [[40, 10, 60, 25], [10, 40, 20, 45], [60, 20, 40, 15], [25, 45, 15, 40]]
    gains = []
    for seed in range(3):
        tracklets, person = make_tracklets(people=60, visits=8, noise=2.5, travel=travel, speed=0.05, seed=seed)
        with_time = match(tracklets)
        without = match(tracklets, settings=MatchSettings(transitions=False))
        assert with_time.transition_times
        assert not without.transition_times
        gains.append(pairwise_f1(person, with_time.identity) - pairwise_f1(person, without.identity))
    assert min(gains) > 0.01


def test_clock_offsets_are_reported():
    travel = [[30, 20], [20, 30]]
    tracklets, _ = make_tracklets(people=80, cameras=2, visits=8, travel=travel, speed=0.05, noise=0.4)
    result = match(with_moved_clocks(tracklets, {"cam02": 5.0}))
    assert result.clock_offsets["cam02"] == pytest.approx(5, abs=1)


def test_cannot_links_and_must_links_are_followed():
    tracklets, _ = make_tracklets(people=20)
    first = match(tracklets)
    names = tracklets.camera_names
    key = [(names[c], int(t), -1) for c, t in zip(tracklets.camera, tracklets.track, strict=True)]
    one = np.flatnonzero(first.identity == 1)
    other = np.flatnonzero(first.identity == 2)
    constraints = Constraints(cannot_link=((key[one[0]], key[one[1]]),))
    split = match(tracklets, constraints=constraints)
    assert split.identity[one[0]] != split.identity[one[1]]
    free = [(a, b) for a in one for b in other if not overlap(tracklets, a, b)]
    joined = match(tracklets, constraints=Constraints(must_link=((key[free[0][0]], key[free[0][1]]),)))
    assert joined.identity[free[0][0]] == joined.identity[free[0][1]]


def overlap(tracklets, a, b):
    shared = min(tracklets.end[a], tracklets.end[b]) - max(tracklets.start[a], tracklets.start[b])
    return tracklets.camera[a] == tracklets.camera[b] and shared >= 0


def test_links_report_the_rules_that_forbid_them():
    tracklets, _ = make_tracklets(people=40, noise=2.5)
    names = tracklets.camera_names
    cameras = Cameras(
        {name: Camera() for name in names},
        transition_times={(a, b): (30.0, 90.0) for a in names for b in names if a != b},
        overlaps_known=True,
    )
    result = match(tracklets, cameras=cameras)
    assert {"shorter than the transition time", "cameras do not overlap"} <= set(result.links.forbidden_by)
    assert not result.links.joined[result.links.forbidden_by != ""].any()


ONE = make_tracklets(people=1, cameras=3, visits=6)[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "tracklets",
    [
        pytest.param(tracklets_of([], [], [], np.zeros((0, 4)), names=("cam01",)), id="nothing at all"),
        pytest.param(tracklets_of([0], [0], [1]), id="one tracklet"),
        pytest.param(tracklets_of([0, 1], [0, 5], [0, 5], np.eye(2)), id="two of one frame each"),
        pytest.param(ONE, id="one person only"),
        pytest.param(tracklets_of([0] * 30, np.arange(30) * 9.0, np.arange(30) * 9.0 + 3), id="one camera only"),
        pytest.param(
            tracklets_of([0, 2], [0, 9], [3, 12], names=("cam01", "empty", "cam03")), id="a camera without tracks"
        ),
        pytest.param(tracklets_of([0] * 25, [0.0] * 25, [9.0] * 25), id="all simultaneous"),
        pytest.param(tracklets_of([0, 1] * 15, np.arange(30.0), np.arange(30.0), np.ones((30, 4))), id="all equal"),
        pytest.param(
            tracklets_of([0, 1] * 15, np.arange(30.0), np.arange(30.0), np.zeros((30, 4))), id="no feature at all"
        ),
        pytest.param(
            tracklets_of([0, 1] * 15, np.arange(30.0), np.arange(30.0), np.eye(30)[:, :5]), id="most without a feature"
        ),
        pytest.param(replace(ONE, track=np.zeros(len(ONE), np.int64)), id="one id for all: parts of one track"),
    ],
)
def test_edge_cases_give_complete_identities(tracklets, solver):
    result = match(tracklets, settings=MatchSettings(solver=solver))
    assert len(result.identity) == len(tracklets)
    assert not np.isnan(result.confidence).any()
    assert set(result.identity) == set(range(1, result.identity.max(initial=0) + 1))


def test_one_person_is_one_identity():
    assert match(ONE).identity.max() == 1


def test_invalid_crops_are_skipped_and_listed():
    tracklets, _ = make_tracklets(people=5, visits=4)
    camera, track, frame = (np.repeat(column, 2) for column in (tracklets.camera, tracklets.track, tracklets.start))
    features = np.repeat(tracklets.features, 2, axis=0)
    features[3] = np.nan
    features[6:8] = 0
    again = Tracklets.from_features(tracklets.camera_names, camera, track, (25 * frame).astype(np.int64), features)
    assert again.invalid_rows.tolist() == [3, 6, 7]
    result = match(again)
    assert result.protocol["invalid_crops"] == 3
    assert result.protocol["tracklets_without_feature"] == 1
    assert (result.identity == result.identity[3]).sum() == 1


def test_tracklets_without_a_feature_join_by_time():
    """A broken track: its second part has no feature and begins a second after the first ends."""
    features = np.eye(4)[[0, 1, 2, 3]].copy()
    features[1] = 0
    tracklets = tracklets_of([0, 0, 0, 1], [0, 11, 60, 90], [10, 20, 70, 99], features)
    assert match(tracklets).identity[1] not in match(tracklets).identity[[0, 2, 3]]
    result = match(tracklets, settings=MatchSettings(featureless_max_gap=2.0))
    assert result.identity[1] == result.identity[0]
    assert result.protocol["tracklets_without_feature_unmatched"] == 0
    two = tracklets_of([0, 0, 0], [0, 11, 3], [10, 20, 10], np.array([[1, 0], [0, 0], [0, 1.0]]))
    assert len(set(match(two, settings=MatchSettings(featureless_max_gap=2.0)).identity)) == 3, (
        "two candidates: none is used"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "agglomerativ"}, "Did you mean 'agglomerative'"),
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"fmr": 0.0}, "fmr=0.0"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"camera_whitening": 0.0}, "camera_whitening"),
        ({"featureless_max_gap": -2.0}, "featureless_max_gap"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ReidError, match=message):
        MatchSettings(**settings)


def test_fmr_with_too_few_certain_negatives_is_an_error():
    tracklets = tracklets_of([0, 1] * 15, np.arange(30.0) * 9, np.arange(30.0) * 9)
    with pytest.raises(ReidError, match="only 0 pairs"):
        match(tracklets, settings=MatchSettings(fmr=0.01))


def test_the_threshold_has_an_interval_and_links_within_it_are_undecided():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(12), 4)
    appearance = rng.normal(size=(12, 16))[person] + 1.3 * rng.normal(size=(48, 16))
    columns = (np.tile(np.arange(4), 12), np.arange(48), 1 + 3000 * np.arange(48), appearance.astype(np.float32))
    tracklets = Tracklets.from_features(["a", "b", "c", "d"], *columns)
    matches = match(tracklets)
    low, high = matches.threshold_interval
    assert matches.threshold == low < matches.protocol["neutral_distance"] <= high
    links, undecided = matches.links, matches.undecided
    assert undecided.any()
    assert not links.joined[undecided].any(), "they are for review, not merged"
    assert any("kept separate" in sentence for sentence in matches.advice)
    merged = match(tracklets, settings=MatchSettings(join_undecided=True))
    assert merged.threshold == matches.protocol["neutral_distance"]
    assert merged.links.joined[merged.undecided].any()
    assert merged.identity.max() < matches.identity.max()
    distance = matches.threshold - links.margin[undecided]
    assert (low <= distance + 1e-9).all()
    assert (distance - 1e-9 <= high).all()
    assert any("calibration" in sentence for sentence in matches.advice)
    given = match(tracklets, settings=MatchSettings(threshold=matches.threshold))
    np.testing.assert_array_equal(given.identity, matches.identity)
    assert given.threshold_interval is None
    assert not given.undecided.any()


def test_an_interval_of_the_false_match_rate_comes_from_the_certain_negatives():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 16)).astype(np.float32)
    columns = (np.zeros(60, np.int64), np.arange(60), np.full(60, 5), features)
    matches = match(Tracklets.from_features(["a"], *columns), settings=MatchSettings(fmr=0.05))
    low, high = matches.threshold_interval
    assert low <= matches.threshold <= high
