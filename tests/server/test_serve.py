"""The REST API: answers, decisions, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from reid.commands import main
from reid.mtmc.constraints import parse_constraints
from tests.server.conftest import picture

httpx = pytest.importorskip("httpx")


def client(app, host="127.0.0.1:8000", **headers):
    from starlette.testclient import TestClient

    return TestClient(app, base_url=f"http://{host}", headers=headers)


def post(app, *photos, files=None, **data):
    files = files or [("photo", ("x.png", photo, "image/png")) for photo in photos]
    return client(app).post("/api/search", files=files, data=data)


def hits(response):
    assert response.status_code == 200, response.text
    return [(hit["camera"], hit["track"]) for hit in response.json()["hits"]]


def test_a_photo_finds_the_nearest_tracklets(make_app) -> None:
    app = make_app()
    answer = post(app, picture("red"))
    assert hits(answer)[:2] == [("door", 5), ("hall", 9)]
    first = answer.json()["hits"][0]
    assert first["first_seen"] == "2026-07-01 08:00:00+02:00"
    assert first["picture"]
    assert first["strangers"] is None
    assert answer.json()["found"] is None
    assert hits(post(app, picture("red"), camera="hall", after="2026-07-01T08:00:10")) == [("hall", 9), ("hall", 7)]
    assert hits(post(app, picture("red"), top=1)) == [("door", 5)]
    about = client(app).get("/api/gallery").json()
    assert (about["cameras"], about["tracklets"], about["zone"]) == (["door", "hall"], 4, "Europe/Berlin")


def test_a_box_selects_the_person_and_a_wide_photo_needs_one(make_app) -> None:
    scene = Image.new("RGB", (200, 100), (10, 200, 10))
    scene.paste((10, 10, 200), (100, 20, 130, 90))
    stream = io.BytesIO()
    scene.save(stream, "PNG")
    answer = post(make_app(), stream.getvalue())
    assert answer.status_code == 400
    assert "pass the person's box" in answer.json()["error"]
    assert hits(post(make_app(), stream.getvalue(), box="100,20,30,70"))[0] == ("hall", 7)
    for wrong in ("1,2,3", "a,b,c,d", "900,900,5,5", "1,2,3,4;rm"):
        assert post(make_app(), stream.getvalue(), box=wrong).status_code == 400


def test_a_photo_of_a_telephone_is_turned_upright(make_app) -> None:
    person = Image.new("RGB", (40, 80), (10, 10, 200))
    stream, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    person.rotate(90, expand=True).save(stream, "JPEG", exif=turned)
    assert hits(post(make_app(), stream.getvalue()))[0] == ("hall", 7)


def test_confirmed_hits_join_the_query_and_rejected_ones_go(make_app, gallery) -> None:
    app = make_app()
    answer = post(app, picture("red")).json()["hits"]
    ids = {(hit["camera"], hit["track"]): hit["tracklet"] for hit in answer}
    again = post(app, picture("red"), confirmed=ids["hall", 7], rejected=ids["door", 5]).json()["hits"]
    assert [(hit["camera"], hit["track"], hit["confirmed"]) for hit in again] == [
        ("hall", 7, True), ("hall", 9, False), ("door", 6, False),
    ]  # fmt: skip
    assert again[0]["distance"] == pytest.approx(
        next(hit["distance"] for hit in answer if hit["tracklet"] == ids["hall", 7]), abs=1e-3
    )
    decided = {"confirmed": [ids["door", 5], ids["hall", 9]], "rejected": [ids["door", 6]]}
    files = client(app).post("/api/constraints", data=decided).json()["files"]
    read = parse_constraints(files["monday"])
    assert {frozenset(side[:2] for side in pair) for pair in read.must_link} == {frozenset({("door", 5), ("hall", 9)})}
    assert len(read.cannot_link) == 2
    single = client(app).post("/api/constraints", data={"confirmed": [ids["door", 5]]}).json()
    assert single["files"] == {}
    assert "needs two tracks" in single["left_out"][0]
    entries, _ = gallery.log()
    assert {entry["purpose"] for entry in entries[-3:]} == {"none given (reid serve, from testclient)"}
    assert [(entry["action"], len(entry["confirmed"]), len(entry["rejected"])) for entry in entries[-2:]] == [
        ("review", 2, 1), ("review", 1, 0),
    ]  # fmt: skip
    assert sorted(entry["action"] for entry in entries[-4:-2]) == ["review", "search"]


def test_accepted_and_confirmed_hits_are_a_trajectory(make_app) -> None:
    app = make_app()
    answer = post(app, picture("red")).json()
    assert answer["trajectory"] is None
    ids = [hit["tracklet"] for hit in answer["hits"][:2]]
    answer = post(app, picture("red"), confirmed=ids).json()
    steps = answer["trajectory"]["steps"]
    assert [(answer["hits"][step["hit"]]["camera"], step["gap_s"], step["confirmed"]) for step in steps] == [
        ("door", None, True), ("hall", 20, True),
    ]  # fmt: skip
    assert answer["trajectory"]["text"] == "Trajectory of 2 sightings by 2 cameras."
    assert answer["text"] == (
        "2 confirmed. The others are ranked only, because there is no calibration. 4 tracklets searched."
    )


def test_heads_are_pixelated_on_request_except_of_confirmed_hits(make_app) -> None:
    app = make_app()
    first = post(app, picture("red")).json()["hits"]
    assert not any(is_pixelated(hit) for hit in first)
    assert all(is_pixelated(hit) for hit in post(app, picture("red"), mask_others=True).json()["hits"])
    again = post(app, picture("red"), mask_others=True, confirmed=first[0]["tracklet"]).json()["hits"]
    assert [is_pixelated(hit) for hit in again] == [False, True, True, True]


def is_pixelated(hit):
    head = cv2.imdecode(np.frombuffer(base64.b64decode(hit["picture"]), np.uint8), cv2.IMREAD_GRAYSCALE)[:4, :4]
    return bool(np.ptp(head.astype(int)) < 30)


def test_other_hosts_and_pages_of_other_sites_are_refused(make_app) -> None:
    app = make_app(hosts=("localhost", "search.example"))
    for host in ("127.0.0.1:8000", "localhost:8000", "search.example", "[::1]:8000", "10.0.0.7"):
        assert client(app, host).get("/api/gallery").status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert client(app, host).get("/api/gallery").status_code == 421, host
        assert client(app, host).get("/").status_code == 421
    assert client(app, origin="http://evil.example").get("/api/gallery").status_code == 403
    assert client(app, origin="null").get("/api/gallery").status_code == 403
    assert client(app, **{"sec-fetch-site": "cross-site"}).get("/api/gallery").status_code == 403
    assert client(app, origin="http://127.0.0.1:8000").get("/api/gallery").status_code == 200


def test_a_token_is_needed_for_everything_but_the_page(make_app) -> None:
    app = make_app(token="t" * 24)
    for path in ("/", "/page.js", "/page.css"):
        assert client(app).get(path).status_code == 200
    for path in ("/api/gallery", "/openapi.json", "/nothing"):
        assert client(app).get(path).status_code == 401
        assert client(app, authorization="Bearer wrong").get(path).status_code == 401
    assert client(app, authorization="Bearer " + "t" * 24).get("/api/gallery").status_code == 200


def test_large_requests_and_too_many_are_refused(make_app) -> None:
    app = make_app(max_bytes=2000, per_minute=4)
    assert post(app, b"x" * 3000).status_code == 413
    assert client(app).post("/api/search", content=iter([b"x" * 1500] * 3)).status_code == 413
    assert post(app, picture("red")).status_code == 200
    assert client(app).get("/api/gallery").status_code == 200
    refused = client(app).get("/api/gallery")
    assert (refused.status_code, int(refused.headers["retry-after"]) <= 61) == (429, True)
    assert client(app).get("/").status_code == 200


def bomb(width, height):
    """A PNG whose header claims more pixels than it has."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [b"", b"no image", b"<html>", bomb(60000, 60000), picture("red")[:60]])
def test_what_is_no_image_is_refused_without_a_path(make_app, data) -> None:
    answer = post(make_app(), data)
    assert answer.status_code in (400, 422)
    assert "Traceback" not in answer.text
    if data:
        assert answer.json()["error"].startswith("photo 1")


def test_paths_and_names_of_the_client_are_never_used(make_app, gallery) -> None:
    app = make_app()
    assert hits(post(app, files=[("photo", ("../../etc/passwd", picture("red"), "image/png"))]))[0] == ("door", 5)
    for path in ("/../pyproject.toml", "/%2e%2e/gallery.json", "/page.js/../../app.py", "/docs", "/redoc"):
        assert client(app).get(path).status_code == 404
    for ids in ("../x", "' OR 1=1 --", "a" * 21):
        assert post(app, picture("red"), confirmed=ids).status_code == 400
    unknown = post(app, picture("red"), camera="' OR 1=1 --")
    assert unknown.status_code == 400
    assert str(gallery.path) not in unknown.text


def test_answers_have_a_strict_policy_and_the_api_is_described(make_app) -> None:
    answer = client(make_app()).get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http" not in answer.text
    described = client(make_app()).get("/openapi.json").json()
    assert set(described["paths"]) == {"/api/gallery", "/api/search", "/api/constraints"}
    assert "strangers" in json.dumps(described["components"])


def test_a_port_in_use_and_a_short_token_are_errors(gallery, monkeypatch) -> None:
    def serve(*options):
        done = CliRunner().invoke(main, ["serve", str(gallery.path), *map(str, options)])
        assert done.exit_code == 1
        return " ".join(done.output.split())

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1, port {port}: Address already in use" in serve("--port", port)
    assert "Pass --tls-certificate and --tls-key together" in serve("--tls-key", "x.pem")
    monkeypatch.setenv("REID_TOKEN", "short")
    assert "REID_TOKEN has fewer than 16 characters" in serve()
