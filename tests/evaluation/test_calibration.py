from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.calibration_market import Tested, halves
from benchmarks.calibration_market import load as load_rows
from reid.core.errors import ReidError
from reid.evaluation import Calibration, calibrate, calibrate_tracks, count_pairs, curves, track_calibration
from reid.evaluation.pairs import BINS
from tests.evaluation.test_real_embeddings import FOLDER

EDGES = np.linspace(0, 2, BINS + 1)
SAME, DIFFERENT = norm(0.6, 0.12), norm(1.0, 0.12)


def expected(distribution, n):
    return np.diff(np.rint(n * distribution.cdf(EDGES)))


def people(n_ids=120, per_id=6, cameras=3, dim=24, noise=0.8, bias=0.0, seed=0):
    """Features, pids from 1 and camids of people about their own points; `bias` moves what a camera sees."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, n_ids + 1), per_id)
    camids = rng.integers(1, cameras + 1, len(pids))
    features = rng.normal(size=(n_ids, dim))[pids - 1] + noise * rng.normal(size=(len(pids), dim))
    features += bias * rng.normal(size=(cameras, dim))[camids - 1]
    return features.astype(np.float32), pids, camids


@pytest.fixture(scope="module")
def made():
    return calibrate(*people(), fmr=1e-2, model="net-1")


def true_ratio(distance):
    return SAME.logpdf(distance) - DIFFERENT.logpdf(distance)


@pytest.mark.parametrize(
    ("n_genuine", "method", "within"),
    [
        pytest.param(200_000, "isotonic", 0.25, id="isotonic"),
        pytest.param(300, "logistic", 0.25, id="logistic, for few pairs"),
    ],
)
def test_the_ratio_of_normal_distributions(n_genuine, method, within):
    curve = curves.fit_curve(EDGES, expected(SAME, n_genuine), expected(DIFFERENT, 10**7), n_genuine, 10**7)
    assert curve.method == method
    distance = np.linspace(0.65, 0.95, 50)
    assert curves.interpolate(curve.log_ratio, distance) == pytest.approx(true_ratio(distance), abs=within)
    assert curve.log_ratio.shape[1] <= 32


def test_thresholds_and_rates_of_normal_distributions():
    made = Calibration(
        "cosine", 1e-3, curves.fit_curve(EDGES, expected(SAME, 10**6), expected(DIFFERENT, 10**8), 10**6, 10**8)
    )
    made = Calibration("cosine", 1e-3, made.overall, identities=9999, identity_pairs=10**8)
    for fmr in (0.3, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
        threshold = made.threshold(fmr)
        assert DIFFERENT.cdf(threshold) == pytest.approx(fmr, rel=0.03)
        assert made.fmr(threshold) == pytest.approx(fmr, rel=1e-6)
        assert made.tmr(threshold) == pytest.approx(SAME.cdf(threshold), abs=0.03)
    assert made.fmr(0.0) == pytest.approx(1e-7)
    assert made.fmr(2.0) == 1
    assert (made.tmr(0.0), made.tmr(2.0)) == (0, 1)


def test_probability_is_monotone_and_never_certain(made):
    p = made.probability(np.linspace(-1, 3, 5000))
    assert (np.diff(p) <= 0).all()
    assert p.min() > 0
    assert p.max() < 1
    assert np.isfinite(np.log(p / (1 - p))).all()
    assert np.isnan(made.probability(np.nan))


def test_probability_follows_bayes_rule_for_any_prior(made):
    distances = np.linspace(0, 2, 9).reshape(3, 3)
    for prior in (0.5, 0.01):
        odds = np.exp(made.log_ratio(distances)) * prior / (1 - prior)
        assert made.probability(distances, prior=prior) == pytest.approx(odds / (1 + odds))
    counts = count_pairs(*people())
    assert made.prior == counts.n_genuine / (counts.n_genuine + counts.n_impostor)
    assert made.probability(distances) == pytest.approx(made.probability(distances, prior=made.prior))


@pytest.mark.parametrize("prior", [0, 1, -0.1, float("nan")])
def test_a_prior_out_of_range(made, prior):
    with pytest.raises(ReidError, match="The prior must be above 0 and below 1"):
        made.probability(0.5, prior=prior)


def test_rates_are_achieved_on_other_people():
    """Calibrated on some people, tested on others of the same kind."""
    calibration = calibrate(*people(seed=1), fmr=1e-2)
    tested = Tested(*people(n_ids=200, seed=2))
    for fmr in (1e-1, 1e-2, 3e-3):
        assert 0.5 < tested.far(calibration.threshold(fmr)) / fmr < 2
    for balanced in (False, True):
        assert tested.calibration_error(calibration, balanced) < 0.03


def test_pairs_of_cameras_have_their_own_thresholds():
    """Cameras 1 and 2 add the same offset, so their pairs are nearer to each other; camera 4 has few items."""
    features, pids, camids = people(n_ids=300, per_id=8, cameras=3, seed=3)
    features[camids != 3] += 0.5
    camids[:3] = 4
    made = calibrate(features, pids, camids, fmr=1e-2)
    assert set(made.by_cameras) == {(1, 2), (1, 3), (2, 3)}
    assert set(made.too_few) == {(1, 4), (2, 4), (3, 4)}
    assert made.threshold(cameras=(1, 2)) < made.threshold() < made.threshold(cameras=(1, 3))
    assert made.threshold(cameras=(3, 1)) == made.threshold(cameras=(1, 3))
    assert made.threshold(cameras=(1, 4)) == made.threshold(cameras=(77, 78)) == made.threshold()
    tested = Tested(features, pids, camids)
    own = tested.far_by_cameras(lambda cameras: made.threshold(cameras=cameras))
    one = tested.far_by_cameras(lambda cameras: made.threshold())
    known = [list(tested.by_cameras).index(cameras) for cameras in made.by_cameras]
    assert np.abs(np.log(own[known] / 1e-2)).max() < 0.5 < np.abs(np.log(one[known] / 1e-2)).max()

    # One number and arrays of cameras, in any order, give what the pair's own curve gives.
    distances = np.full((2, 3), 0.7)
    first, second = np.array([[1, 2, 1], [4, 3, 2]]), np.array([[2, 3, 3], [1, 1, 1]])
    p = made.probability(distances, cameras=(first, second))
    for place in np.ndindex(2, 3):
        pair = (int(first[place]), int(second[place]))
        assert p[place] == made.probability(0.7, cameras=pair)
    assert p[1, 0] == made.probability(0.7)
    assert made.probability(distances, cameras=(1, 2)) == pytest.approx(np.full((2, 3), p[0, 0]))


def test_a_pair_of_cameras_with_few_pairs_stays_near_the_overall_curve():
    rng = np.random.default_rng(0)
    whole = (expected(SAME, 10**5), expected(DIFFERENT, 10**7))
    shifted = np.histogram(norm(1.3, 0.1).rvs(1100, random_state=rng), EDGES)[0]
    own = (np.histogram(SAME.rvs(60, random_state=rng), EDGES)[0], shifted)
    histograms = (EDGES, *(column.astype(np.int64) for column in whole))
    by_cameras, _ = curves.camera_curves(*histograms, {(1, 2): tuple(map(curves.coarse, own))}, 1e-2)
    overall = curves.overall_curve(*histograms, 1e-2, 10**5)
    both = Calibration("cosine", 1e-2, overall, by_cameras, identity_pairs=10**5)
    alone = norm(1.3, 0.1).ppf(1e-2)
    assert both.threshold() < both.threshold(cameras=(1, 2)) < alone


def test_saving_and_loading_as_json(made, tmp_path):
    from reid.embedding.calibration_file import load_calibration, save_calibration, stored_calibration

    assert stored_calibration(tmp_path / "best.pt") is None
    path = save_calibration(made, tmp_path / "calibration.json")
    assert stored_calibration(tmp_path / "best.pt") == stored_calibration(tmp_path) == path
    assert path.stat().st_size < 20_000
    again = load_calibration(path)
    assert again.as_dict() == {**made.as_dict(), "threshold": again.threshold()}
    distances = np.linspace(0, 2, 100)
    assert again.probability(distances) == pytest.approx(made.probability(distances), rel=1e-3)
    assert again.threshold(cameras=(1, 2)) == pytest.approx(made.threshold(cameras=(1, 2)), rel=1e-5)
    assert (again.model, again.prior, again.too_few) == ("net-1", made.prior, made.too_few)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"kind": "salad"}, "is not a calibration", id="something else"),
        pytest.param({"format": 99}, "has format 99", id="a newer format"),
        pytest.param({"metric": "hamming"}, "metric is hamming", id="metric"),
        pytest.param({"fmr": 2}, "fmr is 2", id="rate"),
        pytest.param({"overall": {}}, "overall.genuine_pairs .*required", id="a key is missing"),
        pytest.param({"identities": None}, "damaged", id="no number"),
        pytest.param({"camera_pairs": [{}]}, "camera_pairs is .* not a list", id="no cameras"),
        pytest.param({"too_few": None}, "too_few is None", id="no list"),
        pytest.param({"overall": None}, "overall is None", id="no curve"),
    ],
)
def test_damaged_files_are_named(made, tmp_path, change, message):
    from reid.embedding.calibration_file import load_calibration

    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**made.as_dict(), **change}))
    with pytest.raises(ReidError, match=message) as error:
        load_calibration(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("table", [[[0, 1], [1, 0]], [[1, 0], [0, 1]], [[0, 1]], [[0, 1], [0, float("nan")]]])
def test_knots_that_are_not_monotone(made, table):
    stored = made.as_dict()
    stored["overall"]["false_match"] = table
    with pytest.raises(ReidError, match=r"overall\.false_match is .* not"):
        Calibration.from_dict(stored)


def test_files_that_are_not_json(tmp_path):
    from reid.embedding.calibration_file import load_calibration

    with pytest.raises(ReidError, match=r"There is no file .*Create it with `reid calibrate`"):
        load_calibration(tmp_path / "calibration.json")
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(ReidError, match="cannot be read as JSON"):
        load_calibration(tmp_path / "calibration.json")


def test_another_model_is_refused_by_name(made):
    for passes in ("net-1", None, ""):
        made.check_fits(passes)
    with pytest.raises(ReidError, match="of model 'net-1', but these embeddings come from 'net-2'"):
        made.check_fits("net-2")


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        pytest.param(
            people(n_ids=20), {}, r"0.001 cannot be estimated.*10,000 pairs of different people.*there are", id="few"
        ),
        pytest.param(
            people(n_ids=10, per_id=60),
            {},
            "1,000 pairs of identities, and there are 45",
            id="few identities",
        ),
        pytest.param(people(n_ids=20), {"fmr": 1e-4}, "Choose a rate of 0.006 or more", id="a rate that would do"),
        pytest.param(people(), {"fmr": 1.5}, "must be between 0 and 1; got 1.5", id="no rate"),
        pytest.param((*people()[:2], None), {}, "need camera ids", id="no cameras"),
        pytest.param((people()[0], np.arange(1, 721), people()[2]), {}, "no genuine pair", id="no identity twice"),
        pytest.param(
            (people()[0], np.r_[np.arange(1, 716), [900] * 5], people()[2]),
            {},
            "needs 20 pairs of one person",
            id="five",
        ),
    ],
)
def test_too_few_pairs_and_bad_settings_are_reported(case, settings, message):
    with pytest.raises(ReidError, match=message):
        calibrate(*case, **settings)


def test_features_that_do_not_separate_identities():
    """Pairs of one person have the largest distances: each person has two opposite points."""
    angle = np.repeat(np.linspace(0, np.pi, 60, endpoint=False), 2) + np.tile([0, np.pi], 60)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    with pytest.raises(ReidError, match="do not separate identities"):
        calibrate(features, np.repeat(np.arange(1, 61), 2), cross_camera=False, fmr=1e-2)


def test_without_cross_camera_or_cameras():
    features, pids, _ = people()
    made = calibrate(features, pids, cross_camera=False, fmr=1e-2)
    assert made.by_cameras == made.too_few == {}
    assert made.overall.genuine == 120 * 15


# Without labels.


def walks(n_ids=150, cameras=3, crops=5, dim=24, bias=0.0, seed=0, rate=4.0):
    """Rows of people who pass each camera once, some at the same time: features, pids, camids, tracks, times."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n_ids, dim))
    scene = bias * rng.normal(size=(cameras, dim))
    rows = []
    for camera in range(cameras):
        for pid, start in enumerate(rng.uniform(0, n_ids * crops / rate, n_ids)):
            rows += [(pid + 1, camera + 1, pid + 1, start + step) for step in range(crops)]
    pids, camids, tracks, times = np.array(rows).T
    pids, camids, tracks = (column.astype(np.int64) for column in (pids, camids, tracks))
    features = points[pids - 1] + 0.8 * rng.normal(size=(len(pids), dim)) + scene[camids - 1]
    return features.astype(np.float32), pids, camids, tracks, times


@pytest.mark.parametrize("bias", [0.0, 0.7], ids=["equal cameras", "cameras with different light"])
def test_tracks_give_about_the_threshold_that_labels_give(bias):
    features, pids, camids, tracks, times = walks(bias=bias)
    made = calibrate_tracks(features, camids, tracks, times, fmr=1e-2)
    assert (made.source, made.prior, made.identities) == ("tracks", 0.5, 450)
    tested = Tested(features, pids, camids)
    assert 0.4 < tested.far(made.threshold()) / 1e-2 < 2.5
    assert tested.tar(made.threshold()) == pytest.approx(made.tmr(made.threshold()), abs=0.15)
    raw = (made.threshold() - made.notes["line"][0]) / made.notes["line"][1]
    assert (tested.far(raw) < 3e-3) == (bias > 0)
    assert Calibration.from_dict(made.as_dict()).prior == 0.5


def test_pairs_of_overlapping_tracks_are_counted():
    """Tracks 1 and 2 overlap in camera 1, and other people's of these numbers in camera 2; track 3 comes later."""
    rng = np.random.default_rng(0)
    spans = [(1, 1, 0, 10), (1, 2, 5, 15), (1, 3, 100, 110), (2, 1, 0, 10), (2, 2, 9, 19)]
    camids, tracks, times = np.array([(c, t, s) for c, t, a, b in spans for s in range(a, b)]).T
    made = calibrate_tracks(rng.normal(size=(50, 8)), camids, tracks, times, fmr=0.5)
    assert made.identities == 5
    assert made.identity_pairs == 2
    assert made.overall.impostor == 200
    # Of the 45 pairs of ten crops in a row, half differ by 3 or more: 7 + 6 + 5 + 4 + 3 + 2 + 1.
    assert made.notes["least time between genuine pairs"] == 3
    assert made.overall.genuine == 5 * 28


def test_long_tracks_are_thinned_evenly():
    clock = np.arange(1000.0)
    used = track_calibration._spread(np.zeros(1000, dtype=np.int64), clock[::-1])
    assert used.sum() == 16
    assert used[0]
    assert used[-1]


def test_one_camera_has_no_line():
    features, _, camids, tracks, times = walks(n_ids=300, cameras=1)
    made = calibrate_tracks(features, camids, tracks, times, fmr=1e-2)
    assert made.notes["line"] == [0, 1]
    assert "one camera only" in made.notes["pairs"]
    assert made.by_cameras == {}


@pytest.mark.parametrize(("camera", "track"), [(1, -1), (-1, 1)], ids=["no track", "no camera"])
def test_rows_without_a_track_or_camera_are_left_out(camera, track):
    features, _, camids, tracks, times = walks(n_ids=150, cameras=2)
    whole = calibrate_tracks(features, camids, tracks, times, fmr=2e-2)
    more = calibrate_tracks(
        np.concatenate([features, np.ones((50, 24))]),
        np.append(camids, np.full(50, camera)),
        np.append(tracks, np.full(50, track)),
        np.append(times, np.zeros(50)),
        fmr=2e-2,
    )
    assert more.threshold() == pytest.approx(whole.threshold(), rel=1e-6)
    assert more.notes["rows without a track or camera"] == 50


def test_unknown_cameras_have_no_curve(made):
    features, pids, camids = people()
    unknown = calibrate(features, pids, np.where(camids == 1, -1, camids), fmr=1e-2)
    assert all(-1 not in cameras for cameras in [*unknown.by_cameras, *unknown.too_few])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"tracks": 1}, "another crop of their track at the same time.*videos", id="videos numbered as tracks"
        ),
        pytest.param({"tracks": -1}, "0 rows have a track", id="no tracks"),
        pytest.param({"fmr": 1e-5}, "1,000,000 pairs of different people", id="too rare a rate"),
        pytest.param({"times": np.nan}, "time of row 0 is nan", id="time"),
    ],
)
def test_invalid_tracks_are_reported(change, message):
    features, _, camids, tracks, times = walks(n_ids=60)
    columns = {"camids": camids, "tracks": tracks, "times": np.round(times)}
    for name in columns.keys() & change.keys():
        columns[name] = np.full(len(camids), change[name])
    with pytest.raises(ReidError, match=message):
        calibrate_tracks(features, **columns, fmr=change.get("fmr", 1e-2))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        pytest.param([0, 1, 10, 11, 20, 21], "no two tracks of one camera overlap.*3 tracks in 1", id="one by one"),
        pytest.param([0, 0.0, 0, 0, 0, 0], "another crop of their track at the same time", id="same time"),
    ],
)
def test_tracks_without_impostor_pairs(times, message):
    with pytest.raises(ReidError, match=message):
        calibrate_tracks(np.eye(6), np.ones(6, int), [1, 1, 2, 2, 3, 3], times)


def test_tracks_of_one_crop_have_no_genuine_pairs():
    with pytest.raises(ReidError, match="no track has two crops at two times"):
        calibrate_tracks(np.eye(6), np.ones(6, int), np.arange(6), np.zeros(6))


# Real embeddings.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["intel0288", "osnet_x0_25_msmt17"])
def test_calibration_on_half_of_real_identities_fits_the_other_half(name):
    path = FOLDER / f"market1501_test_embeddings_{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    features, pids, camids, _ = load_rows(path)
    first, second = halves(pids, 0)
    made = calibrate(features[first], pids[first], camids[first])
    tested = Tested(features[second], pids[second], camids[second])
    for fmr in (1e-2, 1e-3):
        assert 0.5 < tested.far(made.threshold(fmr)) / fmr < 2
        own = tested.far_by_cameras(lambda cameras, f=fmr: made.threshold(f, cameras)) / fmr
        assert ((own > 0.4) & (own < 2)).all()
    for balanced in (False, True):
        assert tested.calibration_error(made, balanced) < 0.02
