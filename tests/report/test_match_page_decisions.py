"""Decisions made in the match report, and how the next match applies them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from reid.config import MatchSettings
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.constraints import Constraints, parse_constraints
from reid.mtmc.matching import Matches, match
from reid.report.match_page import write_match_report
from tests.report.match_browser import (
    SETTINGS,
    download,
    drawn,
    go_to_pair,
    key_of,
    members,
    open_file,
    pairs_of,
    row_of,
    show,
)
from tests.report.small_matches import bundled_tracklets

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_downloaded_decisions_are_applied_by_the_next_match(page: Page, matches: Matches, tmp_path: Path) -> None:
    """Accept, reject, split and undo; then match the same tracklets with the downloaded file."""
    t = matches.tracklets
    show(page, tmp_path, matches)
    assert page.evaluate("document.querySelector('#undo').disabled")

    joined = next(p for p in pairs_of(matches) if matches.identity[p[0]] == matches.identity[p[1]] == 1)
    go_to_pair(page, joined)
    page.click("#accept")
    separate = next(
        (i, j)
        for i, j in pairs_of(matches)
        if t.camera[i] != t.camera[j] and {matches.identity[i], matches.identity[j]} == {1, 2}
    )
    go_to_pair(page, separate)
    page.click("#reject")
    assert "different people" in page.inner_text("#message")

    page.click("#tab-timelines")
    page.click('#rows [data-identity="3"]')
    three = members(matches, 3)
    page.click(f'#detail [data-tracklet="{three[1]}"]')
    page.click("#split")
    assert drawn(page) == [1, 2, 3, 4, 5, 6, 7]
    assert page.evaluate(
        "[...document.querySelectorAll('#detail [data-tracklet]')].map((e) => +e.dataset.tracklet)"
    ) == [
        three[0],
        three[2],
    ]
    six = members(matches, 6)
    page.click('#rows [data-identity="6"]')
    page.click(f'#detail [data-tracklet="{six[0]}"]')
    page.click("#split")
    page.click('#rows [data-identity="8"]')
    assert "1 tracklet in 1 camera" in page.inner_text("#detail")
    page.click("#undo")
    assert drawn(page) == [1, 2, 3, 4, 5, 6, 7]

    page.click('#rows [data-identity="7"]')
    page.fill("#merge-number", "99")
    page.click("#merge")
    assert page.inner_text("#message") == "There is no identity 99."

    must = [[key_of(t, joined[0]), key_of(t, joined[1])]]
    cannot = [[key_of(t, i), key_of(t, j)] for i, j in (separate, (three[1], three[0]), (three[1], three[2]))]
    written = download(page)
    assert written == {"format": 1, "merge": must, "split": cannot}

    again = match(t, settings=SETTINGS, constraints=parse_constraints(written))
    assert again.identity[joined[0]] == again.identity[joined[1]]
    assert again.identity[separate[0]] != again.identity[separate[1]]
    assert again.identity[three[1]] != again.identity[three[0]]
    assert not np.array_equal(again.identity, matches.identity)


@pytest.mark.slow
def test_merged_identities_stay_merged_in_the_next_match(page: Page, tmp_path: Path) -> None:
    """A threshold near 0 joins nothing; two merges join three tracklets, also of ids that float64 cannot represent."""
    large = 2**53
    tracklets = bundled_tracklets()
    tracklets = replace(tracklets, track=tracklets.track + large)
    settings = MatchSettings(threshold=1e-6, camera_whitening=None)
    matches = match(tracklets, settings=settings)
    assert matches.identity.max() == 18
    rows = [row_of(tracklets, f"cam0{n + 1}", large + 11 * n) for n in range(3)]
    numbers = matches.identity[rows].tolist()
    show(page, tmp_path, matches)
    page.click(f'#rows [data-identity="{numbers[0]}"]')
    page.fill("#merge-number", str(numbers[1]))
    page.click("#merge")
    page.fill("#merge-number", str(numbers[2]))
    page.click("#merge")
    assert page.inner_text("#counted") == "16 of 16 identities"
    assert "3 tracklets in 3 cameras" in page.inner_text("#detail")
    written = download(page)
    again = match(tracklets, settings=settings, constraints=parse_constraints(written))
    assert len(set(again.identity[rows])) == 1
    assert again.identity.max() == 16
    page.click("#undo")
    page.click("#undo")
    assert page.inner_text("#counted") == "18 of 18 identities"
    assert download(page) == {"format": 1, "merge": [], "split": []}


@pytest.mark.slow
def test_a_similar_identity_can_be_merged(page: Page, tmp_path: Path) -> None:
    tracklets = bundled_tracklets()
    matches = match(tracklets, settings=MatchSettings(threshold=1e-6, camera_whitening=None))
    links = matches.links
    by_distance = replace(links, margin=-links.distance.astype(np.float64))
    show(page, tmp_path, replace(matches, links=by_distance))
    page.click('#rows [data-identity="1"]')
    mine = members(matches, 1)[0]
    beside = [
        (float(margin), int(j if i == mine else i))
        for i, j, margin in zip(links.first, links.second, by_distance.margin, strict=True)
        if mine in (i, j)
    ]
    best = max(beside)[1]
    assert page.locator("#detail .like .link").all_inner_texts()[0] == f"Identity {matches.identity[best]}"
    page.click("#detail .like button:last-child")
    assert download(page)["merge"] == [[key_of(tracklets, mine), key_of(tracklets, best)]]


@pytest.mark.slow
def test_keyboard_shortcuts(page: Page, matches: Matches, tmp_path: Path) -> None:
    t = matches.tracklets
    show(page, tmp_path, matches)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#detail h2").startswith("Identity 2")
    page.keyboard.press("2")

    def now() -> str:
        return page.evaluate("document.querySelector('#queue .row.open').dataset.pair")

    queue = page.evaluate("[...document.querySelectorAll('#queue .row')].map((row) => row.dataset.pair)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert now() == queue[1]
    page.keyboard.press("r")
    assert now() == queue[2]
    page.keyboard.press("u")
    assert now() == queue[1]
    page.keyboard.press("r")
    first, second = map(int, queue[1].split())
    assert download(page)["split"] == [[key_of(t, first), key_of(t, second)]]
    page.keyboard.press("3")
    assert page.evaluate("!!document.querySelector('#transitions')")
    page.keyboard.press("1")
    page.fill("#search", "u")
    page.keyboard.press("u")
    assert download(page)["split"], "a key typed into a field is text"


@pytest.mark.slow
def test_decisions_survive_a_reload_and_belong_to_one_result(page: Page, matches: Matches, tmp_path: Path) -> None:
    show(page, tmp_path, matches)
    page.click('#rows [data-identity="1"]')
    page.click(f'#detail [data-tracklet="{members(matches, 1)[0]}"]')
    page.click("#split")
    before = download(page)
    open_file(page, tmp_path / "report.html")
    assert "Restored 1 decision" in page.inner_text("#message")
    assert drawn(page) == [1, 2, 3, 4, 5, 6, 7]
    assert download(page) == before
    identity = matches.identity[::-1].copy()
    open_file(page, write_match_report(replace(matches, identity=identity), None, tmp_path / "other.html"))
    assert download(page)["split"] == []
    open_file(page, tmp_path / "report.html")
    page.click("#undo")
    assert drawn(page) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_page_asks_before_closing_if_the_browser_stores_nothing(
    page: Page, matches: Matches, tmp_path: Path
) -> None:
    page.add_init_script("Storage.prototype.setItem = Storage.prototype.getItem = () => { throw Error('forbidden'); }")
    show(page, tmp_path, matches)
    leaving = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert not page.evaluate(leaving)
    page.click("#tab-review")
    page.click("#reject")
    assert page.evaluate(leaving)
    assert len(download(page)["split"]) == 1
    page.click("#undo")
    assert not page.evaluate(leaving)


@pytest.mark.slow
def test_a_contradicting_decision_is_refused(page: Page, matches: Matches, tmp_path: Path) -> None:
    t = matches.tracklets
    show(page, tmp_path, matches)
    a, b, c = members(matches, 1)
    for pair in ((a, b), (b, c)):
        go_to_pair(page, (min(pair), max(pair)))
        page.click("#accept")
    go_to_pair(page, (min(a, c), max(a, c)))
    assert page.inner_text("#fact-decision") == "one person"
    page.click("#reject")
    assert "contradicts an earlier decision" in page.inner_text("#message")
    assert page.evaluate("document.querySelector('#message').className") == "wrong"
    written = download(page)
    assert len(written["merge"]) == 2
    assert written["split"] == []
    match(t, settings=SETTINGS, constraints=parse_constraints(written))


@pytest.mark.slow
def test_simultaneous_tracklets_of_one_camera_cannot_be_merged(page: Page, tmp_path: Path) -> None:
    tracklets = bundled_tracklets()
    start, end = tracklets.start.copy(), tracklets.end.copy()
    one, two = row_of(tracklets, "cam01", 0), row_of(tracklets, "cam01", 1)
    start[two] = end[one] - 1
    tracklets = replace(tracklets, start=start, end=end)
    matches = match(tracklets, settings=SETTINGS)
    show(page, tmp_path, matches)
    page.click(f'#rows [data-identity="{matches.identity[one]}"]')
    page.fill("#merge-number", str(matches.identity[two]))
    page.click("#merge")
    said = page.inner_text("#message")
    assert "cam01, track 0 and cam01, track 1 cannot be one person: one camera sees both simultaneously" in said
    assert download(page)["merge"] == []


@pytest.mark.slow
def test_travel_times_and_earlier_constraints_are_respected_and_kept(page: Page, tmp_path: Path) -> None:
    """The route from cam01 to cam03 takes 500 s; the run was given one cannot-link constraint."""
    tracklets = bundled_tracklets()
    cameras = Cameras(
        {n: Camera() for n in tracklets.camera_names}, transition_times={("cam01", "cam03"): (500.0, np.inf)}
    )
    former = Constraints(cannot_link=((("cam01", 0, -1), ("cam02", 11, -1)),), tolerance=0.25)
    matches = match(tracklets, cameras=cameras, settings=SETTINGS, constraints=former)
    show(page, tmp_path, matches, cameras=cameras, constraints=former)
    one, two, three = (row_of(tracklets, *at) for at in (("cam01", 0), ("cam02", 11), ("cam03", 22)))
    assert matches.identity[two] == matches.identity[three] != matches.identity[one]
    page.click(f'#rows [data-identity="{matches.identity[one]}"]')
    page.fill("#merge-number", str(matches.identity[two]))
    page.click("#merge")
    assert "contradicts an earlier decision" in page.inner_text("#message")
    alone = row_of(tracklets, "cam03", 20)
    go_to_pair(page, (min(one, alone), max(one, alone)))
    page.click("#accept")
    assert "the route takes at least 8.3 min" in page.inner_text("#message")
    written = download(page)
    assert written == {"format": 1, "merge": [], "split": [[["cam01", 0], ["cam02", 11]]], "tolerance": 0.25}
    assert parse_constraints(written) == former


@pytest.mark.slow
def test_rejecting_a_pair_within_an_identity_marks_it_as_divided(page: Page, matches: Matches, tmp_path: Path) -> None:
    show(page, tmp_path, matches)
    a, b, _ = members(matches, 2)
    go_to_pair(page, (min(a, b), max(a, b)))
    page.click("#reject")
    page.click("#tab-timelines")
    page.click('#rows [data-identity="2"]')
    assert "The next run will divide this identity" in page.inner_text("#detail .warnings")
    assert "⚠" in page.inner_text('#rows [data-identity="2"]')
    page.select_option("#which", "changed")
    assert drawn(page) == [2]


@pytest.mark.slow
def test_parts_of_a_split_track_are_identified_by_a_frame(page: Page, tmp_path: Path) -> None:
    """A track that was cut in two: the file identifies each part."""
    tracklets = bundled_tracklets()
    track, camera = tracklets.track.copy(), tracklets.camera
    one, two = row_of(tracklets, "cam01", 0), row_of(tracklets, "cam01", 1)
    track[two] = track[one]
    tracklets = replace(tracklets, track=track)
    assert (camera[one], track[one]) == (camera[two], track[two])
    matches = match(tracklets, settings=SETTINGS)
    assert matches.identity[one] != matches.identity[two]
    other = members(matches, int(matches.identity[two]))[1]
    show(page, tmp_path, matches)
    page.click(f'#rows [data-identity="{matches.identity[two]}"]')
    assert "track 0, part 2 of 2" in page.locator("#detail .card-head small").all_inner_texts()
    page.click(f'#detail [data-tracklet="{two}"]')
    page.click("#split")
    written = download(page)
    part = ["cam01", 0, int(tracklets.first_frame[two])]
    assert [part, key_of(tracklets, other)] in written["split"]
    again = match(tracklets, settings=SETTINGS, constraints=parse_constraints(written))
    assert again.identity[two] != again.identity[other]
    page.click("#undo")
