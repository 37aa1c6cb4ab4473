"""The log-odds of each link by looks, time and space."""

from __future__ import annotations

import numpy as np
import pytest

from reid.mtmc import Camera, Cameras, MatchSettings, Tracklets, match
from reid.mtmc.evidence import EVIDENCE
from reid.mtmc.online import OnlineMatches
from reid.synthetic import SyntheticSettings, record, simulate_embeddings
from tests.mtmc.test_ground import floor_cameras, line, tracks_on_floor


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, 1.0])
def test_the_evidence_of_a_link_sums_to_its_distance(noise: float | None) -> None:
    settings = SyntheticSettings(ids=12, train_fraction=0, cameras=3, site="floor", difficulty={"crowd": 4})
    recording = record(settings)
    entries = recording.cameras["cameras"].items()
    cameras = Cameras({
        name: Camera(fps=10, offset=one["offset"], homography=one["homography"]) for name, one in entries
    })  # fmt: skip
    table = None if noise is None else simulate_embeddings(recording, noise=noise)
    matches = match(Tracklets.from_tracks(recording.tracks, table, cameras), cameras=cameras)
    links, evidence = matches.links, matches.evidence
    total = sum(np.nan_to_num(evidence[name]) for name in ("looks", "time", "space"))
    weight = matches.protocol["distance_per_log_odds"]
    assert total == pytest.approx((matches.protocol["neutral_distance"] - links.distance) / weight, abs=1e-4)
    t = matches.tracklets
    both = t.has_feature[links.first] & t.has_feature[links.second]
    assert (np.isfinite(evidence["looks"]) == both).all()
    assert np.isfinite(evidence["space"]).any()
    simultaneous = np.minimum(t.end[links.first], t.end[links.second]) >= np.maximum(
        t.start[links.first], t.start[links.second]
    )
    assert simultaneous[np.isfinite(evidence["space"])].all()


def test_transition_times_are_the_only_evidence_of_time() -> None:
    rng = np.random.default_rng(0)
    person, camera = np.repeat(np.arange(30), 4), np.tile(np.arange(4), 30)
    looks = rng.normal(size=(30, 64))[person] + 0.5 * rng.normal(size=(120, 64))
    columns = (camera, np.arange(120), 1 + 3000 * camera + 50 * person, looks.astype(np.float32))
    tracklets = Tracklets.from_features(["a", "b", "c", "d"], *columns)
    known, unknown = (match(tracklets, settings=MatchSettings(transitions=on)).evidence for on in (True, False))
    assert np.isfinite(known["time"]).any()
    assert np.isnan(unknown["time"]).all()
    assert list(known) == list(EVIDENCE)


def test_joins_over_gaps_are_listed_with_their_log_odds() -> None:
    cameras = floor_cameras((0, 0), (10, 0), (0, 0))
    walks = [(0, 1, line((0, 2), (8, 2), 60)), (2, 1, line((0, 2), (8, 2), 60)), (1, 81, line((10.7, 2), (18, 2), 60))]
    tracklets = Tracklets.from_tracks(tracks_on_floor(cameras, walks), None, cameras)
    matches = match(tracklets, cameras=cameras)
    assert set(matches.identity.tolist()) == {1}
    assert matches.evidence["space"][0] == pytest.approx(np.log(0.97 / 0.03), abs=0.1)  # The largest that there is.
    (join,) = matches.gap_joins
    assert sorted([sorted(join.first.tolist()), sorted(join.second.tolist())]) == [[0, 2], [1]]
    assert join.log_ratio > 0
    online = OnlineMatches(np.arange(1, 4), max_remembered=3, delay=1.0).as_matches(matches)
    assert online.gap_joins == ()
