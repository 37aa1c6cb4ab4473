"""Helpers that operate the match report in a browser."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.config import MatchSettings
from reid.mtmc.matching import Matches
from reid.mtmc.tracklets import Tracklets
from reid.report.match_page import ReportOptions, write_match_report
from tests.report.small_matches import random_crop

if TYPE_CHECKING:
    from playwright.sync_api import Page

NEXT_FRAME = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))"
SETTINGS = MatchSettings(threshold=0.5, camera_whitening=None)


def open_file(page: Page, path: Path) -> float:
    """Open a file and return the seconds until it is drawn."""
    began = time.monotonic()
    page.goto(path.resolve().as_uri())
    page.evaluate(NEXT_FRAME)
    return time.monotonic() - began


def show(page: Page, path: Path, matches: Matches, **more: Any) -> None:
    """Write the report and open it."""
    rows = range(0, len(matches.tracklets), 2)
    crops = more.pop("crops", {row: [random_crop(row), random_crop(100 + row)] for row in rows})
    open_file(page, write_match_report(matches, crops, path / "report.html", ReportOptions(**more)))


def row_of(tracklets: Tracklets, camera: str, track: int) -> int:
    found = (tracklets.camera == tracklets.camera_names.index(camera)) & (tracklets.track == track)
    return int(np.flatnonzero(found)[0])


def key_of(tracklets: Tracklets, row: int) -> list[Any]:
    return [tracklets.camera_names[tracklets.camera[row]], int(tracklets.track[row])]


def members(matches: Matches, identity: int) -> list[int]:
    rows = np.flatnonzero(matches.identity == identity)
    return sorted(rows.tolist(), key=lambda row: (matches.tracklets.start[row], row))


def pairs_of(matches: Matches) -> list[tuple[int, int]]:
    return list(zip(matches.links.first.tolist(), matches.links.second.tolist(), strict=True))


def go_to_pair(page: Page, pair: tuple[int, int]) -> None:
    page.click("#tab-review")
    page.select_option("#kind", "all")
    rows = page.evaluate("document.querySelector('#queue .sheet').offsetHeight / 48")
    for at in range(0, int(rows), 8):
        page.evaluate(f"document.querySelector('#queue').scrollTop = {48 * at}")
        if page.evaluate(f"""!!document.querySelector('#queue [data-pair="{pair[0]} {pair[1]}"]')"""):
            break
        page.evaluate("new Promise(requestAnimationFrame)")
    page.click(f'#queue [data-pair="{pair[0]} {pair[1]}"]')


def download(page: Page) -> dict[str, Any]:
    with page.expect_download() as started:
        page.click("#download")
    return json.loads(started.value.path().read_text(encoding="utf-8"))


def drawn(page: Page) -> list[int]:
    return page.evaluate("[...document.querySelectorAll('#rows .row')].map((row) => Number(row.dataset.identity))")
