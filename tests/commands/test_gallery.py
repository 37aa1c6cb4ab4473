"""`reid gallery` and `reid search` from files to answers."""

from __future__ import annotations

import base64
import csv
import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.gallery import Gallery
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.pipelines.pictures_file import read_pictures, write_pictures

pytest.importorskip("lancedb")

META = {"model": "m", "camera_names": ["door", "hall"]}
MATCHED = """identity,camera,track,first_time,last_time,first_frame,last_frame,frames,confidence
1,door,5,10.000,11.000,251,276,26,1.0000
1,hall,9,40.000,41.000,1001,1026,26,1.0000
2,door,6,12.000,13.000,301,326,26,1.0000
"""


def run(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def matched(tmp_path):
    """The folder of a match of three tracklets, with embeddings of four crops; the last is of no tracklet."""
    features = [[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 1, 0]]
    table = Embeddings(features, camids=[0, 1, 0, 0], tracks=[5, 9, 6, 5], frames=[260, 1010, 310, 999], meta=META)
    (tmp_path / "matched").mkdir()
    table.save(tmp_path / "matched/embeddings.parquet")
    (tmp_path / "matched/identities.csv").write_text(MATCHED)
    Embeddings([[1, 0, 0]], meta={"model": "m"}).save(tmp_path / "query.parquet")
    return tmp_path


def test_a_match_is_added_and_searched_by_identity(matched) -> None:
    shop = matched / "shop"
    run("gallery", "create", shop, "--zone", "Europe/Berlin")
    text = run("gallery", "add", shop, matched / "matched", "--start", "2026-07-01 08:00", "--source", "monday")
    assert "3 tracklets (3 rows) added" in text
    assert "3 of them replaced" in run("gallery", "add", shop, matched / "matched", "--source", "monday",
                                       "--start", "2026-07-01T06:00:00Z")  # fmt: skip
    out = matched / "answer.json"
    text = run("search", shop, "--photo", matched / "query.parquet", "--out", out)
    assert "Ranks only, because there is no calibration" in text
    answer = json.loads(out.read_text())
    assert [(hit["camera"], hit["track"], hit["identity"]) for hit in answer["hits"]] == [
        ("door", 5, 1), ("hall", 9, 1), ("door", 6, 2),
    ]  # fmt: skip
    assert answer["people"] == [[0, 1], [2]]
    assert answer["found"] is None
    run("search", shop, "--photo", matched / "query.parquet", "--from", "2026-07-01 08:00:30", "--camera", "hall",
        "--out", matched / "answer.csv")  # fmt: skip
    with open(matched / "answer.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["camera"], row["from"], row["rank"]) for row in rows] == [("hall", "2026-07-01 08:00:40+02:00", "1")]
    info = run("gallery", "info", shop)
    assert "3 tracklets, 3 rows" in info
    assert "2026-07-01 08:00:10+02:00" in info
    assert "no problems" in run("gallery", "check", shop)
    assert "3 rows copied" in run("gallery", "copy", shop, matched / "copy")


CAMERAS = """epoch: 2026-07-01T06:00:00Z
cameras: {door: {fps: 25}, hall: {fps: 25}, roof: {fps: 25}}
overlapping: []
pairs: [{from: door, to: hall, min: 28, max: 28.5}]
"""


def test_hits_become_a_trajectory_by_the_cameras_of_the_gallery(matched) -> None:
    shop, query, out = matched / "shop", matched / "query.parquet", matched / "answer.json"
    (matched / "cameras.yaml").write_text(CAMERAS)
    run("gallery", "create", shop, "--cameras", matched / "cameras.yaml")
    run("gallery", "add", shop, matched / "matched")
    text = " ".join(run("search", shop, "--photo", query, "--within", 1.1, "--out", out).split())
    assert "Trajectory of 2 sightings by 2 cameras; 1 hit dropped." in text
    assert "29.0 s (late)" in text
    reason = "shorter than the transition time (with step 2, hall, 27.0 s apart)"
    assert f"dropped: door, 2026-07-01 06:00:12+00:00: {reason}" in text
    answer = json.loads(out.read_text())
    assert [(step["hit"], step["gap_s"]) for step in answer["trajectory"]["steps"]] == [(0, None), (1, 29.0)]
    run("search", shop, "--photo", query, "--within", 1.1, "--out", matched / "a.csv")
    run("search", shop, "--photo", query, "--within", 1.1, "--out", matched / "a.html")
    assert "step 2 of the trajectory" in (matched / "a.html").read_text()
    with open(matched / "a.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", ""]
    assert "trajectory" not in run("search", shop, "--photo", query).lower()
    run("gallery", "copy", shop, matched / "copy")
    (matched / "strict.yaml").write_text(CAMERAS.replace("min: 28, max: 28.5", "min: 60"))
    for given, dropped in ((["--cameras", matched / "strict.yaml"], True), ([], False)):
        text = run("search", matched / "copy", "--photo", query, "--within", 0.1, *given)
        assert ("shorter than the transition time (with step 1, door, 29.0 s apart)" in text) == dropped
    text = run(
        "search", shop, "--photo", query, "--within", 0.1, "--tolerance", 40, "--cameras", matched / "strict.yaml"
    )
    assert "Trajectory of 2 sightings" in text


def test_pictures_of_a_match_are_stored_as_the_gallery_allows(matched) -> None:
    table = Embeddings.load(matched / "matched/embeddings.parquet")
    noise = np.random.default_rng(0).integers(0, 255, (96, 48, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    hidden = matched / "hidden.parquet"
    write_pictures(table, [jpeg] * len(table), matched / "matched/pictures.parquet", pixelate=False)
    write_pictures(table, [jpeg] * len(table), hidden, pixelate=True)
    for name, expected in {"keep": False, "pixelate": True, "none": None}.items():
        run("gallery", "create", matched / name, "--pictures", name)
        run("gallery", "add", matched / name, matched / "matched")
        (hit,) = Gallery.open(matched / name).search([[1, 0, 0]], top=1).hits
        assert (None if hit.picture is None else is_pixelated(hit.picture)) is expected
    query, page = matched / "query.parquet", matched / "a.html"
    for options, expected in (((), False), (("--mask-others",), True)):
        run("search", matched / "keep", "--photo", query, "--top", 1, "--out", page, *options)
        (shown,) = re.findall("data:image/jpeg;base64,([^\"']+)", page.read_text())
        assert is_pixelated(base64.b64decode(shown)) is expected
    assert is_pixelated(read_pictures(hidden, table)(0))
    assert read_pictures(hidden, table.take([0]))(0)
    (matched / "matched/pictures.parquet").write_bytes(b"PAR1")
    assert "pictures.parquet cannot be read" in run("gallery", "add", matched / "keep", matched / "matched", code=1)


def is_pixelated(jpeg):
    head = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)[:4, :4].astype(int)
    return bool(np.ptp(head) < 30)


def test_boxes_of_a_match_give_positions_on_the_ground(matched) -> None:
    shop, query, out = matched / "shop", matched / "query.parquet", matched / "answer.json"
    ground = "homography: [[0.1, 0, 0], [0, 0.1, 0], [0, 0, 1]]"
    (matched / "cameras.yaml").write_text(
        f"epoch: 2026-07-01T06:00:00Z\ncameras: {{door: {{{ground}}}, hall: {{{ground}}}}}"
    )
    rows = {260: (1, 1, 100, 50), 1010: (2, 1, 400, 50), 310: (1, 2, 3100, 50), 311: (1, 2, 3100, 50)}
    lines = [f"{camera} {person} {frame} {x} {y} 20 60 -1 -1\n" for frame, (camera, person, x, y) in rows.items()]
    (matched / "matched/aicity.txt").write_text("".join(lines))
    (matched / "matched/match.json").write_text('{"camera_numbers_in_aicity": {"door": 1, "hall": 2}}')
    run("gallery", "create", shop, "--cameras", matched / "cameras.yaml")
    run("gallery", "add", shop, matched / "matched")
    text = " ".join(run("search", shop, "--photo", query, "--within", 1.1, "--out", out).split())
    assert "Trajectory of 2 sightings by 2 cameras; 1 hit dropped." in text  # 300 m in 2 s
    assert "06:00:12+00:00: faster than the maximum speed (with step 1, door, 1.0 s apart)" in text
    hits = json.loads(out.read_text())["hits"]
    assert hits[0]["seen"] == [{"frame": 260, "time": 1_782_885_610_360, "box": [100, 50, 20, 60]}]
    assert [hit["seen"][0]["frame"] for hit in hits] == [260, 1010, 310]
    run("search", shop, "--photo", query, "--within", 1.1, "--out", matched / "a.html")
    assert (matched / "a.html").read_text().count("<circle") == 2
    (matched / "matched/aicity.txt").write_text("1 1 x\n")
    assert "aicity.txt does not fit the match" in run("gallery", "add", shop, matched / "matched", code=1)


def test_a_match_without_people_adds_nothing(matched) -> None:
    Embeddings(np.zeros((0, 3)), camids=[], tracks=[], frames=[], meta=META).save(
        matched / "matched/embeddings.parquet"
    )
    (matched / "matched/identities.csv").write_text(MATCHED.splitlines(keepends=True)[0])
    run("gallery", "create", matched / "shop")
    assert "0 tracklets (0 rows) added" in run(
        "gallery", "add", matched / "shop", matched / "matched", "--start", "2026-01-01"
    )


def test_errors_name_the_value_and_the_fix(matched) -> None:
    shop, query = matched / "shop", matched / "query.parquet"
    run("gallery", "create", shop)
    run("gallery", "add", shop, matched / "matched")
    assert "Use an IANA name" in run("gallery", "create", matched / "x", "--zone", "Mars", code=1)
    assert "Did you mean 'door'" in run("search", shop, "--photo", query, "--camera", "dor", code=1)
    assert "must end in .json, .csv or .html" in run("search", shop, "--photo", query, "--out", "x.txt", code=1)
    (matched / "empty").mkdir()
    assert "no embeddings.parquet" in run("gallery", "add", shop, matched / "empty", code=1)
    assert "identities.csv: No such file" in run(
        "gallery", "add", shop, matched / "empty", "--embeddings", matched / "matched/embeddings.parquet", code=1
    )
    Embeddings([[1, 0, 0]], meta={"model": "other"}).save(query)
    assert "model 'other' instead of 'm'" in run("search", shop, "--photo", query, code=1)


@pytest.mark.slow
def test_a_photo_is_embedded_and_a_wide_one_needs_a_box(tmp_path) -> None:
    model, rng = tmp_path / "best.pt", np.random.default_rng(0)
    save_checkpoint(model, build_model("light10", height=32, width=16))
    for name in range(3):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 255, (64, 32, 3), dtype=np.uint8))
    Embedder(model).table([str(tmp_path / f"{name}.png") for name in range(3)]).save(tmp_path / "crops.parquet")
    run("gallery", "create", tmp_path / "g")
    run("gallery", "add", tmp_path / "g", tmp_path / "crops.parquet")
    person = cv2.imread(str(tmp_path / "1.png"))
    scene = np.zeros((100, 200, 3), np.uint8)
    scene[20:84, 50:82] = person
    cv2.imwrite(str(tmp_path / "scene.png"), scene)
    given = ("search", tmp_path / "g", "--model", model, "--top", 1, "--out", tmp_path / "a.json", "--photo")
    for arguments in ([tmp_path / "1.png"], [tmp_path / "scene.png", "--box", "50,20,32,64"]):
        run(*given, *arguments)
        hit = json.loads((tmp_path / "a.json").read_text())["hits"][0]
        assert hit["path"].endswith("1.png")
        assert hit["distance"] < 1e-3
    run("gallery", "create", tmp_path / "private", "--pictures", "none")
    run("gallery", "add", tmp_path / "private", tmp_path / "crops.parquet")
    for name, pictures in (("g", 2), ("private", 0)):  # the photo and the hit
        page = tmp_path / f"{name}.html"
        run("search", tmp_path / name, *given[2:6], "--photo", tmp_path / "1.png", "--out", page)
        assert page.read_text().count("<img") == pictures
    assert "pass the person's box" in run(*given, tmp_path / "scene.png", code=1)
    assert "outside of" in run(*given, tmp_path / "scene.png", "--box", "500,20,32,64", code=1)
    assert "box" in run(*given, tmp_path / "scene.png", "--box", "50,20", code=1)
    assert "A photo needs --model" in run("search", tmp_path / "g", "--photo", tmp_path / "1.png", code=1)


@pytest.mark.slow
def test_hits_are_erased_with_a_receipt(matched) -> None:
    shop, query = matched / "shop", matched / "query.parquet"
    run("gallery", "create", shop, "--retention", "9999w", "--pictures", "none")
    run("gallery", "add", shop, matched / "matched", "--start", "2026-07-01T08:00Z", "--source", "monday")
    run("search", shop, "--photo", query, "--within", "0.05", "--out", matched / "hits.json")
    assert "2 tracklets (2 rows) would be erased" in run(
        "gallery", "erase", shop, "--source", "monday", "--identity", 1, "--dry-run"
    )
    text = run("gallery", "erase", shop, "--answer", matched / "hits.json", "--out", matched / "receipt.json")
    assert "2 tracklets (2 rows) erased" in text
    receipt = json.loads((matched / "receipt.json").read_text())
    assert (receipt["complete"], receipt["found_before"], receipt["found_after"]) == (True, 2, 0)
    text = run("gallery", "add", shop, matched / "matched", "--source", "monday", "--start", "2026-07-01T08:00Z")
    assert "1 tracklets (1 rows) added" in text
    assert "2 tracklets left out because they were erased before" in text
    assert "0 tracklets removed" in run("gallery", "expire", shop)
    text = run("gallery", "log", shop)
    assert "2 entries, no line was changed" in text
    for given, message in (
        ([], "No tracklet is selected"),
        (["--identity", 1], "--identity needs --source"),
        (["--tracklet", "x", "--source", "y"], "not both"),
        (["--answer", matched / "receipt.json"], "is not an answer"),
    ):
        assert message in run("gallery", "erase", shop, *given, code=1)
