"""Read the frames of a camera by number, from a video file or a folder of numbered images."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import DataError, did_you_mean
from reid.data.crops import IMAGE_SUFFIXES, SkippedFile
from reid.data.images import UnreadableImage, decode, probe
from reid.data.listing import list_entries, summarise
from reid.data.tracks import last_number

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")

MOST_BAD = 100
"""Number of consecutive frames that cannot be decoded after which a video has ended."""


class Frame(NamedTuple):
    """A requested frame: RGB uint8 `[H, W, 3]`, or None and the reason."""

    number: int
    image: NDArray[np.uint8] | None
    reason: str = ""


class VideoInfo(NamedTuple):
    """Size in pixels, frames per second and number of frames; None where unknown (image folders)."""

    width: int
    height: int
    fps: float | None
    frames: int | None


@dataclass(frozen=True)
class Video:
    """The frames of one camera.

    In a video file, the first frame that OpenCV decodes is frame `first_frame` of `read`, and so on, regardless of time
    stamps: as trackers that read with OpenCV count. In a folder, the last number in an image's name is the frame
    number; it counts from 0 if the folder has an image 0, else from 1. All names must have the same form.

    Attributes:
        path: the video file, or the folder of images.
        images: the image of each number; None for a video file.
    """

    path: Path
    images: dict[int, Path] | None = None

    def absolute(self) -> Video:
        """Return the same video with absolute paths, for a process in another folder."""
        images = None if self.images is None else {number: path.absolute() for number, path in self.images.items()}
        return Video(self.path.absolute(), images)

    def info(self) -> VideoInfo:
        """Return size, frame rate and length.

        Raises:
            DataError: the file cannot be opened as a video; the first image cannot be read.
        """
        if self.images is not None:
            height, width = probe(self.images[min(self.images)])
            return VideoInfo(width, height, None, None)
        capture = open_capture(self.path)
        try:
            width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            fps, frames = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        finally:
            capture.release()
        return VideoInfo(width, height, fps if 0 < fps < 1000 else None, frames if frames > 0 else None)

    def read(self, frames: ArrayLike, *, first_frame: int = 1) -> Iterator[Frame]:
        """Yield the frames with these numbers, ascending, each once, in one pass through the video.

        No error is raised. A frame that cannot be read has `image` None and a reason: it cannot be decoded, the video
        ends before it, the folder has no such image, the number is below `first_frame`, or the file cannot be opened.

        Args:
            frames: integers in any order.
            first_frame: number of the first frame. Most track files count from 1.
        """
        wanted = np.unique(np.asarray(frames, dtype=np.int64)).tolist()
        if self.images is not None:
            return _read_images(self.path, self.images, wanted, first_frame - (0 not in self.images))
        return _read_video(self.path, wanted, first_frame)

    def has_frames(self, frames: ArrayLike, *, first_frame: int = 1) -> NDArray[np.bool_]:
        """Return whether each frame has an image, `[N]`; a video file is taken to have all of them."""
        if self.images is None:
            return np.ones(len(np.asarray(frames)), np.bool_)
        return np.isin(frames, np.array(list(self.images)) + first_frame - (0 not in self.images))

    def fingerprint(self) -> str:
        """Return a digest of the path, size and modification time of the file, or of every image."""
        digest = hashlib.sha256()
        for path in [self.path] if self.images is None else [self.images[number] for number in sorted(self.images)]:
            status = path.stat()
            digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class FoundVideos:
    """`videos` by camera name; `problems` describes cameras without a video and images that were skipped."""

    videos: dict[str, Video]
    problems: tuple[str, ...]


def find_videos(folder: str | Path, names: Sequence[str]) -> FoundVideos:
    """Find the video of each camera in a folder, by name.

    The video of camera `cam01` is `cam01.mp4` (or another of `VIDEO_SUFFIXES`), a folder `cam01/` or `cam01/img1/` of
    numbered images (MOTChallenge), or a folder `cam01/` with one video file (AI City). If the camera's name is a
    number, as in AI City's text files, `41` also matches `c041`, by the last number. The images of a single
    camera may also be in `folder` itself.

    Raises:
        DataError: no such folder; a camera has two videos; two images have one number, or their numbers are not
            plausible; no camera has a video.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cam01.mp4").write_bytes(b"")
        >>> found = find_videos(folder, ["cam01", "cam02"])
        >>> {name: video.path.name for name, video in found.videos.items()}, len(found.problems)
        ({'cam01': 'cam01.mp4'}, 1)
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Pass the folder that contains the videos.")
    entries: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _visible(folder):
        if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
            entries[path.name if path.is_dir() else path.stem].append(path)
    videos: dict[str, Video] = {}
    problems = _unreadable(folder)
    for name in names:
        found = entries.get(name, [])
        if not found and name.isdecimal():
            found = [path for other, paths in entries.items() for path in paths if last_number(other) == int(name)]
        if len(found) > 1:
            raise DataError(f"Camera {name!r} has two videos: {found[0]} and {found[1]}. Remove one of them.")
        if not found and len(names) == 1 and (alone := _folder_video(folder, [])) and alone.images:
            videos[name] = alone
        elif not found:
            hint = did_you_mean(name, entries) if entries else " It contains no videos."
            problems.append(f"camera {name!r} has no video in {folder}.{hint}")
        elif video := _folder_video(found[0], problems) if found[0].is_dir() else Video(found[0]):
            videos[name] = video
        else:
            problems.append(f"camera {name!r}: {found[0]} contains neither numbered images nor one video file.")
    if names and not videos:
        raise DataError(
            f"No camera has a video in {folder}: {problems[0]} Name each video like its camera: "
            f"{names[0]}.mp4, or a folder {names[0]}/ of numbered images."
        )
    return FoundVideos(videos, tuple(problems))


def _folder_video(folder: Path, problems: list[str]) -> Video | None:
    for place in (folder, folder / "img1"):
        paths = _files(place, IMAGE_SUFFIXES) if place.is_dir() else []
        numbered = [path for path in paths if re.search(r"\d", _frame_stem(path))]
        images = _number_images(place, numbered)
        unnumbered = [path.name for path in paths if path not in numbered]
        if unnumbered:
            problems.append(
                f"{place}: {len(unnumbered)} images without a number in their name were skipped, e.g. {unnumbered[0]}."
            )
        problems += _unreadable(place) if place.is_dir() else []
        if paths:
            return Video(place, images) if images else None
    videos = _files(folder, VIDEO_SUFFIXES)
    return Video(videos[0]) if len(videos) == 1 else None


def _unreadable(folder: Path) -> list[str]:
    skipped = [SkippedFile(entry.path, entry.problem) for entry in list_entries(folder) if entry.problem]
    return [f"{folder}: {len(skipped)} entries were passed over: {summarise(skipped)}."] if skipped else []


def _frame_stem(path: Path) -> str:
    """Return the name of an image without its suffix and without the hash that Roboflow appends."""
    return re.sub(r"_(?:bmp|jpe?g|png|webp)\.rf\.[0-9A-Za-z]+$", "", path.stem)


def _number_images(place: Path, paths: Sequence[Path]) -> dict[int, Path]:
    """Return the image of each frame number, which is the last number in the name.

    Raises:
        DataError: a number occurs twice, or is not plausible: it is at different places of the names (such as within a
            hash), or it has gaps while another number of the names counts the images.
    """
    stems = [_frame_stem(path) for path in paths]
    fields = [[int(digits) for digits in re.findall(r"\d+", stem)] for stem in stems]
    images: dict[int, Path] = {}
    for path, numbers in zip(paths, fields, strict=True):
        if numbers[-1] in images:
            raise DataError(
                f"{place}: {images[numbers[-1]].name} and {path.name} are both frame {numbers[-1]} (the last number in "
                "the name). Keep one image per frame."
            )
        images[numbers[-1]] = path
    forms = [re.sub(r"\d+", "#", stem) for stem in stems]
    other = next((i for i, form in enumerate(forms) if form != forms[0]), None)
    problem = ""
    if other is not None:
        problem = f"{paths[0].name} would be frame {fields[0][-1]} and {paths[other].name} frame {fields[other][-1]}"
    elif len(paths) > 2 and not _counts(list(images)):
        for column, values in enumerate(list(zip(*fields, strict=True))[:-1]):
            if _counts(values):
                problem = f"{paths[0].name} would be frame {fields[0][-1]}, but {fields[0][column]} seems to count"
    if problem:
        raise DataError(
            f"{place}: the last number in the names of the images is not plausible as the frame: {problem}. Rename the "
            "images so that only the frame number differs, such as 000001.jpg."
        )
    return images


def _counts(numbers: Sequence[int]) -> bool:
    """Return whether the numbers are a run with few gaps."""
    return len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) < 2 * len(numbers)


def _visible(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in list_entries(folder) if not entry.problem]


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return [path for path in _visible(folder) if path.is_file() and path.suffix.lower() in suffixes]


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Let OpenCV log nothing: the errors of this package describe the problem."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def open_capture(path: Path) -> cv2.VideoCapture:
    """Open a video file with OpenCV's FFmpeg.

    Raises:
        DataError: the file is missing, damaged or of an unknown format.
    """
    if not path.exists():
        raise DataError(f"There is no video {path}. Check the path.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a video file. Pass a video file, or a folder of numbered images.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} cannot be opened as a video: it is empty. Copy it again.")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with quiet_opencv():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise DataError(
            f"{path} cannot be opened as a video: it is damaged or incomplete, or OpenCV has no decoder for it. Check "
            "that it plays, or convert it to H.264 in .mp4."
        )
    return capture


def rgb_in_place(bgr: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a frame as RGB, in the same memory: new memory for each frame costs more than the conversion."""
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr).view(np.uint8)


def _read_video(path: Path, wanted: list[int], first_frame: int) -> Iterator[Frame]:
    try:
        capture = open_capture(path)
    except DataError as error:
        # Reasons are written to files, which name no folder.
        reason = str(error).replace(str(path), path.name).rstrip(".")
        yield from (Frame(number, None, reason) for number in wanted)
        return
    try:
        passed = 0  # frames; the last of them is grabbed and can be retrieved
        end: int | None = None
        for number in wanted:
            place = number - first_frame
            while end is None and passed <= place:
                # Frames before the next one that can be decoded; None at the end.
                bad = next((bad for bad in range(MOST_BAD + 1) if capture.grab()), None)
                if bad is None:
                    end = passed
                else:
                    passed += bad + 1
            image, reason = None, "the frame cannot be decoded"
            if place < 0:
                reason = f"the frame is before the first frame, {first_frame}"
            elif end == 0:
                reason = f"no frame of {path.name} can be decoded"
            elif end is not None and place >= end:
                reason = f"the video ends after frame {first_frame + end - 1}"
            elif place == passed - 1:
                decoded, bgr = capture.retrieve()
                image = rgb_in_place(bgr) if decoded and bgr is not None else None
            yield Frame(number, image, reason if image is None else "")
    finally:
        capture.release()


def _read_images(folder: Path, images: dict[int, Path], wanted: list[int], shift: int) -> Iterator[Frame]:
    for number in wanted:
        path = images.get(number - shift)
        if path is None:
            yield Frame(number, None, f"{folder.name} has no image for the frame")
            continue
        try:
            yield Frame(number, decode(path))
        except UnreadableImage as error:
            yield Frame(number, None, f"the image {error.reason}")
