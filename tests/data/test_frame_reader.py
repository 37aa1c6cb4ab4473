from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid.core.errors import DataError
from reid.data.frame_reader import FrameReader
from reid.data.videos import Video, find_videos
from tests.tracking.toys import SIZE, picture, write_images, write_stamped_video, write_video


def read(path: Path, rate: float | None = None, fps: float | None = None) -> tuple[FrameReader, list[int], list[float]]:
    reader = FrameReader(Video(path), rate, fps)
    frames = list(reader)
    return reader, [frame.number for frame in frames], [frame.time for frame in frames]


def test_every_frame_has_the_number_that_video_read_gives_it(tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "a.avi", 6, fps=10))
    frames = list(FrameReader(video))
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5, 6]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    for frame, other in zip(frames, video.read(range(1, 7)), strict=True):
        assert other.image is not None
        assert (frame.image == other.image).all()


@pytest.mark.parametrize(("fps", "rate"), [(25, 10), (30, 10), (10, 10), (12, 10), (10, 25), (7, 2)])
def test_the_rate_is_kept_on_average(tmp_path: Path, fps: int, rate: int) -> None:
    reader, numbers, _ = read(write_video(tmp_path / "a.avi", 3 * fps, fps), rate)
    assert abs(len(numbers) - 3 * min(fps, rate)) <= 1
    assert reader.expected is not None
    assert abs(len(numbers) - reader.expected) <= 1
    assert numbers == sorted(set(numbers))


def test_time_stamps_decide_where_the_frame_rate_varies(tmp_path: Path) -> None:
    times = [0, 0.02, 0.04, 0.1, 0.2, 0.9, 0.92, 1.0]
    reader, numbers, found = read(write_stamped_video(tmp_path / "a.mp4", times), rate=10)
    assert numbers == [1, 4, 5, 6, 8]
    assert found == pytest.approx([0, 0.1, 0.2, 0.9, 1.0])
    assert (reader.decoded, reader.notes) == (8, [])


def rotate(path: Path) -> None:
    """Set the display matrix of an MP4 to a quarter turn, as phones do."""
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, SIZE[1] * 65536, 0, 2**30)
    path.write_bytes(content)


def test_rotated_phone_video_is_upright_everywhere(tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "a.mp4", 3, fourcc="mp4v"))
    rotate(video.path)
    reader = FrameReader(video)
    images = [frame.image for frame in reader]
    assert reader.size == (96, 128) == video.info()[:2]
    upright = cv2.rotate(picture(1), cv2.ROTATE_90_CLOCKWISE)
    assert np.abs(images[0].astype(int) - upright[..., ::-1]).mean() < 8


@pytest.mark.parametrize("depth", [cv2.CV_8U, cv2.CV_16U])
def test_gray_and_16_bit_video_becomes_8_bit_rgb(tmp_path: Path, depth: int) -> None:
    path = write_video(tmp_path / "a.avi", 2, fourcc="FFV1", gray=True, depth=depth)
    frame = next(iter(FrameReader(Video(path))))
    assert (frame.image.shape, frame.image.dtype) == ((96, 128, 3), np.uint8)
    assert np.abs(frame.image.astype(int) - picture(1)).max() <= 3


def test_a_truncated_video_gives_the_frames_it_has_and_a_note(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader, numbers, _ = read(path)
    assert 5 < len(numbers) < 25
    assert "but its header counts 30: it seems to be truncated" in " ".join(reader.notes)


def test_unreadable_videos_are_errors(tmp_path: Path) -> None:
    codec = write_video(tmp_path / "codec.avi", 3)
    codec.write_bytes(codec.read_bytes().replace(b"MJPG", b"XQZ9"))
    header_only = write_video(tmp_path / "header.mp4", 5, fourcc="mp4v")
    header_only.write_bytes(header_only.read_bytes()[:600])
    for path in (codec, header_only):
        with pytest.raises(DataError, match="cannot be opened as a video"):
            FrameReader(Video(path))
    with pytest.raises(DataError, match="There is no video"):
        FrameReader(Video(tmp_path / "nowhere.mp4"))
    empty = FrameReader(Video(write_video(tmp_path / "empty.avi", 0)))
    with pytest.raises(DataError, match=r"No frame of .*empty.avi can be decoded"):
        list(empty)


def test_a_folder_of_images_with_gaps(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "cam01", [3, 4, 6, 9])
    (folder / "000006.png").write_bytes(b"no image")
    video = find_videos(tmp_path, ["cam01"]).videos["cam01"]
    reader = FrameReader(video, fps=10)
    frames = list(reader)
    assert [frame.number for frame in frames] == [3, 4, 9]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.6])
    assert "3 of the frame numbers 3 to 9 have no image" in reader.notes[0]
    assert "1 images cannot be read" in reader.notes[1]
    assert "frame rate is unknown" in FrameReader(video).notes[0]


def test_images_counted_from_0_have_the_numbers_of_video_read(tmp_path: Path) -> None:
    write_images(tmp_path / "cam01", [0, 1])
    video = find_videos(tmp_path, ["cam01"]).videos["cam01"]
    numbers = [frame.number for frame in FrameReader(video)]
    assert all(frame.image is not None for frame in video.read(numbers))
