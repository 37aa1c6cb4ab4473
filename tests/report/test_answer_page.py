"""The page of a search: hits, evidence, timeline and floor plan."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from reid.gallery import Answer, Hit, find_trajectory
from reid.mtmc import Camera, Cameras
from reid.report.answer_page import AnswerOptions, write_answer_page
from tests.report.test_page import Page

START = 1_763_881_200_000  # 2025-11-23 08:00 in Berlin


def small_answer(text="", *, calibrated=True):
    """An answer of five hits in cameras named after `text`; the third is impossible, the last explained by chance."""
    jpeg = cv2.imencode(".jpg", np.full((32, 16, 3), 99, np.uint8))[1].tobytes()
    names = [f"{text}door", f"{text}hall"]
    values = [(0, 0, 12, 1e-5), (1, 60, 95, 1e-3), (0, 70, 80, 0.02), (0, 900, 960, 0.03), (1, 2000, 2010, 0.8)]
    hits = []
    for rank, (camera, start, end, strangers) in enumerate(values):
        known = [START + 1000 * second for second in (start, end)]
        chance = (strangers, 0.9, strangers <= 0.1) if calibrated else (None, None, None)
        about = names[camera], 2**60 + rank, None if rank else 7, *known, 20
        path = f"/secret/folder/{text}a.jpg" if rank == 1 else None
        hits.append(
            Hit(0.1 + rank / 20, *chance, "g", f"id{rank}", f"{text}s", *about, path, jpeg if rank < 3 else None)
        )
    answer = Answer(hits, True if calibrated else None, 0.1, 1234, 4000, 5, 0.01, text if calibrated else None)
    cameras = Cameras({name: Camera() for name in names}, overlaps_known=True)
    options = AnswerOptions(
        title=f"{text}Search",
        zone="Europe/Berlin",
        trajectory=find_trajectory(answer.accepted, cameras) if calibrated else None,
        photos=[jpeg],
        positions={"id0": np.array([[0.0, 1.0], [2.0, 3.0]]), "id1": np.array([[30.0, 4.0]])},
        about={"gallery": text},
    )
    return answer, options


def test_the_page_contains_hits_evidence_and_trajectory(tmp_path) -> None:
    path = write_answer_page(tmp_path / "answer.html", *small_answer("<b>出口 "))
    content = path.read_text("utf-8")
    page = Page(content)
    assert page.headings == ["<b>出口 Search", "Trajectory", "Dropped", "Floor plan", "Hits", "Search"]
    for expected in (
        "4 hits that chance does not explain", "1,234 tracklets searched", "5 rows were not searched",
        "Trajectory of 3 sightings by 2 cameras; 1 hit dropped.", "2025-11-23 08:00:00+01:00",
        "<b>出口 door, 2025-11-23 08:01:10+01:00: cameras do not overlap (with step 2, <b>出口 hall, at the same time)",
        "strangers 1e-05 p(same) 0.900", f"track {2**60 + 1}", "identity 7", "step 1 of the trajectory",
        "dropped: cameras do not overlap", "explained by chance", "no picture", "Steps without a known position: 3.",
    ):  # fmt: skip
        assert expected in page.all_text, expected
    assert "secret" not in content
    assert page.tags.count("img") == 1 + 3
    assert page.tags.count("circle") == 2
    assert all(link.startswith(("data:image/jpeg;base64,", "#hit")) for link in page.links)
    assert content.count('class="bar step"') == 3 + 1  # and the legend
    again = write_answer_page(tmp_path / "again.html", *small_answer("<b>出口 "))
    assert again.read_bytes() == path.read_bytes()


def test_pages_without_calibration_times_or_hits(tmp_path) -> None:
    answer, options = small_answer(calibrated=False)
    page = Page(write_answer_page(tmp_path / "a.html", answer, replace(options, positions={})).read_text("utf-8"))
    assert page.headings == ["Search", "Timeline", "Hits", "Search"]
    assert "hits are only ranked" in page.all_text
    answer = replace(answer, hits=[replace(hit, start=None, end=None, camera=None) for hit in answer.hits])
    page = Page(write_answer_page(tmp_path / "a.html", answer).read_text("utf-8"))
    assert page.headings == ["Search", "Hits", "Search"]
    assert "unknown camera time unknown" in page.all_text
    page = Page(write_answer_page(tmp_path / "a.html", replace(answer, hits=[], tracklets=0)).read_text("utf-8"))
    assert "no tracklet is in the scope" in page.all_text
    assert "There is none." in page.all_text
