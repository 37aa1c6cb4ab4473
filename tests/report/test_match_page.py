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
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.constraints import Constraints
from reid.mtmc.matching import Links, Matches, match
from reid.mtmc.tracklets import Tracklets
from reid.report.match_page import HEAD_SHARE, pixelate_heads, write_match_report


def made_tracklets(people: int = 6, cameras: int = 3, *, seed: int = 0, names: tuple[str, ...] = ()) -> Tracklets:
    """Each person once before each camera, ten boxes, one after another; features in tight bundles.

    Local track ids are 10·camera + person, in another order in each camera.
    """
    rng = np.random.default_rng(seed)
    size = max(16, people)
    centres = 4 * np.linalg.qr(rng.normal(size=(size, size)))[0]
    rows: list[tuple[int, int, int, float]] = []
    features = []
    for camera in range(cameras):
        for person in range(people):
            for box in range(10):
                begin = 60.0 * camera + 7.0 * person
                rows.append((camera, 10 * camera + (person + camera) % people, 1 + box, begin + 0.4 * box))
                features.append(centres[person] + rng.normal(0, 0.4, size))
    camera_of, track, frame, seconds = (np.array(column) for column in zip(*rows, strict=True))
    names = names or tuple(f"cam{number:02d}" for number in range(1, cameras + 1))
    frame = frame + np.round(seconds * 2.5).astype(np.int64)
    return Tracklets.from_features(
        names, camera_of, track, frame, np.array(features, np.float32), seconds.astype(np.float64)
    )


def made_matches(people: int = 6, cameras: int = 3, **more: Any) -> Matches:
    settings = MatchSettings(threshold=0.5, camera_whitening=None)
    return match(made_tracklets(people, cameras, **more), settings=settings)


def made_crop(number: int, height: int = 96, width: int = 48) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)


def held(page: Path, name: str) -> Any:
    """What a data block of the page holds, found as a browser finds it: the element ends at the first </script>."""
    text = page.read_text(encoding="utf-8")
    start = text.index(f'<script type="application/json" id="{name}">')
    block = text[text.index(">", start) + 1 :]
    return json.loads(block[: block.index("</script>")])


def words_of(page: Path) -> str:
    """The text of the page's upper part, without tags."""
    text = page.read_text(encoding="utf-8")
    return unescape(re.sub(r"<[^>]+>", " ", text[text.index("<header>") : text.index("</header>")]))


def decoded(text: str) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1]


# ---------------------------------------------------------------- what is in the page


def test_the_page_holds_the_tracklets_and_links_as_they_are(tmp_path: Path) -> None:
    matches = made_matches()
    page = write_match_report(matches, None, tmp_path / "report.html")
    data, t = held(page, "data"), matches.tracklets
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
        (i, j): (d, p, bool(joined), data["links"]["reasons"][reason])
        for i, j, d, p, joined, reason in zip(
            *(data["links"][name] for name in ("first", "second", "distance", "probability", "joined", "reason")),
            strict=True,
        )
    }
    links = matches.links
    assert len(shown) == len(links) > 10
    for row in range(len(links)):
        d, p, joined, reason = shown[int(links.first[row]), int(links.second[row])]
        assert d == pytest.approx(links.distance[row], abs=1e-4)
        assert p == pytest.approx(links.probability[row], abs=1e-4)
        assert (joined, reason) == (links.joined[row], links.forbidden_by[row])
    assert held(page, "crops") == [[] for _ in range(len(t))]


def test_the_numbers_and_the_threshold_are_said(tmp_path: Path) -> None:
    matches = made_matches()
    identity = matches.identity.copy()
    identity[0] = identity.max() + 1
    alone = replace(matches, identity=identity, threshold=0.3217, fmr=0.015)
    words = " ".join(words_of(write_match_report(alone, None, tmp_path / "report.html", title="Hall 3")).split())
    assert "Hall 3" in words
    assert "3 cameras 18 tracklets 7 identities 6 in two or more cameras 1 singles" in words
    assert "distance of 0.3217 or less" in words
    assert "1.5 % are expected to lie under it" in words
    assert "settings / solver agglomerative" in words
    assert "Scores" not in words


def test_an_unknown_false_match_rate_is_not_made_up(tmp_path: Path) -> None:
    words = words_of(write_match_report(replace(made_matches(), fmr=None), None, tmp_path / "report.html"))
    assert "false-match" not in words
    assert "nan" not in words


def test_scores_warnings_travel_clocks_and_what_was_left_out_are_shown(tmp_path: Path) -> None:
    matches = replace(
        made_matches(),
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
        scores=scores,
        warnings=["The clocks disagree."],
        left_out={"Tracks without an embedding": ["cam01, track 3", "cam02, track 9"], "Nothing": []},
    )
    words = " ".join(words_of(page).split())
    assert "Scores against the truth that was given 81.2 % IDF1 70.0 % HOTA" in words
    assert "IDTP 1,234" in words
    assert "cam02 0.95 0.5" in words
    assert "cam01 0.9 –" in words
    assert "warnings: cam03 has no truth" in words
    assert "Warnings The clocks disagree." in words
    assert "Tracks without an embedding (2) cam01, track 3 cam02, track 9" in words
    assert "Nothing" not in words
    assert "cam01 cam02 42.5 3.2 17" in words
    assert "cam01 +1.50 cam02 -1.50" in words


EVIL = "</script><script>alert(1)</script><!--"


def test_no_text_from_outside_becomes_markup(tmp_path: Path) -> None:
    matches = made_matches(names=(EVIL, "a & b", '"><img src=x onerror=alert(1)>'))
    matches = replace(
        matches,
        protocol={EVIL: {EVIL: EVIL}},
        transition_times={(EVIL, "a & b"): (1.0, 1.0, 1)},
        clock_offsets={EVIL: 1.0},
    )
    page = write_match_report(
        matches,
        {0: [b"no image"]},
        tmp_path / "report.html",
        title=EVIL,
        scores={EVIL: {EVIL: EVIL}, "overall": {EVIL: 1.0}, "rows": {EVIL: {EVIL: EVIL}}, "list": [EVIL]},
        warnings=[EVIL],
        left_out={EVIL: [EVIL]},
    )
    text = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "<!--" not in text
    assert held(page, "data")["cameras"][0] == EVIL
    assert words_of(page).count(EVIL) >= 12


def test_a_placeholder_in_a_text_is_left_as_text(tmp_path: Path) -> None:
    page = write_match_report(made_matches(), None, tmp_path / "report.html", title="{{data}} {{script}}")
    assert "<h1>{{data}} {{script}}</h1>" in page.read_text(encoding="utf-8")


def test_nothing_from_outside_is_asked_for_and_only_this_script_may_run(tmp_path: Path) -> None:
    text = write_match_report(made_matches(), None, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text)
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_values_that_are_not_numbers_are_unknown(tmp_path: Path) -> None:
    matches = made_matches()
    links = replace(matches.links, probability=np.full(len(matches.links), np.nan))
    confidence = np.full(len(matches.confidence), np.inf)
    page = write_match_report(replace(matches, links=links, confidence=confidence), None, tmp_path / "report.html")
    data = held(page, "data")
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
    page = write_match_report(made_matches(people, cameras), None, tmp_path / "report.html")
    assert len(held(page, "data")["tracklets"]["camera"]) == people * cameras


def empty_matches() -> Matches:
    none = np.zeros(0, np.int64)
    tracklets = Tracklets.from_features(("cam01", "cam02"), none, none, none, np.zeros((0, 4), np.float32))
    floats = np.zeros(0)
    links = Links(none, none, floats.astype(np.float32), floats, floats, np.zeros(0, object), np.zeros(0, bool))
    return Matches(tracklets, none, floats, links, 0.5, 0.01, {})


def test_no_tracklets_at_all_have_a_page(tmp_path: Path) -> None:
    page = write_match_report(empty_matches(), None, tmp_path / "report.html")
    assert held(page, "data")["tracklets"]["camera"] == []
    assert "0 tracklets" in " ".join(words_of(page).split())


def test_the_run_has_one_name_until_its_result_changes(tmp_path: Path) -> None:
    matches = made_matches()
    runs = [held(write_match_report(m, None, tmp_path / "r.html"), "data")["run"] for m in (matches, made_matches())]
    assert runs[0] == runs[1]
    identity = matches.identity.copy()
    identity[0] += 1
    changed = write_match_report(replace(matches, identity=identity), None, tmp_path / "r.html")
    assert held(changed, "data")["run"] != runs[0]


def test_the_most_doubtful_pairs_are_kept_and_the_rest_counted(tmp_path: Path) -> None:
    matches = made_matches()
    n = len(matches.links)
    rng = np.random.default_rng(3)
    links = replace(matches.links, probability=rng.permutation(np.linspace(0.001, 0.999, n)))
    page = write_match_report(replace(matches, links=links), None, tmp_path / "report.html", max_links=7)
    data = held(page, "data")["links"]
    one = matches.identity[links.first] == matches.identity[links.second]
    expected = []
    for i, j, p, joined in zip(links.first, links.second, links.probability, one, strict=True):
        wrong = 1 - p if joined else p
        expected.append((-max(1 - abs(2 * p - 1), wrong), int(i), int(j)))
    assert list(zip(data["first"], data["second"], strict=True)) == [(i, j) for _, i, j in sorted(expected)[:7]]
    assert f"{n - 7} of {n}: those least in doubt" in words_of(page)


def test_rules_of_time_and_former_decisions_go_with_the_page(tmp_path: Path) -> None:
    cameras = Cameras(
        {name: Camera() for name in ("cam01", "cam02", "cam03")},
        overlapping=frozenset({frozenset({"cam01", "cam03"})}),
        transition_times={("cam01", "cam02"): (20.0, 90.0), ("cam03", "cam02"): (math.inf, math.inf)},
        overlaps_known=True,
    )
    tracklets = made_tracklets()
    frame = int(tracklets.first_frame[0])
    constraints = Constraints(
        must_link=((("cam01", int(tracklets.track[0]), frame), ("cam02", 11, -1)),),
        cannot_link=((("cam01", 0, -1), ("cam03", 20, -1)),),
        tolerance=0.5,
    )
    settings = MatchSettings(threshold=0.5, camera_whitening=None)
    matches = match(tracklets, cameras=cameras, settings=settings, constraints=constraints)
    page = write_match_report(matches, None, tmp_path / "r.html", cameras=cameras, constraints=constraints)
    rules = held(page, "data")["rules"]
    assert rules["tolerance"] == 0.5
    assert rules["non_overlapping"] == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert rules["min_transition_time"][0][1] == 20.0
    assert rules["min_transition_time"][2][1] == rules["never"]
    assert rules["min_transition_time"][1][0] == -rules["never"]
    assert rules["kept"] == {
        "merge": [[["cam01", int(tracklets.track[0]), frame], ["cam02", 11]]],
        "split": [[["cam01", 0], ["cam03", 20]]],
        "tolerance": 0.5,
    }
    row = {(int(c), int(k)): r for r, (c, k) in enumerate(zip(tracklets.camera, tracklets.track, strict=True))}
    assert rules["must"] == [[0, row[1, 11]]]
    assert rules["cannot"] == [[row[0, 0], row[2, 20]]]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReidError, match="taken"):
        write_match_report(made_matches(), None, tmp_path / "taken" / "report.html")


# ---------------------------------------------------------------- crops


def test_crops_keep_their_order_proportions_and_colours(tmp_path: Path) -> None:
    red, tall = np.zeros((200, 100, 3), np.uint8), np.zeros((192, 48, 3), np.uint8)
    red[..., 0], tall[..., 2] = 200, 200
    file = cv2.imencode(".png", red[:, :, ::-1])[1].tobytes()
    page = write_match_report(made_matches(), {3: [red, tall], 5: [file]}, tmp_path / "report.html")
    crops = held(page, "crops")
    assert [len(of) for of in crops[:7]] == [0, 0, 0, 2, 0, 1, 0]
    assert decoded(crops[3][0]).shape == (96, 48, 3)
    assert decoded(crops[3][1]).shape == (96, 24, 3)
    assert np.abs(decoded(crops[3][0]).astype(int) - [200, 0, 0]).max() < 8
    assert np.abs(decoded(crops[3][1]).astype(int) - [0, 0, 200]).max() < 8
    assert np.abs(decoded(crops[5][0]).astype(int) - [200, 0, 0]).max() < 8


def test_a_very_wide_crop_stays_small(tmp_path: Path) -> None:
    page = write_match_report(made_matches(), {0: [np.zeros((2, 500, 3), np.uint8)]}, tmp_path / "report.html")
    assert decoded(held(page, "crops")[0][0]).shape == (96, 288, 3)


def test_at_most_six_crops_of_a_tracklet_are_embedded(tmp_path: Path) -> None:
    page = write_match_report(made_matches(), {0: [made_crop(n) for n in range(9)]}, tmp_path / "report.html")
    assert len(held(page, "crops")[0]) == 6


def test_whole_rounds_of_crops_fill_the_budget(tmp_path: Path) -> None:
    crops = {row: [made_crop(10 * row + n) for n in range(4)] for row in range(18)}
    everything = held(write_match_report(made_matches(), crops, tmp_path / "r.html"), "crops")
    size = sum(len(text) for of in everything for text in of)
    page = write_match_report(made_matches(), crops, tmp_path / "r.html", budget=int(0.6 * size))
    fewer = held(page, "crops")
    assert [len(of) for of in everything] == [4] * 18
    assert [len(of) for of in fewer] == [2] * 18
    assert [of[:2] for of in everything] == fewer
    assert "did not fit" not in words_of(page)


def test_crops_are_made_smaller_before_any_is_left_out(tmp_path: Path) -> None:
    crops = {row: [made_crop(row)] for row in range(18)}
    full = sum(len(of[0]) for of in held(write_match_report(made_matches(), crops, tmp_path / "r.html"), "crops"))
    page = write_match_report(made_matches(), crops, tmp_path / "r.html", budget=full // 2)
    assert {decoded(of[0]).shape for of in held(page, "crops")} == {(48, 24, 3)}
    assert "did not fit" not in words_of(page)


def test_what_does_not_fit_is_listed_and_pairs_in_doubt_come_first(tmp_path: Path) -> None:
    crops = {row: [made_crop(row)] for row in range(18)}
    page = write_match_report(made_matches(), crops, tmp_path / "r.html", budget=6000, max_links=1)
    data, embedded = held(page, "data"), held(page, "crops")
    have = {row for row in range(18) if embedded[row]}
    assert 2 <= len(have) < 18
    assert {data["links"]["first"][0], data["links"]["second"][0]} <= have
    assert sum(len(text) for of in embedded for text in of) <= 6000
    assert f"Crops that did not fit in 0.006 MB ({18 - len(have)})" in words_of(page)


def test_an_unreadable_file_is_listed_and_the_others_kept(tmp_path: Path) -> None:
    matches = made_matches()
    crops = {1: [b"not a picture", made_crop(1)], 2: [b""], 4: [made_crop(4)]}
    page = write_match_report(matches, crops, tmp_path / "r.html")
    assert [len(of) for of in held(page, "crops")[:6]] == [0, 1, 0, 0, 1, 0]
    words = words_of(page)
    assert "Crops that could not be read (2)" in words
    assert f"cam01, track {matches.tracklets.track[1]}: 13 bytes that are no JPEG or PNG" in words


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), r"tracklet 2: it must be uint8 \[H, W, 3\] RGB .* not float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"not uint8 \[4, 4\]"),  # gray
        (np.zeros((0, 4, 3), np.uint8), r"is empty, \[0, 4, 3\]"),
        ("crop.jpg", "not str"),  # a path is not bytes
    ],
)
def test_a_crop_of_another_kind_is_refused(crop: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=words):
        write_match_report(made_matches(), {2: [crop]}, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_crops_of_a_tracklet_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"tracklet 18, but only 18 tracklets"):
        write_match_report(made_matches(), {18: [made_crop(0)]}, tmp_path / "r.html")


# ---------------------------------------------------------------- heads


def obvious_pixelation(crop: np.ndarray, block: int, rows: int) -> np.ndarray:
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
def test_heads_become_blocks_and_the_rest_is_as_it_was(height: int, width: int, block: int, rows: int) -> None:
    crop = made_crop(height, height, width)
    before = crop.copy()
    (coarse,) = pixelate_heads([crop])
    assert rows >= HEAD_SHARE * height
    assert np.array_equal(coarse, obvious_pixelation(crop, block, rows))
    assert np.array_equal(coarse[rows:], crop[rows:])
    assert np.array_equal(crop, before)


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.5, 48), (1.0, 96)])
def test_the_share_of_the_crop_can_be_chosen(share: float, rows: int) -> None:
    crop = made_crop(0)
    (coarse,) = pixelate_heads([crop], share)
    assert np.array_equal(coarse, obvious_pixelation(crop, 4, rows))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ReidError, match=r"0\.\.1"):
        pixelate_heads([made_crop(0)], share)


def shuffled_in_blocks(crop: np.ndarray, rows: int, block: int = 4) -> np.ndarray:
    """Another picture with the same block means: pixels moved within each block of the upper rows."""
    rng = np.random.default_rng(1)
    other = crop.copy()
    for top in range(0, rows, block):
        for left in range(0, crop.shape[1], block):
            cell = other[top : top + block, left : left + block].reshape(-1, 3)
            other[top : top + block, left : left + block] = rng.permutation(cell).reshape(block, block, 3)
    return other


def test_what_is_embedded_of_a_head_holds_its_block_means_and_no_more(tmp_path: Path) -> None:
    """Two heads that differ in everything but the means of their blocks give the same bytes: none can be had back."""
    crop = made_crop(7)
    other = shuffled_in_blocks(crop, 24)
    assert not np.array_equal(crop, other)
    crops = {0: [crop], 1: [other], 2: [cv2.imencode(".png", crop[:, :, ::-1])[1].tobytes()]}
    page = write_match_report(made_matches(), crops, tmp_path / "r.html", pixelate_heads=True)
    hidden = held(page, "crops")
    assert hidden[0] == hidden[1] == hidden[2]
    plain = held(write_match_report(made_matches(), crops, tmp_path / "plain.html"), "crops")
    assert plain[0] != plain[1]
    assert "upper 22 % of each crop was made of coarse blocks" in words_of(page)


@pytest.mark.parametrize(("height", "width"), [(96, 48), (300, 140)])
def test_the_decoded_head_is_flat_within_blocks_and_the_body_is_not(height: int, width: int, tmp_path: Path) -> None:
    crops = {0: [made_crop(1, height, width)]}
    hidden, plain = (
        decoded(
            held(write_match_report(made_matches(), crops, tmp_path / "r.html", pixelate_heads=hide), "crops")[0][0]
        )
        for hide in (True, False)
    )

    def detail(image: np.ndarray) -> float:
        """Mean spread within the 4 x 4 blocks of the head, in gray levels."""
        head = image[:24, : image.shape[1] // 4 * 4].astype(float)
        return float(head.reshape(6, 4, -1, 4, 3).std(axis=(1, 3)).mean())

    assert detail(hidden) < 0.2 * detail(plain)
    assert detail(hidden) < 8
    body = slice(32, 96)
    assert np.abs(hidden[body].astype(int) - plain[body]).mean() < 1.0
