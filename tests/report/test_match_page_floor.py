"""The floor plan of the match report, and the evidence of a pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from reid.core.errors import DataError
from reid.mtmc import Tracklets
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.ground import GapJoin
from reid.mtmc.matching import Matches
from reid.mtmc.tracklets import tracklet_of_boxes
from reid.pipelines.ground_paths import ground_paths
from reid.report.match_page import ReportOptions, write_match_report
from reid.synthetic import Recording, SyntheticSettings, record
from tests.report.match_browser import go_to_pair, members, pairs_of, show

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(SyntheticSettings(ids=6, train_fraction=0, cameras=2, site="floor", difficulty={"crowd": 3}))


def cameras_of(recording: Recording, without: str = "") -> Cameras:
    entries = recording.cameras["cameras"].items()
    return Cameras({
        name: Camera(fps=10, offset=one["offset"], homography=None if name == without else one["homography"])
        for name, one in entries
    })  # fmt: skip


def straight_paths(matches: Matches) -> dict[int, np.ndarray]:
    """Return a path of each tracklet along x: from 0 to 10 m, at y = its row."""
    t = matches.tracklets
    return {row: np.array([[t.start[row], 0.0, row], [t.end[row], 10.0, row]]) for row in range(len(t)) if row != 3}


def test_a_path_has_the_ground_positions_of_the_boxes_of_its_tracklet(recording: Recording) -> None:
    tracks, cameras = recording.tracks, cameras_of(recording)
    tracklets = Tracklets.from_tracks(tracks, None, cameras)
    paths, notes = ground_paths(tracklets, tracks, cameras)
    row_of_box = tracklet_of_boxes(tracklets, tracks)
    assert len(paths) == len(tracklets)
    for row, path in list(paths.items())[::5]:
        boxes = np.flatnonzero(row_of_box == row)
        camera = cameras[tracks.camera_names[tracklets.camera[row]]]
        ground = np.column_stack([camera.seconds(tracks.frame[boxes]), camera.ground(tracks.boxes[boxes])])
        assert path[[0, -1]] == pytest.approx(ground[[0, -1]])
        assert (np.abs(ground[:, None] - path).max(axis=2).min(axis=0) < 1e-9).all()
        assert (np.diff(path[:, 0]) > 0).all()
        assert len(path) <= 2 * (path[-1, 0] - path[0, 0]) + 3
    assert notes == []


def test_cameras_without_homography_have_no_paths(recording: Recording) -> None:
    cameras = cameras_of(recording, without="cam02")
    tracklets = Tracklets.from_tracks(recording.tracks, None, cameras)
    paths, _ = ground_paths(tracklets, recording.tracks, cameras)
    assert sorted(paths) == np.flatnonzero(tracklets.camera == 0).tolist()
    assert ground_paths(tracklets, recording.tracks, None) == ({}, [])


def test_positions_far_from_all_others_are_left_out_and_counted(recording: Recording) -> None:
    cameras = cameras_of(recording)
    tracks = recording.tracks.take(np.arange(len(recording.tracks)))
    matrix = np.array(cameras["cam01"].homography)
    image = np.linalg.inv(matrix) @ [500.0, 500.0, 1.0]
    x, y = image[:2] / image[2]
    tracks.boxes[:3] = [x - 5, y - 10, 10, 10]
    tracklets = Tracklets.from_tracks(tracks, None, cameras)
    paths, notes = ground_paths(tracklets, tracks, cameras)
    assert max(np.abs(path[:, 1:]).max() for path in paths.values()) < 50
    assert notes[0].startswith(f"3 of {len(tracks):,} boxes")


def test_a_path_of_no_tracklet_is_an_error(matches: Matches, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="path of tracklet 99"):
        write_match_report(matches, None, tmp_path / "r.html", ReportOptions(paths={99: np.zeros((1, 3))}))


@pytest.mark.slow
def test_without_ground_positions_there_is_no_floor_plan(page: Page, matches: Matches, tmp_path: Path) -> None:
    show(page, tmp_path, matches)
    assert page.locator("#tab-floor").count() == 0


@pytest.mark.slow
def test_dots_are_where_people_are_at_the_time_of_the_slider(page: Page, matches: Matches, tmp_path: Path) -> None:
    show(page, tmp_path, matches, paths=straight_paths(matches))
    page.click("#tab-floor")
    t = matches.tracklets
    for time in (1.5, 62.0, 125.0):
        page.evaluate(
            "(time) => { const s = document.querySelector('#floor-slider');"
            " s.value = time; s.dispatchEvent(new Event('input')); }",
            time,
        )
        shown = float(page.input_value("#floor-slider"))
        dots = page.evaluate(
            "[...document.querySelectorAll('#floor circle')].map((d) => ['tracklet', 'cx', 'cy'].map((name) =>"
            " Number(name === 'tracklet' ? d.dataset.tracklet : d.getAttribute(name))))"
        )
        present = [row for row in range(len(t)) if t.start[row] <= shown <= t.end[row] and row != 3]
        assert sorted(row for row, _, _ in dots) == present
        for row, x, y in dots:
            assert x == pytest.approx(10 * (shown - t.start[row]) / (t.end[row] - t.start[row]), abs=0.05)
            assert -y == pytest.approx(row)
    assert page.locator("#floor-paths path").count() == len(t) - 1
    assert f"{len(t) - 1} tracklets of {len(t)}" in page.inner_text(".floor .hint")


@pytest.mark.slow
def test_the_floor_plan_shows_one_identity_or_cameras_and_opens_identities(
    page: Page, matches: Matches, tmp_path: Path
) -> None:
    show(page, tmp_path, matches, paths=straight_paths(matches))
    page.click("#tab-floor")
    page.select_option("#floor-colour", "camera")
    assert page.locator(".floor .legend .tag").all_inner_texts() == ["cam01", "cam02", "cam03"]
    strokes = page.evaluate(
        "[...new Set([...document.querySelectorAll('#floor-paths path')].map((p) => p.getAttribute('stroke')))]"
    )
    assert len(strokes) == 3
    page.fill("#floor-identity", "2")
    assert page.locator("#floor-paths path").count() == int((np.delete(matches.identity, 3) == 2).sum())
    page.evaluate("document.querySelector('#floor-paths path').dispatchEvent(new MouseEvent('click'))")
    assert page.inner_text("#detail h2").startswith("Identity 2")


@pytest.mark.slow
def test_play_moves_the_time(page: Page, matches: Matches, tmp_path: Path) -> None:
    show(page, tmp_path, matches, paths=straight_paths(matches))
    page.click("#tab-floor")
    page.click("#floor-play")
    page.wait_for_timeout(600)
    page.click("#floor-play")
    assert float(page.input_value("#floor-slider")) > 1
    assert page.inner_text("#floor-play") == "Play"


@pytest.mark.slow
def test_a_pair_shows_each_piece_of_evidence(page: Page, matches: Matches, tmp_path: Path) -> None:
    n = len(matches.links)
    evidence = {"looks": np.full(n, 2.34), "time": np.full(n, -1.26), "space": np.full(n, np.nan)}
    show(page, tmp_path, matches, evidence=evidence)
    go_to_pair(page, pairs_of(matches)[0])
    assert page.inner_text("#fact-looks") == "+2.3, for one person"
    assert page.inner_text("#fact-time") == "−1.3, for different people"
    assert page.inner_text("#fact-space") == "none"


@pytest.mark.slow
def test_an_identity_shows_its_evidence_leg_by_leg(page: Page, matches: Matches, tmp_path: Path) -> None:
    numbers, counts = np.unique(matches.identity, return_counts=True)
    rows = sorted(members(matches, int(numbers[counts.argmax()])))
    joins = (GapJoin(np.array(rows[:1]), np.array(rows[1:2]), 1.75),)
    evidence = {"looks": np.full(len(matches.links), -2.34), "space": np.full(len(matches.links), np.nan)}
    show(page, tmp_path, replace(matches, gap_joins=joins), evidence=evidence)
    page.fill("#search", str(matches.identity[rows[0]]))
    page.click("#rows .row")
    assert page.locator("#legs tbody tr").count() == len(rows) - 1
    assert page.locator("#legs thead th").all_inner_texts() == ["earlier", "later", "looks", "path", "sum"]
    first = page.locator("#legs tbody tr").first.locator("td").all_inner_texts()
    linked = tuple(rows[:2]) in pairs_of(matches)
    assert first[2:] == (["−2.3", "+1.8", "−0.6"] if linked else ["–", "+1.8", "+1.8"])


def test_the_page_contains_paths_and_evidence_as_plain_numbers(matches: Matches, tmp_path: Path) -> None:
    paths = {0: np.array([[1.0, 2.345678, -3.0]])}
    options = ReportOptions(paths=paths, evidence={"looks": np.full(len(matches.links), np.nan)})
    text = write_match_report(matches, None, tmp_path / "r.html", options).read_text("utf-8")
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert data["paths"][0] == [[1.0, 2.35, -3.0]]
    assert data["paths"][1:] == [[]] * (len(matches.tracklets) - 1)
    assert set(data["links"]["evidence"]["looks"]) == {None}
