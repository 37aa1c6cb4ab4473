"""Live cameras: a thread for each reads frames and keeps the newest; it reconnects when the camera fails."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.errors import DataError, ReidError
from reid.data.frame_reader import FrameReader
from reid.data.videos import MOST_BAD, Video, find_videos, quiet_opencv, rgb_in_place

State = Literal["connecting", "running", "stalled", "waiting", "ended", "failed"]

STALL = 10.0
"""Seconds without a frame after which a camera has stalled."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the first attempt to reconnect, and the most: each failed attempt doubles them."""

_TIMEOUT_MS = 10_000
_RECENT = 10.0
_SMALLEST = 16  # pixels of a side; smaller frames are garbage

Image = NDArray[np.uint8]


def now() -> float:
    """Return seconds since 1970 on a clock that never goes back: the system's when this was loaded, then monotonic.

    Where the system has such a clock, it includes the time that the machine sleeps.
    """
    return _ORIGIN + _steady()


def _steady() -> float:
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


_ORIGIN = time.time() - _steady()


def is_live(source: str) -> bool:
    """Return whether a source is a URL, a device or the number of a webcam, which have no end; not a file or folder."""
    return "://" in source or source.isdecimal() or source.startswith("/dev/")


def without_password(text: str) -> str:
    """Return text whose URLs have neither user and password nor path, which may contain them too.

    Example:
        >>> without_password("rtsp://admin:1234@10.0.0.7:554/user=admin&password=1234 is closed")
        'rtsp://10.0.0.7:554 is closed'
    """
    return re.sub(r"(\w+://)(?:\S*@)?([^/?#\s]*)\S*", r"\1\2", text)


def camera_name(source: str) -> str:
    """Return the name of a camera that has been given none: as its file or folder, its host, or webcamN.

    Example:
        >>> [camera_name(source) for source in ("videos/door.mp4", "rtsp://admin:1234@10.0.0.7:554/stream", "0")]
        ['door', '10.0.0.7', 'webcam0']
    """
    if "://" in source:
        return urlsplit(without_password(source)).hostname or "camera"
    if source.isdecimal():
        return f"webcam{source}"
    path = Path(os.path.abspath(source))  # a link keeps its own name
    return path.name if path.is_dir() else path.stem


@dataclass(frozen=True)
class CameraStatus:
    """State and counts of a camera.

    Attributes:
        state: "connecting", "running", "stalled" (no frame for `STALL` seconds), "waiting" (before it connects again),
            "ended" (a file), or "failed" (a file that cannot be read).
        frames: read so far, at the rate that is analysed.
        dropped: frames that a newer one replaced before they were taken.
        connections: successful ones.
        fps: frames a second, of the last ten seconds.
        last_seen: seconds since 1970 of the last frame; None before the first.
        error: the last one; empty if there was none since the last frame.
    """

    state: State
    frames: int
    dropped: int
    connections: int
    fps: float
    last_seen: float | None
    error: str


class LiveSource:
    """Read a camera in a separate thread and keep its newest frame.

    A file or folder of images is played in real time: the time of a frame is that of the start plus its time stamp.
    The time of a frame of any other source is the time at which it arrives. If such a source ends, fails or sends
    nothing that can be decoded, it is opened again after `FIRST_WAIT` seconds, then twice as many, up to
    `LONGEST_WAIT`.

    Args:
        name: of the camera.
        source: video file, folder of images, URL (`rtsp://…`), device, or number of a webcam.
        rate: frames per second to keep; 0 for all.
        loop: play a file again when it ends.
        arrived: is set with every frame, to wake the reader of several sources.
        open_stream: opens a source that is no file, as `cv2.VideoCapture`.
    """

    def __init__(
        self,
        name: str,
        source: str,
        rate: float = 0.0,
        *,
        loop: bool = False,
        arrived: threading.Event | None = None,
        open_stream: Callable[[str], Any] | None = None,
    ) -> None:
        self.name, self.source = name, source
        self._rate, self._loop = rate, loop
        self._arrived = arrived or threading.Event()
        self._open_stream = open_stream or _open_stream
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._newest: tuple[float, Image] | None = None
        self._state: State = "connecting"
        self._frames = self._dropped = self._connections = 0
        self._last_seen: float | None = None
        self._recent: deque[float] = deque(maxlen=1000)
        self._since = now()
        self._error = ""
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def start(self) -> LiveSource:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self, wait: float = 0.0) -> None:
        """Let the thread end; wait at most so many seconds for it. A thread that is stuck in a read ends later."""
        self._stopped.set()
        if wait:
            self._thread.join(wait)

    def take(self) -> tuple[float, Image] | None:
        """Return the newest frame (seconds since 1970, RGB `[H, W, 3]`) once, or None if there is no new one."""
        with self._lock:
            newest, self._newest = self._newest, None
        return newest

    def status(self) -> CameraStatus:
        """Return the current state and counts."""
        with self._lock:
            state, since = self._state, max(self._since, self._last_seen or 0.0)
            if state in ("running", "connecting") and now() - since > STALL:
                state = "stalled"
            fps = sum(moment > now() - _RECENT for moment in self._recent) / _RECENT
            counts = self._frames, self._dropped, self._connections, fps
            return CameraStatus(state, *counts, self._last_seen, self._error)

    def _put(self, moment: float, image: Image) -> None:
        with self._lock:
            self._dropped += self._newest is not None
            self._newest = moment, image
            self._frames += 1
            self._recent.append(moment)
            self._state, self._last_seen, self._error = "running", moment, ""
        self._arrived.set()

    def _set(self, state: State, error: str | None = None) -> None:
        with self._lock:
            self._state, self._since = state, now()
            if error is not None:
                self._error = without_password(error)
        self._arrived.set()

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._stopped.is_set():
            frames = self._frames
            try:
                if is_live(self.source):
                    self._read_stream()
                    if self._stopped.is_set():
                        return None
                    reason = "the stream ended"
                else:
                    self._play_file()
                    if self._stopped.is_set():
                        return None
                    if not self._loop:
                        return self._set("ended")
                    continue
            except ReidError as error:
                reason = str(error)
                if not is_live(self.source):
                    return self._set("failed", reason)
            except Exception as error:  # of OpenCV or a driver: the other cameras must continue
                reason = f"{type(error).__name__}: {error}"
            wait = FIRST_WAIT if self._frames > frames else wait
            self._set("waiting", reason)
            self._stopped.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            self._set("connecting")
        return None

    def _play_file(self) -> None:
        path = Path(self.source)
        video = find_videos(path, [path.resolve().name]).videos[path.resolve().name] if path.is_dir() else Video(path)
        reader = FrameReader(video, self._rate or None)
        begin = None
        for frame in reader:
            if begin is None:
                begin = now()
                self._connections += 1
            if self._stopped.wait(max(0.0, begin + frame.time - now())):
                return
            self._put(begin + frame.time, frame.image)

    def _read_stream(self) -> None:
        capture = self._open_stream(self.source)
        try:
            if not capture.isOpened():
                raise DataError(
                    f"{without_password(self.source)} cannot be opened. Check the address, and that the camera is on."
                )
            self._connections += 1
            due, bad = 0.0, 0
            while bad <= MOST_BAD and not self._stopped.is_set():
                if not capture.grab():
                    return
                moment = now()
                if self._rate and moment < due:
                    continue
                done, image = capture.retrieve()
                if not done or image is None or image.dtype != np.uint8 or min(image.shape[:2]) < _SMALLEST:
                    bad += 1
                    continue
                bad, due = 0, max(due, moment - 1 / self._rate) + 1 / self._rate if self._rate else 0.0
                gray = image.ndim == 2 or image.shape[2] == 1
                rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB).view(np.uint8) if gray else rgb_in_place(image)
                self._put(moment, rgb)
            if bad > MOST_BAD:
                raise DataError(f"{without_password(self.source)} sends frames that cannot be decoded.")
        finally:
            capture.release()


def _open_stream(source: str) -> Any:
    if source.isdecimal():
        return cv2.VideoCapture(int(source))
    if source.startswith("/dev/"):
        return cv2.VideoCapture(source)
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
    with quiet_opencv():
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
