"""Read a video from its first to its last frame at a chosen rate, with the time of each frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.errors import DataError
from reid.data.images import UnreadableImage, decode
from reid.data.videos import MOST_BAD, Video, open_capture, rgb_in_place

DEFAULT_FPS = 25.0
"""Frames per second of image folders, and of videos without time stamps and frame rate."""

_EARLY = 0.25
"""Fraction of an interval by which a frame may be early and still count for the next one."""


class TimedFrame(NamedTuple):
    """A frame: its number as in `Video.read` (from 1), seconds since the first frame, RGB uint8 `[H, W, 3]`."""

    number: int
    time: float
    image: NDArray[np.uint8]


class FrameReader:
    """Iterate over the frames of a video, at most `rate` of them a second.

    Times are the time stamps of the file, so that the choice is right for variable frame rates too. A stamp that does
    not exceed the one before it (raw streams have none) is replaced: the time before it plus 1 / fps. In a folder of
    images, the time is (number − first number) / fps.

    Args:
        video: the video.
        rate: frames per second to yield; None for all frames.
        fps: frames per second where the file does not define them; None for `DEFAULT_FPS`.

    Attributes:
        size: width and height of the first frame as it is shown, that is, after rotation; (0, 0) before it is read.
        fps: of the header, or the value that replaces it.
        expected: estimated number of frames that will be yielded; None if unknown.
        decoded: number of the last decoded frame, so far.
        duration: time of the last decoded frame, so far.
        notes: what was wrong with the video, for people; complete after the iteration.

    Raises:
        DataError: the video cannot be opened. Iteration raises it if no frame can be decoded.
    """

    def __init__(self, video: Video, rate: float | None = None, fps: float | None = None) -> None:
        self.info = info = video.info()
        self.video, self.rate = video, rate
        self.fps = info.fps or fps or DEFAULT_FPS
        total = len(video.images) if video.images is not None else info.frames
        self.expected = None if total is None else round(total * min(1.0, (rate or self.fps) / self.fps))
        self.size = (0, 0)
        self.decoded, self.duration = 0, 0.0
        self.notes: list[str] = []
        self._next_slot = -1.0
        if info.fps is None and fps is None:
            self.notes.append(f"the frame rate is unknown; {self.fps:g} frames per second are assumed. Pass --fps.")

    def __iter__(self) -> Iterator[TimedFrame]:
        """Yield the chosen frames.

        Raises:
            DataError: no frame can be decoded.
        """
        for frame in self._read_images() if self.video.images is not None else self._read_file():
            if self.size == (0, 0):
                self.size = frame.image.shape[1], frame.image.shape[0]
            yield frame
        if self.size == (0, 0):
            raise DataError(f"No frame of {self.video.path} can be decoded. Check that the file plays.")

    def _is_due(self, time: float) -> bool:
        slot = np.floor(time * self.rate + _EARLY) if self.rate else self._next_slot
        if slot < self._next_slot:
            return False
        self._next_slot = slot + bool(self.rate)
        return True

    def _read_file(self) -> Iterator[TimedFrame]:
        capture = open_capture(self.video.path)
        first, damaged, unstamped = 0.0, 0, 0
        try:
            while (bad := next((bad for bad in range(MOST_BAD + 1) if capture.grab()), None)) is not None:
                damaged += bad
                number = self.decoded + bad + 1
                stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if self.decoded == 0:
                    first, time = stamp, 0.0
                else:
                    time = stamp - first
                    if not time > self.duration:  # nor is NaN
                        time = self.duration + (bad + 1) / self.fps
                        unstamped += 1
                self.decoded, self.duration = number, time
                if self._is_due(time):
                    done, image = capture.retrieve()
                    if done and image is not None:
                        yield TimedFrame(number, time, rgb_in_place(image))
                    else:
                        damaged += 1
        finally:
            capture.release()
        promised = self.info.frames
        if promised and self.decoded < 0.98 * promised - 1:
            self.notes.append(
                f"it ends after {self.decoded:,} frames, but its header counts {promised:,}: it seems to be truncated."
            )
        if damaged:
            self.notes.append(f"{damaged:,} frames cannot be decoded and were skipped.")
        if 0 < unstamped < self.decoded - 1:
            self.notes.append(
                f"{unstamped:,} frames have no rising time stamp; {self.fps:g} frames per second assumed."
            )

    def _read_images(self) -> Iterator[TimedFrame]:
        images = self.video.images or {}
        numbers = sorted(images)
        shift = int(0 in images)
        missing = numbers[-1] - numbers[0] + 1 - len(numbers)
        if missing:
            self.notes.append(f"{missing:,} of the frame numbers {numbers[0]} to {numbers[-1]} have no image.")
        damaged = []
        for number in numbers:
            time = (number - numbers[0]) / self.fps
            self.decoded, self.duration = number + shift, time
            if not self._is_due(time):
                continue
            try:
                yield TimedFrame(number + shift, time, decode(images[number]))
            except UnreadableImage as error:
                damaged.append(f"{images[number].name} {error.reason}")
        if damaged:
            self.notes.append(f"{len(damaged):,} images cannot be read and were skipped; the first: {damaged[0]}.")
