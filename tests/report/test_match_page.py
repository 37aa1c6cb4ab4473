"""The content of the match report; see test_match_page_views.py for its behaviour in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from reid.config import MatchSettings
from reid.core.errors import ReidError
from reid.data.images import HEAD_FRACTION, pixelate_heads
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.constraints import Constraints
from reid.mtmc.matching import match
from reid.report.match_page import ReportOptions, write_match_report
from tests.report.small_matches import MARKUP, bundled_tracklets, empty_matches, random_crop, small_matches


def embedded_data(page: Path, name: str) -> Any:
    """Return the content of a data block, found as in a browser: the element ends at the first </script>."""
    text = page.read_text(encoding="utf-8")
    start = text.index(f'<script type="application/json" id="{name}">')
    block = text[text.index(">", start) + 1 :]
    return json.loads(block[: block.index("</script>")])


def header_text(page: Path) -> str:
    """Return the text of the page's header, without tags."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", text[text.index("<header>") : text.index("</header>")])
    return " ".join(unescape(text).split())


def decoded(text: str) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1]


# ---------------------------------------------------------------- what is in the page


def test_the_page_contains_all_tracklets_and_links(tmp_path: Path) -> None:
    matches = small_matches()
    page = write_match_report(matches, None, tmp_path / "report.html")
    data, t = embedded_data(page, "data"), matches.tracklets
    assert data["cameras"] == ["cam01", "cam02", "cam03"]
    for name, column in (
        ("camera", t.camera),
        ("track", t.track),
        ("frames", t.frames),
        ("frame", t.first_frame),
        ("identity", matches.identity),
    ):
        assert data["tracklets"][name] == column.tolist(), name
    assert data["tracklets"]["start"] == pytest.approx(t.start.tolist(), abs=1e-3)
    assert data["tracklets"]["end"] == pytest.approx(t.end.tolist(), abs=1e-3)
    shown = {
        (i, j): (d, m, p, bool(joined), data["links"]["reasons"][reason])
        for i, j, d, m, p, joined, reason in zip(
            *(data["links"][n] for n in ("first", "second", "distance", "margin", "probability", "joined", "reason")),
            strict=True,
        )
    }
    links = matches.links
    assert len(shown) == len(links) > 10
    for row in range(len(links)):
        d, m, p, joined, reason = shown[int(links.first[row]), int(links.second[row])]
        assert d == pytest.approx(links.distance[row], abs=1e-4)
        assert m == (None if np.isinf(links.margin[row]) else pytest.approx(links.margin[row], abs=1e-4))
        assert p == pytest.approx(links.probability[row], abs=1e-4)
        assert (joined, reason) == (links.joined[row], links.forbidden_by[row])
    assert embedded_data(page, "crops") == [[] for _ in range(len(t))]


def test_the_header_shows_counts_threshold_and_settings(tmp_path: Path) -> None:
    matches = small_matches()
    identity = matches.identity.copy()
    identity[0] = identity.max() + 1
    alone = replace(matches, identity=identity, threshold=0.3217, fmr=0.015)
    text = header_text(write_match_report(alone, None, tmp_path / "report.html", ReportOptions(title="Hall 3")))
    assert "Hall 3" in text
    assert "3 cameras 18 tracklets 7 identities 6 in two or more cameras 1 with one tracklet" in text
    assert "at most the threshold 0.3217 (expected false-match rate 1.5 %)" in text
    assert "settings / solver agglomerative" in text
    assert "Scores" not in text


def test_an_unknown_false_match_rate_is_not_shown(tmp_path: Path) -> None:
    text = header_text(write_match_report(replace(small_matches(), fmr=None), None, tmp_path / "report.html"))
    assert "false-match rate" not in text
    assert "nan" not in text


def test_the_header_shows_scores_warnings_transitions_clocks_and_omissions(tmp_path: Path) -> None:
    matches = replace(
        small_matches(),
        transition_times={("cam01", "cam02"): (42.5, 3.25, 17)},
        clock_offsets={"cam02": -1.5, "cam01": 1.5},
    )
    scores = {
        "iou": 0.5,
        "overall": {"IDF1": 0.8123, "HOTA": 0.7, "IDTP": 1234},
        "per_camera": {"cam01": {"IDF1": 0.9}, "cam02": {"IDF1": 0.95, "MOTA": 0.5}},
        "warnings": ["cam03 has no truth"],
    }
    page = write_match_report(
        matches,
        None,
        tmp_path / "report.html",
        ReportOptions(
            scores=scores,
            warnings=["The clocks disagree. See /home/me/private/cameras.yaml."],
            left_out={"Tracks without an embedding": ["cam01, track 3", "cam02, track 9"], "Nothing": []},
        ),
    )
    text = header_text(page)
    assert "Scores against the given truth 81.2 % IDF1 70.0 % HOTA" in text
    assert "IDTP 1,234" in text
    assert "cam02 0.95 0.5" in text
    assert "cam01 0.9 –" in text
    assert "warnings: cam03 has no truth" in text
    assert "Warnings The clocks disagree. See cameras.yaml." in text
    assert "Tracks without an embedding (2) cam01, track 3 cam02, track 9" in text
    assert "Nothing" not in text
    assert "cam01 cam02 42.5 3.2 17" in text
    assert "cam01 +1.50 cam02 -1.50" in text


def test_all_text_is_escaped(tmp_path: Path) -> None:
    matches = small_matches(names=(MARKUP, "a & b", '"><img src=x onerror=alert(1)>'))
    matches = replace(
        matches,
        protocol={MARKUP: {MARKUP: MARKUP}},
        transition_times={(MARKUP, "a & b"): (1.0, 1.0, 1)},
        clock_offsets={MARKUP: 1.0},
    )
    page = write_match_report(
        matches,
        {0: [b"no image"]},
        tmp_path / "report.html",
        ReportOptions(
            title=MARKUP,
            scores={
                MARKUP: {MARKUP: MARKUP},
                "overall": {MARKUP: 1.0},
                "rows": {MARKUP: {MARKUP: MARKUP}},
                "list": [MARKUP],
            },
            warnings=[MARKUP],
            left_out={MARKUP: [MARKUP]},
        ),
    )
    text = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "<!--" not in text
    assert embedded_data(page, "data")["cameras"][0] == MARKUP
    assert header_text(page).count(MARKUP) >= 12


def test_template_syntax_in_a_title_is_text(tmp_path: Path) -> None:
    page = write_match_report(
        small_matches(), None, tmp_path / "report.html", ReportOptions(title="{{data}} {{script}}")
    )
    assert "<h1>{{data}} {{script}}</h1>" in page.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_allows_only_its_script(tmp_path: Path) -> None:
    text = write_match_report(small_matches(), None, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text)
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    matches = small_matches()
    links = replace(matches.links, probability=np.full(len(matches.links), np.nan))
    confidence = np.full(len(matches.confidence), np.inf)
    page = write_match_report(replace(matches, links=links, confidence=confidence), None, tmp_path / "report.html")
    data = embedded_data(page, "data")
    assert set(data["links"]["probability"]) == {None}
    assert set(data["tracklets"]["confidence"]) == {None}


@pytest.mark.parametrize(
    ("people", "cameras"),
    [
        (1, 1),  # one tracklet, no pair
        (1, 3),  # one person only
        (5, 1),  # one camera only
    ],
)
def test_small_results_have_a_page(people: int, cameras: int, tmp_path: Path) -> None:
    page = write_match_report(small_matches(people, cameras), None, tmp_path / "report.html")
    assert len(embedded_data(page, "data")["tracklets"]["camera"]) == people * cameras


def test_a_result_without_tracklets_has_a_page(tmp_path: Path) -> None:
    page = write_match_report(empty_matches(), None, tmp_path / "report.html")
    assert embedded_data(page, "data")["tracklets"]["camera"] == []
    assert "0 tracklets" in header_text(page)


def test_the_run_id_changes_with_the_result(tmp_path: Path) -> None:
    matches = small_matches()
    runs = [
        embedded_data(write_match_report(m, None, tmp_path / "r.html"), "data")["run"]
        for m in (matches, small_matches())
    ]
    assert runs[0] == runs[1]
    identity = matches.identity.copy()
    identity[0] += 1
    changed = write_match_report(replace(matches, identity=identity), None, tmp_path / "r.html")
    assert embedded_data(changed, "data")["run"] != runs[0]


def test_the_least_certain_pairs_are_kept_and_the_rest_counted(tmp_path: Path) -> None:
    matches = small_matches()
    n = len(matches.links)
    rng = np.random.default_rng(3)
    size = rng.permutation(np.linspace(0.001, 0.999, n))
    links = replace(matches.links, margin=np.where(matches.links.joined, size, -size))
    options = ReportOptions(max_links=7)
    page = write_match_report(replace(matches, links=links, threshold=0.5), None, tmp_path / "report.html", options)
    data = embedded_data(page, "data")["links"]
    expected = []
    for i, j, margin, distance, joined in zip(
        links.first, links.second, links.margin, links.distance, links.joined, strict=True
    ):
        expected.append((-max(-abs(margin), distance - 0.5 if joined else 0.5 - distance), int(i), int(j)))
    assert list(zip(data["first"], data["second"], strict=True)) == [(i, j) for _, i, j in sorted(expected)[:7]]
    assert f"{n - 7} of {n}: the most certain pairs" in header_text(page)


def test_timing_rules_and_given_constraints_are_embedded(tmp_path: Path) -> None:
    cameras = Cameras(
        {name: Camera() for name in ("cam01", "cam02", "cam03")},
        overlapping=frozenset({frozenset({"cam01", "cam03"})}),
        transition_times={("cam01", "cam02"): (20.0, 90.0), ("cam03", "cam02"): (math.inf, math.inf)},
        overlaps_known=True,
    )
    tracklets = bundled_tracklets()
    frame = int(tracklets.first_frame[0])
    constraints = Constraints(
        must_link=((("cam01", int(tracklets.track[0]), frame), ("cam02", 11, -1)),),
        cannot_link=((("cam01", 0, -1), ("cam03", 20, -1)),),
        tolerance=0.5,
    )
    settings = MatchSettings(threshold=0.5, camera_whitening=None)
    matches = match(tracklets, cameras=cameras, settings=settings, constraints=constraints)
    page = write_match_report(
        matches, None, tmp_path / "r.html", ReportOptions(cameras=cameras, constraints=constraints)
    )
    rules = embedded_data(page, "data")["rules"]
    assert rules["tolerance"] == 0.5
    assert rules["non_overlapping"] == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert rules["min_transition_time"][0][1] == 20.0
    assert rules["min_transition_time"][2][1] == rules["never"]
    assert rules["min_transition_time"][1][0] == -rules["never"]
    assert rules["given"] == {
        "merge": [[["cam01", int(tracklets.track[0]), frame], ["cam02", 11]]],
        "split": [[["cam01", 0], ["cam03", 20]]],
        "tolerance": 0.5,
    }
    row = {(int(c), int(k)): r for r, (c, k) in enumerate(zip(tracklets.camera, tracklets.track, strict=True))}
    assert rules["must"] == [[0, row[1, 11]]]
    assert rules["cannot"] == [[row[0, 0], row[2, 20]]]


def test_an_unwritable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReidError, match="taken"):
        write_match_report(small_matches(), None, tmp_path / "taken" / "report.html")


# ---------------------------------------------------------------- crops


def test_crops_keep_their_order_proportions_and_colours(tmp_path: Path) -> None:
    red, tall = np.zeros((200, 100, 3), np.uint8), np.zeros((192, 48, 3), np.uint8)
    red[..., 0], tall[..., 2] = 200, 200
    file = cv2.imencode(".png", red[:, :, ::-1])[1].tobytes()
    page = write_match_report(small_matches(), {3: [red, tall], 5: [file]}, tmp_path / "report.html")
    crops = embedded_data(page, "crops")
    assert [len(of) for of in crops[:7]] == [0, 0, 0, 2, 0, 1, 0]
    assert decoded(crops[3][0]).shape == (96, 48, 3)
    assert decoded(crops[3][1]).shape == (96, 24, 3)
    assert np.abs(decoded(crops[3][0]).astype(int) - [200, 0, 0]).max() < 8
    assert np.abs(decoded(crops[3][1]).astype(int) - [0, 0, 200]).max() < 8
    assert np.abs(decoded(crops[5][0]).astype(int) - [200, 0, 0]).max() < 8


def test_a_very_wide_crop_stays_small(tmp_path: Path) -> None:
    page = write_match_report(small_matches(), {0: [np.zeros((2, 500, 3), np.uint8)]}, tmp_path / "report.html")
    assert decoded(embedded_data(page, "crops")[0][0]).shape == (96, 288, 3)


def test_at_most_six_crops_of_a_tracklet_are_embedded(tmp_path: Path) -> None:
    page = write_match_report(small_matches(), {0: [random_crop(n) for n in range(9)]}, tmp_path / "report.html")
    assert len(embedded_data(page, "crops")[0]) == 6


def test_whole_rounds_of_crops_fill_the_size_limit(tmp_path: Path) -> None:
    crops = {row: [random_crop(10 * row + n) for n in range(4)] for row in range(18)}
    everything = embedded_data(write_match_report(small_matches(), crops, tmp_path / "r.html"), "crops")
    size = sum(len(text) for of in everything for text in of)
    page = write_match_report(small_matches(), crops, tmp_path / "r.html", ReportOptions(max_bytes=int(0.6 * size)))
    fewer = embedded_data(page, "crops")
    assert [len(of) for of in everything] == [4] * 18
    assert [len(of) for of in fewer] == [2] * 18
    assert [of[:2] for of in everything] == fewer
    assert "did not fit" not in header_text(page)


def test_crops_are_scaled_down_before_any_is_omitted(tmp_path: Path) -> None:
    crops = {row: [random_crop(row)] for row in range(18)}
    full = sum(
        len(of[0]) for of in embedded_data(write_match_report(small_matches(), crops, tmp_path / "r.html"), "crops")
    )
    page = write_match_report(small_matches(), crops, tmp_path / "r.html", ReportOptions(max_bytes=full // 2))
    assert {decoded(of[0]).shape for of in embedded_data(page, "crops")} == {(48, 24, 3)}
    assert "did not fit" not in header_text(page)


def test_omitted_crops_are_listed_and_uncertain_pairs_come_first(tmp_path: Path) -> None:
    crops = {row: [random_crop(row)] for row in range(18)}
    page = write_match_report(small_matches(), crops, tmp_path / "r.html", ReportOptions(max_bytes=6000, max_links=1))
    data, embedded = embedded_data(page, "data"), embedded_data(page, "crops")
    have = {row for row in range(18) if embedded[row]}
    assert 2 <= len(have) < 18
    assert {data["links"]["first"][0], data["links"]["second"][0]} <= have
    assert sum(len(text) for of in embedded for text in of) <= 6000
    assert f"Crops that did not fit into 0.006 MB ({18 - len(have)})" in header_text(page)


def test_an_unreadable_crop_is_listed_and_the_others_kept(tmp_path: Path) -> None:
    matches = small_matches()
    crops = {1: [b"not a picture", random_crop(1)], 2: [b""], 4: [random_crop(4)]}
    page = write_match_report(matches, crops, tmp_path / "r.html")
    assert [len(of) for of in embedded_data(page, "crops")[:6]] == [0, 1, 0, 0, 1, 0]
    text = header_text(page)
    assert "Crops that could not be read (2)" in text
    assert f"cam01, track {matches.tracklets.track[1]}: 13 bytes are not a JPEG or PNG" in text


@pytest.mark.parametrize(
    ("crop", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), r"tracklet 2: An image is float32 \[4, 4, 3\]\. Pass uint8 \[H, W, 3\]"),
        (np.zeros((4, 4), np.uint8), r"is uint8 \[4, 4\]"),  # gray
        (np.zeros((0, 4, 3), np.uint8), r"is uint8 \[0, 4, 3\]"),
        ("crop.jpg", "it is str"),  # a path is not bytes
    ],
)
def test_a_crop_of_another_type_is_refused(crop: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=text):
        write_match_report(small_matches(), {2: [crop]}, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_crops_of_a_missing_tracklet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"tracklet 18, but only 18 tracklets"):
        write_match_report(small_matches(), {18: [random_crop(0)]}, tmp_path / "r.html")


# ---------------------------------------------------------------- heads


def reference_pixelation(crop: np.ndarray, block: int, rows: int) -> np.ndarray:
    out = crop.astype(float)
    for y in range(rows):
        for x in range(crop.shape[1]):
            top, left = y // block * block, x // block * block
            cell = crop[top : min(top + block, rows), left : left + block].reshape(-1, 3)
            out[y, x] = np.round(cell.astype(float).mean(axis=0))
    return out.astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "block", "rows"),
    [
        (96, 48, 4, 24),  # as embedded
        (97, 50, 5, 25),  # blocks that do not divide it
        (256, 128, 11, 66),  # as cut from a video
        (40, 300, 25, 25),  # very wide
        (6, 5, 4, 4),  # tiny
        (3, 3, 4, 3),  # less than a block
        (1, 1, 4, 1),  # one pixel
    ],
)
def test_heads_become_blocks_and_the_rest_does_not_change(height: int, width: int, block: int, rows: int) -> None:
    crop = random_crop(height, height, width)
    before = crop.copy()
    (coarse,) = pixelate_heads([crop])
    assert rows >= HEAD_FRACTION * height
    assert np.array_equal(coarse, reference_pixelation(crop, block, rows))
    assert np.array_equal(coarse[rows:], crop[rows:])
    assert np.array_equal(crop, before)


@pytest.mark.parametrize(("fraction", "rows"), [(0.0, 0), (0.5, 48), (1.0, 96)])
def test_the_pixelated_fraction_can_be_chosen(fraction: float, rows: int) -> None:
    crop = random_crop(0)
    (coarse,) = pixelate_heads([crop], fraction)
    assert np.array_equal(coarse, reference_pixelation(crop, 4, rows))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ReidError, match="0 or more and at most 1"):
        pixelate_heads([random_crop(0)], fraction)


def shuffled_in_blocks(crop: np.ndarray, rows: int, block: int = 4) -> np.ndarray:
    """Return a crop with the same block means: pixels are moved within each block of the upper rows."""
    rng = np.random.default_rng(1)
    other = crop.copy()
    for top in range(0, rows, block):
        for left in range(0, crop.shape[1], block):
            cell = other[top : top + block, left : left + block].reshape(-1, 3)
            other[top : top + block, left : left + block] = rng.permutation(cell).reshape(block, block, 3)
    return other


def test_embedded_heads_contain_only_block_means(tmp_path: Path) -> None:
    """Two heads with the same block means give the same bytes, so the original cannot be restored."""
    crop = random_crop(7)
    other = shuffled_in_blocks(crop, 24)
    assert not np.array_equal(crop, other)
    crops = {0: [crop], 1: [other], 2: [cv2.imencode(".png", crop[:, :, ::-1])[1].tobytes()]}
    page = write_match_report(small_matches(), crops, tmp_path / "r.html", ReportOptions(pixelate_heads=True))
    hidden = embedded_data(page, "crops")
    assert hidden[0] == hidden[1] == hidden[2]
    plain = embedded_data(write_match_report(small_matches(), crops, tmp_path / "plain.html"), "crops")
    assert plain[0] != plain[1]
    assert "upper 22 % of each crop was pixelated" in header_text(page)


@pytest.mark.parametrize(("height", "width"), [(96, 48), (300, 140)])
def test_decoded_heads_are_flat_within_blocks_and_bodies_are_not(height: int, width: int, tmp_path: Path) -> None:
    crops = {0: [random_crop(1, height, width)]}
    hidden, plain = (
        decoded(
            embedded_data(
                write_match_report(small_matches(), crops, tmp_path / "r.html", ReportOptions(pixelate_heads=hide)),
                "crops",
            )[0][0]
        )
        for hide in (True, False)
    )

    def detail(image: np.ndarray) -> float:
        """Return the mean spread within the 4 x 4 blocks of the head, in grey levels."""
        head = image[:24, : image.shape[1] // 4 * 4].astype(float)
        return float(head.reshape(6, 4, -1, 4, 3).std(axis=(1, 3)).mean())

    assert detail(hidden) < 0.2 * detail(plain)
    assert detail(hidden) < 8
    body = slice(32, 96)
    assert np.abs(hidden[body].astype(int) - plain[body]).mean() < 1.0
