from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from reid.tracking import sources
from reid.tracking.sources import LiveSource, camera_name, is_live, now, without_password
from tests.tracking import toys
from tests.tracking.toys import write_images, write_video


class FakeStream:
    """A capture whose frames are given: an array, None for one that cannot be decoded, or an error to raise."""

    def __init__(self, frames: list[Any], gate: threading.Event | None = None) -> None:
        self.frames, self.released, self.gate = iter(frames), False, gate
        self.image: Any = None

    def isOpened(self) -> bool:
        return True

    def grab(self) -> bool:
        self.image = next(self.frames, "end")
        if isinstance(self.image, Exception):
            raise self.image
        if isinstance(self.image, str) and self.gate is not None:
            self.gate.wait(20)
        return not isinstance(self.image, str)

    def retrieve(self) -> tuple[bool, Any]:
        return self.image is not None, self.image

    def release(self) -> None:
        self.released = True


class ClosedStream(FakeStream):
    def isOpened(self) -> bool:
        return False


def picture(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(sources, "LONGEST_WAIT", 0.004)


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def opener(streams: list[FakeStream]) -> tuple[Callable[[str], Any], list[str]]:
    given: Iterator[FakeStream] = iter(streams)
    asked: list[str] = []

    def open_stream(source: str) -> Any:
        asked.append(source)
        return next(given, None) or ClosedStream([])

    return open_stream, asked


def test_a_stream_that_ends_fails_or_sends_garbage_is_opened_again(quick: None) -> None:
    gate = threading.Event()
    streams = [
        FakeStream([picture(1)]),
        ClosedStream([]),
        FakeStream([None, np.zeros((1, 1, 3), np.uint8), np.zeros((32, 32, 3), np.uint16)] * 300),
        FakeStream([RuntimeError("driver: rtsp://me:secret@host/x broke")]),
        FakeStream([picture(2)], gate),
    ]
    open_stream, asked = opener(streams)
    source = LiveSource("door", "rtsp://host/x", open_stream=open_stream).start()
    frames: list[int] = []

    def last_arrived() -> bool:
        frame = source.take()
        frames.extend([] if frame is None else [int(frame[1][0, 0, 0])])
        return frames[-1:] == [2]

    wait_for(last_arrived)
    status = source.status()
    assert (status.state, status.frames, status.connections, status.error) == ("running", 2, 4, "")
    assert asked == ["rtsp://host/x"] * 5
    assert all(stream.released for stream in streams[:4] if type(stream) is FakeStream)
    gate.set()
    wait_for(lambda: source.status().state in ("waiting", "connecting") and len(asked) > 5)
    wait_for(lambda: "cannot be opened" in source.status().error)
    source.stop(wait=20)
    assert not any(thread.name == "camera door" for thread in threading.enumerate())


def test_only_the_newest_frame_is_kept_and_times_rise() -> None:
    gate = threading.Event()
    arrived = threading.Event()
    open_stream, _ = opener([FakeStream([picture(value) for value in range(5)], gate)])
    before = now()
    source = LiveSource("door", "0", open_stream=open_stream, arrived=arrived).start()
    wait_for(lambda: source.status().frames == 5)
    assert arrived.is_set()
    taken = source.take()
    assert taken is not None
    assert taken[1][0, 0, 0] == 4
    assert before <= taken[0] <= now()
    assert source.take() is None
    assert source.status().dropped == 4
    source.stop()
    gate.set()


def test_a_camera_that_sends_nothing_has_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "STALL", -1.0)
    gate = threading.Event()
    open_stream, _ = opener([FakeStream([picture(0)], gate)])
    source = LiveSource("door", "0", open_stream=open_stream).start()
    wait_for(lambda: source.status().frames == 1)
    assert source.status().state == "stalled"
    source.stop()
    gate.set()


def test_errors_do_not_show_passwords(quick: None) -> None:
    open_stream, _ = opener([FakeStream([RuntimeError("no rtsp://me:secret@host/x")])])
    source = LiveSource("door", "rtsp://me:secret@host/x", open_stream=open_stream).start()
    wait_for(lambda: "host" in source.status().error)
    assert "secret" not in source.status().error
    source.stop()
    for secret in ("me:secret@", "me:sec@ret@", "me:sec/ret@", "secret@", ""):
        assert without_password(f"No rtsp://{secret}host:554/x?pw=secret here.") == "No rtsp://host:554 here."
        assert camera_name(f"rtsp://{secret}host:554/x") == "host"


def test_the_rate_limits_what_is_kept_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(1000.0, 1010, 0.04))
    monkeypatch.setattr(sources, "now", lambda: float(next(clock, 1010.0)))
    gate = threading.Event()
    open_stream, _ = opener([FakeStream([picture(0)] * 200, gate)])
    source = LiveSource("door", "0", 5, open_stream=open_stream).start()
    wait_for(lambda: source.status().frames >= 30)
    source.stop()
    gate.set()
    assert 30 <= source.status().frames <= 51


@pytest.mark.slow
def test_files_are_played_at_their_own_pace_and_end(tmp_path: Path) -> None:
    images = write_images(tmp_path / "yard", range(1, 11))  # 25 a second
    files = {"door": write_video(tmp_path / "door.avi", 10), "yard": images, "lane": tmp_path / "none.mp4"}
    running = {name: LiveSource(name, str(path), 5).start() for name, path in files.items()}
    found: dict[str, list[float]] = {name: [] for name in files}

    def over() -> bool:
        for name, source in running.items():
            if (frame := source.take()) is not None:
                found[name].append(frame[0])
                assert frame[0] <= now()
        return all(source.status().state in ("ended", "failed") for source in running.values())

    wait_for(over)
    over()
    steps = np.diff(found["door"]) / 0.2
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)
    assert running["door"].status().frames == 5
    assert running["yard"].status().frames == 3
    assert running["lane"].status().state == "failed"
    assert "There is no video" in running["lane"].status().error


def test_a_looped_file_begins_again_until_it_is_stopped(tmp_path: Path) -> None:
    video = write_video(tmp_path / "door.avi", 3, fps=500)
    source = LiveSource("door", str(video), loop=True).start()
    wait_for(lambda: source.status().connections >= 3)
    source.stop(wait=20)
    assert source.status().frames >= 6


def test_sources_are_told_apart_and_links_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "day.1").mkdir()
    (tmp_path / "door.mp4").symlink_to(tmp_path / "yard.mp4")
    assert [camera_name(str(tmp_path / name)) for name in ("day.1", "door.mp4", "day.1/..")][:2] == ["day.1", "door"]
    assert [is_live(text) for text in ("0", "rtsp://a/b", "/dev/video0", "a/b.mp4")] == [True, True, True, False]


class MotionJpeg(BaseHTTPRequestHandler):
    """Sends a few pictures, as network cameras do, and hangs up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
        self.end_headers()
        for frame in range(1, 9):
            jpeg = cv2.imencode(".jpg", toys.picture(frame))[1].tobytes()
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            self.wfile.write(jpeg + b"\r\n")

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.slow
def test_a_real_network_stream_is_read_and_opened_again_when_it_ends(quick: None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = LiveSource("door", f"http://me:secret@127.0.0.1:{server.server_port}/door.mjpg").start()
    seen: list[Any] = []
    wait_for(lambda: seen.append(source.take()) or source.status().connections >= 2)
    image = next(frame[1] for frame in seen if frame is not None)
    assert image.shape == (toys.SIZE[1], toys.SIZE[0], 3)
    assert image.max() > 200
    server.shutdown()
    server.server_close()
    wait_for(lambda: "cannot be opened" in source.status().error)
    assert "secret" not in source.status().error
    source.stop()
