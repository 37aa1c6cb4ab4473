from __future__ import annotations

import csv
import functools
import json
import os
import pickle
import shutil
import signal
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from reid.commands import main
from reid.config import MatchSettings, StreamSettings
from reid.core.errors import ConfigError, DataError, ModelError
from reid.data.frame_reader import FrameReader
from reid.data.videos import Video
from reid.embedding.embedder import Embedder
from reid.gallery import Gallery
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc import Camera, Cameras, Tracklets, read_tracks
from reid.mtmc.online import OnlineMatcher
from reid.pipelines import live, live_engine
from reid.pipelines.live_engine import Decided, Event, LiveEngine, LiveFrame, utc
from reid.pipelines.live_gallery import GalleryOutput
from reid.pipelines.live_status import StatusPage
from reid.pipelines.match import match_files
from reid.pipelines.settings import LiveSettings, MatchFiles, TrackSettings
from reid.pipelines.track import track_videos
from reid.tracking import sources
from reid.tracking.detectors import Detector, open_detector
from tests.tracking.toys import PERSON, SIZE, toy_detector

START = 1_764_403_456.0
FPS = 10
STREAM = StreamSettings(period=3, close_after=1)
VISITS = {"door": [(0, 1, 20), (1, 8, 40), (0, 45, 70)], "yard": [(0, 1, 38), (1, 50, 72)]}
"""By camera: visits of one of two places in the picture, with the first and last frame."""


def visit_boxes(camera: str, frame: int) -> list[tuple[int, int, int, int]]:
    return [(8 + 4 * ((frame // 2) % 24), 4 + 44 * place, *PERSON) for place, a, b in VISITS[camera] if a <= frame <= b]


def write_visits(path: Path, camera: str, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), FPS, SIZE)
    for frame in range(1, frames + 1):
        image = np.full((SIZE[1], SIZE[0], 3), 20, np.uint8)
        for x, y, w, h in visit_boxes(camera, frame):
            image[y : y + h, x : x + w] = 255
        writer.write(image)
    writer.release()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy detector, a random model, and videos of two cameras in which people come and go."""
    folder = tmp_path_factory.mktemp("live")
    toy_detector(folder / "toy.onnx")
    save_checkpoint(folder / "best.pt", build_model("light10", height=64, width=32))
    (folder / "videos").mkdir()
    for camera in VISITS:
        write_visits(folder / "videos" / f"{camera}.avi", camera, 80)
    return folder


@functools.cache
def open_models(folder: Path) -> tuple[Detector, Embedder]:
    return open_detector(folder / "toy.onnx"), Embedder(folder / "best.pt", device="cpu")


def open_engine(folder: Path, events: list[Event], executor: Executor | None = None, **keys: Any) -> LiveEngine:
    settings = LiveSettings(**{"every": 0, **keys})
    matcher = OnlineMatcher(stream=STREAM)
    return LiveEngine(*open_models(folder), matcher, events.append, settings, STREAM, executor=executor)


def moments(folder: Path, until: float = 100.0) -> list[tuple[float, dict[str, LiveFrame]]]:
    """The frames of all videos, frames of one moment together."""
    found: dict[float, dict[str, LiveFrame]] = defaultdict(dict)
    for camera in VISITS:
        for frame in FrameReader(Video(folder / "videos" / f"{camera}.avi"), 10):
            if frame.time <= until:
                found[START + frame.time][camera] = LiveFrame(START + frame.time, frame.image)
    return sorted(found.items())


@functools.cache
def play(folder: Path, executor: Executor | None = None, **keys: Any) -> list[Event]:
    events: list[Event] = []
    engine = open_engine(folder, events, executor, **keys)
    engine.begin(START)
    for now, frames in moments(folder):
        engine.step(frames, now)
    engine.close()
    return events


@pytest.mark.slow
def test_a_pause_of_26_days_ends_no_run(scene: Path) -> None:
    """Frame numbers count from the oldest track that is remembered, and reach 2.4 days."""
    events: list[Event] = []
    engine = open_engine(scene, events)
    engine.begin(START)
    for later in (0.0, 26 * 86_400.0):
        for now, frames in moments(scene, until=4.5):
            moved = {name: LiveFrame(frame.time + later, frame.image) for name, frame in frames.items()}
            engine.step(moved, now + later)
    engine.close()
    ends = [event for event in events if event["event"] == "end"]
    tracks = {(event["camera"], event["track"]) for event in ends}
    assert len(tracks) == len(ends) == 2 * sum(event["time"] < utc(START + 100) for event in ends) > 0
    early, late = (
        {event["identity"] for event in ends if (event["time"] < utc(START + 100)) == first} for first in (True, False)
    )
    assert max(early) < min(late)


class Late(Executor):
    """Runs what it is given when its result is needed, so that each decision takes until the next one."""

    def submit(self, work: Any, /, *arguments: Any, **keys: Any) -> Any:
        return SimpleNamespace(done=lambda: False, result=lambda: work(*arguments, **keys))


def seconds(event: Event, key: str = "time") -> float:
    return round(datetime.fromisoformat(event[key].replace("Z", "+00:00")).timestamp() - START, 3)


def sightings(events: Sequence[Event]) -> list[tuple[str, int, float, float, int]]:
    return sorted(
        (e["camera"], e["track"], seconds(e, "start"), seconds(e), e["identity"]) for e in events if e["event"] == "end"
    )


@pytest.mark.slow
def test_live_gives_the_tracks_and_identities_of_track_and_online_match(scene: Path, tmp_path: Path) -> None:
    events = play(scene)
    tracked = track_videos(scene / "videos", tmp_path, TrackSettings(detector=str(scene / "toy.onnx"), workers=1))
    tracks = read_tracks(tmp_path / "tracks")
    expected = sorted(
        (tracks.camera_names[camera], track, round((frame - 1) / FPS, 3), *box)
        for camera, track, frame, box in zip(
            tracks.camera.tolist(), tracks.track.tolist(), tracks.frame.tolist(), tracks.boxes.tolist(), strict=True
        )
    )
    found = sorted((e["camera"], e["track"], seconds(e), *e["box"]) for e in events if e["event"] != "end")
    assert found == expected
    assert len(expected) > 100
    files = MatchFiles(
        tracks=tmp_path / "tracks", model=scene / "best.pt", online=True, device="cpu", self_calibrate=False
    )
    match_files(files, tmp_path / "matched", stream=STREAM, videos=tracked.videos)
    with open(tmp_path / "matched" / "identities.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    offline = sorted(
        (r["camera"], int(r["track"]), float(r["first_time"]), float(r["last_time"]), int(r["identity"])) for r in rows
    )
    assert sightings(events) == offline
    assert len(offline) >= 5


def spans(events: Sequence[Event]) -> list[tuple[str, int, float, float]]:
    return [sighting[:4] for sighting in sightings(events)]


@pytest.mark.slow
def test_events_go_to_files_and_standard_output_and_a_bad_camera_stops_no_other(scene: Path, tmp_path: Path) -> None:
    door = tmp_path / "door.avi"
    write_visits(door, "door", 8)
    (tmp_path / "yard.avi").write_bytes(b"RIFF" + bytes(300))
    command = ["live", str(door), str(tmp_path / "yard.avi"), f"lane={tmp_path / 'none.avi'}", "stream.period=0.5"]
    command += ["--detector", str(scene / "toy.onnx"), "--model", str(scene / "best.pt"), "--device", "cpu"]
    out = tmp_path / "new" / "events.jsonl"
    runs = set()
    for lines in (1, 2):
        result = CliRunner().invoke(main, [*command, "--out", "-", "--out", str(out), "--rate", "10"])
        assert result.exit_code == 0, result.output
        events = [json.loads(line) for line in out.read_text().splitlines()]
        shown = [json.loads(line) for line in result.stdout.splitlines()]
        assert shown == [event for event in events if event["run"] == shown[0]["run"]]
        runs.add(shown[0]["run"])
        assert len(runs) == lines
    states = {(e["camera"], e["state"]) for e in shown if e["event"] == "camera"}
    assert states >= {("door", "ended"), ("yard", "failed"), ("lane", "failed")}
    assert {e["event"] for e in shown} == {"camera", "new", "end"}
    assert [(e["camera"], e["track"], e["identity"]) for e in shown if e["event"] == "end"] == [("door", 1, 1)]
    assert "There is no video" in result.stderr
    result = CliRunner().invoke(main, [*command[:1], *command[2:], "--out", str(out)])
    assert result.exit_code == 1
    assert "No source can be read. The first:" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["treshold=0.3"], "Did you mean 'threshold'"),
        (["a/door.avi", "b/door.avi"], "Two cameras are called 'door'"),
        (["threshold=0.3"], "There is no source"),
        (["door.avi", "fmr=0.01"], "Use threshold"),
    ],
)
def test_words_that_are_no_source_and_no_setting_are_errors(words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["live", *words])
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.slow
def test_a_long_track_has_an_identity_while_it_lasts_and_ends_once(scene: Path) -> None:
    whole, cut = play(scene), play(scene, longest=1)
    assert spans(cut) == spans(whole)
    early = [e for e in cut if e["event"] == "update" and e["identity"] is not None]
    assert {(e["camera"], e["track"]) for e in early} >= {("yard", 1), ("door", 2)}
    identity = {(camera, track): number for camera, track, _, _, number in sightings(cut)}
    assert all(e["identity"] == identity[e["camera"], e["track"]] for e in early)
    assert all(e["identity"] is None for e in whole if e["event"] != "end")


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"longest": 1}])
def test_matching_beside_the_frames_changes_no_track_and_no_identity(scene: Path, keys: dict[str, Any]) -> None:
    direct, late = play(scene, **keys), play(scene, Late(), **keys)
    assert sightings(late) == sightings(direct)
    new = [[(e["camera"], e["track"], e["box"]) for e in events if e["event"] == "new"] for events in (late, direct)]
    assert new[0] == new[1]
    ends = [[e["event"] for e in events].index("end") for events in (late, direct)]
    assert ends[0] > ends[1]  # frames were processed before the identities were known


def test_a_track_that_was_decided_in_parts_ends_although_nothing_comes_after(scene: Path) -> None:
    events: list[Event] = []
    engine = open_engine(scene, events, longest=1)
    engine.begin(START)
    for now, frames in moments(scene, until=3.0):
        engine.step({"yard": frames["yard"]}, now)
    assert [e["event"] for e in events][-1] == "update"
    assert events[-1]["identity"] == 1
    engine.step({}, START + 100)
    assert spans(events) == [("yard", 1, 0.0, 3.0)]
    engine.close()
    assert len(spans(events)) == 1


def test_numbers_are_not_used_again_when_a_camera_stalls_or_is_removed_and_added(scene: Path) -> None:
    events: list[Event] = []
    engine = open_engine(scene, events)
    engine.begin(START)
    clip = [(now, {"yard": frames["yard"]}) for now, frames in moments(scene, until=1.0)]
    for shift, removed in ((0, False), (30, True), (31.2, False)):
        for now, frames in clip:
            moved = {name: LiveFrame(frame.time + shift, frame.image) for name, frame in frames.items()}
            engine.step(moved, now + shift)
            engine.step(moved, now + shift)  # a frame that is not newer is ignored
        if removed:
            engine.remove("yard")
    engine.close()
    assert spans(events) == [("yard", 1, 0.0, 1.0), ("yard", 2, 30.1, 31.0), ("yard", 3, 31.2, 32.2)]
    new = [e for e in events if e["event"] == "new"]
    assert [e["track"] for e in new] == [1, 2, 3]
    assert len(events) - len(new) - 3 == 3 * 10 - 1
    assert engine.identities == max(e["identity"] for e in events if e["event"] == "end")


@pytest.mark.slow
def test_memory_of_the_engine_is_bounded(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_engine, "HISTORY", 20.0)
    events: list[Event] = []
    engine = open_engine(scene, events, longest=5)
    engine.begin(START)
    image = moments(scene, until=1.0)[-1][1]["yard"].image
    sizes = []
    for minute in range(6):
        for tick in range(20):  # a person stands for 10 s
            now = START + 20 * minute + tick / 2
            engine.step({"yard": LiveFrame(now, image)}, now)
        sizes.append(len(pickle.dumps([camera.parts for camera in engine._cameras.values()])))
    assert max(sizes) < 2 * sizes[0]
    assert len(sightings(events)) == 5


def get(url: str, path: str = "", **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_the_status_page_shows_the_cameras_and_refuses_the_rest() -> None:
    camera = {"camera": "<b>door</b>", "state": "waiting", "fps": 9.96, "frames": 1234, "dropped": 5, "people": 2}
    camera |= {"last_seen": None, "error": "the stream <i>ended</i>"}
    status = {"run": "r", "time": "t", "identities": 7, "delay": 62.0, "cameras": [camera], "events": {"end": 1000}}
    page = StatusPage(0, lambda: status)
    try:
        code, headers, text = get(page.url)
        assert code == 200
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Refresh"] == "2"
        assert headers["Server"] == "reid"
        for shown in ("&lt;b&gt;door", "10.0", "1,234", "7 identities", "62 s", "never", "&lt;i&gt;ended", "1,000"):
            assert shown in text
        assert "<script" not in text
        assert json.loads(get(page.url, "status.json")[2]) == status
        assert get(page.url, "../etc/passwd")[0] == 404
        assert get(page.url, Host="evil.example")[0] == 421
        with pytest.raises(ConfigError, match=r"Port \d+ of the status page cannot be used.*Pass another"):
            StatusPage(int(page.url.rstrip("/").rsplit(":", 1)[1]), dict)
        request = urllib.request.Request(page.url, data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(request, timeout=20)
    finally:
        page.close()


@pytest.mark.slow
def test_cameras_are_added_and_removed_while_others_go_on(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_LOOK", 0.0)
    for name in ("door", "yard", "lane"):
        shutil.copyfile(scene / "videos" / "yard.avi", tmp_path / f"{name}.avi")
    file, out = tmp_path / "sources.yaml", tmp_path / "events.jsonl"

    def write(*names: str, text: str = "") -> None:
        cameras = {name: str(tmp_path / f"{name}.avi") for name in names}
        file.write_text(text or json.dumps({"cameras": cameras}))

    def states(camera: str) -> list[str]:
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return [e["state"] for e in lines if e["event"] == "camera" and e["camera"] == camera]

    steps = iter(
        [
            (lambda: "running" in states("yard"), lambda: write("lane", "yard")),
            (lambda: "running" in states("lane"), lambda: write(text="cameras: [")),
            (lambda: True, lambda: write("lane")),
            (lambda: "removed" in states("yard"), lambda: os.kill(os.getpid(), signal.SIGINT)),
        ]
    )
    waiting = [next(steps)]
    take = sources.LiveSource.take

    def checking(source: sources.LiveSource) -> Any:
        """Change the file when its last change has been seen; called in each turn."""
        if waiting and waiting[0][0]():
            waiting.pop()[1]()
            waiting.extend([step] if (step := next(steps, None)) else [])
        return take(source)

    monkeypatch.setattr(sources.LiveSource, "take", checking)
    write("yard")
    settings = LiveSettings(
        detector=str(scene / "toy.onnx"), model=scene / "best.pt", device="cpu", sources=file, status=0, loop=True
    )
    result = live.run_live({"door": str(tmp_path / "door.avi")}, [str(out)], settings)
    assert set(result.cameras) == {"door", "lane"}
    assert states("door")[-1] in ("running", "connecting")
    assert states("yard")[-1] == "removed"
    assert result.events["end"] >= result.events["new"]
    with pytest.raises(ConfigError, match="'lane' is given and listed"):
        live.run_live({"lane": "0"}, [str(out)], settings)
    write(text="cameras: {door: {}}")
    with pytest.raises(ConfigError, match=r"cameras\.door"):
        live.run_live({}, [str(out)], settings)


@pytest.mark.slow
def test_tracklets_are_in_the_gallery_as_soon_as_they_have_an_identity(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = Gallery.create(tmp_path / "shop")
    events: list[Event] = []
    engine = open_engine(scene, events, longest=2)
    engine.begin(START)
    meta = open_models(scene)[1].describe()
    output = GalleryOutput(gallery, engine.run, meta)
    sent: list[Decided] = []

    def archive(decided: Sequence[Decided]) -> None:
        sent.extend(decided)
        if len(sent) == len(decided):  # the first time the disk is full
            with monkeypatch.context() as patch:
                patch.setattr(Gallery, "add", full_disk)
                output.send(decided)
        else:
            output.send(decided)

    def full_disk(*arguments: Any, **keys: Any) -> Any:
        raise DataError("The disk is full.")

    engine.archive = archive
    for now, frames in moments(scene):
        engine.step(frames, now)
    assert len(gallery.find(source=output.source)) == len(sent) > 3
    engine.close()
    output.close()
    assert "tracklets wait" in capsys.readouterr().out
    found = gallery.details(gallery.find(source=f"live {utc(START)}"))
    assert len(found) == len(sent)
    stored = sorted((row["camera"], row["track"], row["start"], row["end"], row["identity"]) for row in found.values())
    expected = sorted((d.camera, d.track, round(1000 * d.start), round(1000 * d.end), d.identity) for d in sent)
    assert stored == expected
    assert all(row["picture"] for row in found.values())
    last = {(e["camera"], e["track"], round(1000 * (START + seconds(e)))) for e in events if e["event"] == "end"}
    assert last <= {(camera, track, end) for camera, track, _, end, _ in stored}
    output.send(sent)
    assert len(gallery.find(source=output.source)) == len(sent)
    assert gallery.search(sent[0].features[:1], top=1).hits[0].distance < 1e-3
    with pytest.raises(ModelError, match="--model"):
        GalleryOutput(gallery, "r", {**meta, "model": "another"})


@pytest.mark.slow
def test_positions_on_the_ground_and_rules_of_the_cameras_are_used(scene: Path) -> None:
    ground = Camera(homography=[[0.05, 0, 0], [0, 0.05, 0], [0, 0, 1]], fps=99, offset=1e6)
    for apart in (False, True):
        cameras = Cameras({"door": ground, "yard": ground}, frozenset(), {}, overlaps_known=apart)
        events: list[Event] = []
        pushed: list[Tracklets] = []
        matcher = OnlineMatcher(stream=STREAM, cameras=cameras, settings=MatchSettings(threshold=10))
        push = matcher.push

        def noting(tracklets: Tracklets, push: Any = push, pushed: list[Tracklets] = pushed) -> Any:
            pushed.append(tracklets)
            return push(tracklets)

        matcher.push = noting  # type: ignore[method-assign]
        settings = LiveSettings(every=0)
        engine = LiveEngine(*open_models(scene), matcher, events.append, settings, STREAM, cameras)
        engine.begin(START)
        for now, frames in moments(scene, until=4.0):
            engine.step(frames, now)
        engine.close()
        assert all(len(path) for tracklets in pushed for path in tracklets.paths)
        path = pushed[0].paths[0]
        first = next(e for e in events if e["event"] == "new" and e["camera"] == "door")
        x, y, w, h = first["box"]
        np.testing.assert_allclose(path[0, 1:3], [0.05 * (x + w / 2), 0.05 * (y + h)], atol=0.01)
        assert path[0, 0] == pytest.approx(seconds(first))
        by_identity = defaultdict(set)
        for camera, _, start, end, identity in sightings(events):
            by_identity[identity].add((camera, start, end))
        together = [
            (a, b)
            for group in by_identity.values()
            for a in group
            for b in group
            if a[0] < b[0] and min(a[2], b[2]) > max(a[1], b[1])
        ]
        assert bool(together) is not apart
