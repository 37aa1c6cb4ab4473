from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from reid.core.errors import DataError, ReidError
from reid.data.tracks import Tracks
from reid.data.videos import Video, find_videos
from reid.pipelines.embed import open_videos

COUNT = 40
SIZE = (64, 96)  # height, width


def picture(number):
    """The frame's number in eight black or white stripes, over a red field; BGR."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for bit in range(8):
        image[: SIZE[0] // 2, bit * 12 : bit * 12 + 12] = 255 * (number >> bit & 1)
    image[SIZE[0] // 2 :] = (0, 0, 220)
    return image


def number_of(image):
    """Reads `picture` back, whatever lossy coding did to it; and that it is RGB."""
    assert image.dtype == np.uint8
    assert image.shape == (*SIZE, 3)
    red, green, blue = image[48, 48].astype(int)
    assert red > 150 > 80 > max(green, blue)
    return sum((int(image[16, bit * 12 + 6].mean()) > 128) << bit for bit in range(8))


def write_video(path, codec="mp4v", count=COUNT):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12.5, SIZE[::-1])
    assert writer.isOpened()
    for number in range(1, count + 1):
        writer.write(picture(number))
    writer.release()
    return path


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        number = int("".join(filter(str.isdigit, name.rpartition("_")[2])))
        cv2.imwrite(str(folder / name), picture(number))


def only(folder, name="cam01"):
    found = find_videos(folder, [name])
    assert found.problems == ()
    return found.videos[name]


def numbers(frames):
    return [(frame.number, number_of(frame.image)) for frame in frames]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG"), ("mkv", "mp4v"), ("AVI", "MJPG")])
def test_requested_frames_come_in_order_and_once(tmp_path, suffix, codec):
    write_video(tmp_path / f"cam01.{suffix}", codec)
    got = numbers(only(tmp_path).read([7, 1, 40, 2, 7, 23]))
    assert got == [(n, n) for n in (1, 2, 7, 23, 40)]


def test_all_frames_and_no_frames(tmp_path):
    write_video(tmp_path / "cam01.mp4")
    video = only(tmp_path)
    assert numbers(video.read(range(1, COUNT + 1))) == [(n, n) for n in range(1, COUNT + 1)]
    assert list(video.read([])) == []


def test_tracks_may_count_from_zero(tmp_path):
    write_video(tmp_path / "cam01.mp4")
    assert numbers(only(tmp_path).read([0, 5], first_frame=0)) == [(0, 1), (5, 6)]


def test_info_returns_size_rate_and_length(tmp_path):
    write_video(tmp_path / "cam01.avi", "MJPG")
    assert only(tmp_path).info() == (96, 64, 12.5, COUNT)
    write_images(tmp_path / "b", ["5.png", "7.png"])
    assert only(tmp_path, "b").info() == (96, 64, None, None)


def test_frames_after_the_end_of_the_video_are_reported(tmp_path):
    path = write_video(tmp_path / "cam01.avi", "MJPG")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames = list(only(tmp_path).read([1, 5, 0, 39, 40]))
    assert [frame.number for frame in frames] == [0, 1, 5, 39, 40]
    assert numbers(frames[1:3]) == [(1, 1), (5, 5)]
    assert frames[0].image is None
    assert frames[0].reason == "the frame is before the first frame, 1"
    for frame in frames[3:]:
        assert frame.image is None
        assert frame.reason.startswith("the video ends after frame ")
        assert 5 <= int(frame.reason.split()[-1]) < 39


def test_an_undecodable_frame_is_reported_and_later_frames_keep_their_numbers(tmp_path):
    path = write_video(tmp_path / "cam01.avi", "MJPG")
    content = bytearray(path.read_bytes())
    for damaged in (19, 25, 26):
        at = -1
        for _ in range(damaged + 1):  # the first "00dc" stands in a header
            at = content.index(b"00dc", at + 1)
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        content[at + 8 : at + 8 + length] = bytes(length)
    path.write_bytes(content)
    frames = list(only(tmp_path).read(range(1, COUNT + 1)))
    bad = [frame.number for frame in frames if frame.image is None]
    assert len(bad) == 3
    assert bad[2] == bad[1] + 1
    assert {frame.reason for frame in frames if frame.image is None} == {"the frame cannot be decoded"}
    good = [frame for frame in frames if frame.image is not None]
    assert numbers(good) == [(frame.number, frame.number) for frame in good]
    assert numbers(only(tmp_path).read([bad[0] + 1, 40])) == [(bad[0] + 1, bad[0] + 1), (40, 40)]


@pytest.mark.parametrize(
    "content", [pytest.param(b"", id="empty"), pytest.param(b"not a video at all" * 100, id="text"), None]
)
def test_a_file_that_is_not_a_video_gives_the_reason_for_every_frame(tmp_path, content):
    path = tmp_path / "cam01.mp4"
    if content is None:  # cut before its index, which an mp4 has at the end
        write_video(path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    frames = list(only(tmp_path).read([3, 4]))
    assert [frame.image for frame in frames] == [None, None]
    assert all("cam01.mp4 cannot be opened as a video" in frame.reason for frame in frames)
    with pytest.raises(ReidError, match=r"cam01\.mp4 cannot be opened"):
        only(tmp_path).info()


@pytest.mark.slow
def test_ffmpeg_and_opencv_print_nothing_about_a_bad_video(tmp_path):
    path = write_video(tmp_path / "cam01.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    code = "import sys; from reid.data.videos import Video; from pathlib import Path; Video(Path(sys.argv[1])).info()"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    before, _, error = result.stderr.partition("Traceback")
    assert before == ""
    assert "cannot be opened" in error


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        pytest.param("cam01", ["1.png", "2.png", "10.png"], id="bare numbers, not padded"),
        pytest.param("cam01", ["000001.jpg", "000002.jpg", "000010.jpg"], id="padded"),
        pytest.param("cam01/img1", ["000001.jpg", "000002.jpg", "000010.jpg"], id="as MOTChallenge has it"),
        pytest.param("cam01", ["c01_0001.bmp", "c01_0002.bmp", "c01_0010.bmp"], id="the last number counts"),
    ],
)
def test_a_folder_of_images(tmp_path, folder, names):
    write_images(tmp_path / folder, names)
    (tmp_path / folder / "seqinfo.ini").write_text("x")
    video = only(tmp_path)
    assert numbers(video.read([10, 1])) == [(1, 1), (10, 10)]
    (missing,) = video.read([3])
    assert missing.image is None
    assert missing.reason.endswith("has no image for the frame")


@pytest.mark.parametrize(
    ("names", "first_frame", "expected"),
    [
        pytest.param(["0.png", "1.png", "2.png"], 1, {1: 0, 2: 1, 3: 2}, id="images from 0, tracks from 1"),
        pytest.param(["0.png", "1.png", "2.png"], 0, {0: 0, 1: 1, 2: 2}, id="both from 0"),
        pytest.param(["1.png", "2.png", "3.png"], 0, {0: 1, 1: 2, 2: 3}, id="images from 1, tracks from 0"),
        pytest.param(["7.png", "8.png", "9.png"], 1, {7: 7, 8: 8, 9: 9}, id="a cut of a longer video"),
    ],
)
def test_a_folder_counts_from_its_first_image(tmp_path, names, first_frame, expected):
    write_images(tmp_path / "cam01", names)
    assert dict(numbers(only(tmp_path).read(list(expected), first_frame=first_frame))) == expected


def test_a_damaged_image_is_listed_and_the_others_are_read(tmp_path):
    write_images(tmp_path / "cam01", ["1.jpg", "2.jpg", "3.jpg"])
    path = tmp_path / "cam01" / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    first, bad, last = only(tmp_path).read([1, 2, 3])
    assert numbers([first, last]) == [(1, 1), (3, 3)]
    assert bad.image is None
    assert "truncated" in bad.reason


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("gray", np.full((8, 6), 100, np.uint8)),
        ("RGBA", np.dstack([np.full((8, 6, 3), 100, np.uint8), np.zeros((8, 6), np.uint8)])),
        ("16 bit", np.full((8, 6, 3), 100 << 8, np.uint16)),
        ("16 bit gray", np.full((8, 6), 100 << 8, np.uint16)),
    ],
)
def test_gray_and_transparent_images_become_rgb(tmp_path, kind, image):
    (tmp_path / "cam01").mkdir()
    cv2.imwrite(str(tmp_path / "cam01" / "1.png"), image)
    (frame,) = only(tmp_path).read([1])
    assert frame.image.shape == (8, 6, 3)
    assert frame.image.dtype == np.uint8
    assert (frame.image == 100).all()


def test_a_folder_with_one_video_in_it(tmp_path):
    write_video(tmp_path / "c001" / "vdo.avi", "MJPG")
    assert numbers(only(tmp_path, "c001").read([3])) == [(3, 3)]


def test_a_camera_number_matches_the_name_that_ends_in_it(tmp_path):
    write_video(tmp_path / "c041" / "vdo.avi", "MJPG", count=2)
    write_video(tmp_path / "c141.mp4", count=3)
    write_video(tmp_path / "7.mp4", count=4)
    write_video(tmp_path / "cam7.mp4", count=5)
    found = find_videos(tmp_path, ["41", "141", "7", "cam41"])
    assert [video.path.name for video in found.videos.values()] == ["vdo.avi", "c141.mp4", "7.mp4"]
    assert "'cam41' has no video" in found.problems[0]
    (tmp_path / "c0141").mkdir()
    with pytest.raises(ReidError, match=r"'141' has two videos: .*c0141 and .*c141\.mp4"):
        find_videos(tmp_path, ["141"])


def test_cameras_without_a_video_are_reported_with_a_similar_name(tmp_path):
    write_video(tmp_path / "cam01.mp4", count=2)
    (tmp_path / "cam05").mkdir()
    (tmp_path / "cam05" / "notes.txt").touch()
    (tmp_path / "readme.txt").touch()
    found = find_videos(tmp_path, ["cam01", "cam1", "cam05"])
    assert list(found.videos) == ["cam01"]
    assert len(found.problems) == 2
    assert "'cam1' has no video" in found.problems[0]
    assert "Did you mean 'cam01'?" in found.problems[0]
    assert "cam05 contains neither numbered images nor one video file" in found.problems[1]


def test_the_hash_that_roboflow_appends_is_no_frame_number(tmp_path):
    (tmp_path / "cam01").mkdir()
    for number, digest in enumerate(["6b1f0d2", "02ac9e3", "c4d4a11", "9f3e771", "1a2b3c4", "e5f6a72"], start=1):
        name = f"frame_{number:04d}_png.rf.{digest}.png"
        cv2.imwrite(str(tmp_path / "cam01" / name), picture(number))
    assert numbers(only(tmp_path).read(range(1, 7))) == [(number, number) for number in range(1, 7)]


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        pytest.param(
            ["frame_0001-6b1f.png", "frame_0002-02ac9.png"],
            r"frame_0001-6b1f\.png would be frame 1 and frame_0002-02ac9\.png frame 9",
            id="a hash",
        ),
        pytest.param(["1.png", "thumbnail_1_of_2.png"], r"1\.png would be frame 1", id="another form"),
        pytest.param(
            ["frame_1_83749.png", "frame_2_11273.png", "frame_3_60211.png"],
            r"frame_1_83749\.png would be frame 83749, but 1 seems to count",
            id="a random number",
        ),
    ],
)
def test_frame_numbers_that_are_not_plausible_are_an_error_with_the_guess(tmp_path, names, guess):
    write_images(tmp_path / "cam01", ["1.png"])
    for name in names:
        cv2.imwrite(str(tmp_path / "cam01" / name), picture(1))
    if "1.png" not in names:
        (tmp_path / "cam01" / "1.png").unlink()
    with pytest.raises(ReidError, match=f"not plausible as the frame: {guess}"):
        find_videos(tmp_path, ["cam01"])


def test_few_frames_of_a_long_recording_are_plausible(tmp_path):
    write_images(tmp_path / "cam01", ["1.png"])
    for number in (17, 52, 3000):
        cv2.imwrite(str(tmp_path / "cam01" / f"c1_{number:06d}.png"), picture(5))
    (tmp_path / "cam01" / "1.png").unlink()
    assert sorted(only(tmp_path).images) == [17, 52, 3000]


def test_links_that_lead_nowhere_are_reported(tmp_path):
    write_images(tmp_path / "cam01", ["1.png", "2.png"])
    (tmp_path / "cam01" / "3.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cam02.mp4").symlink_to(tmp_path / "nowhere.mp4")
    first, second = find_videos(tmp_path, ["cam01"]).problems
    assert "1 entries were passed over: 1 × a link that leads nowhere" in first
    assert "(cam02.mp4)" in first
    assert "(3.png)" in second


def test_images_without_a_number_are_listed(tmp_path):
    write_images(tmp_path / "cam01", ["1.png"])
    cv2.imwrite(str(tmp_path / "cam01" / "thumbnail.png"), picture(1))
    found = find_videos(tmp_path, ["cam01"])
    assert numbers(found.videos["cam01"].read([1])) == [(1, 1)]
    assert "1 images without a number in their name were skipped, e.g. thumbnail.png" in found.problems[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda f: None, r"'cam01' has no video in .* It contains no videos", id="an empty folder"),
        pytest.param(lambda f: write_video(f / "cam_01.mp4", count=2), "Did you mean 'cam_01'", id="another name"),
        pytest.param(
            lambda f: (write_video(f / "cam01.mp4", count=2), write_images(f / "cam01", ["1.png"])),
            "'cam01' has two videos",
            id="a file and a folder",
        ),
        pytest.param(
            lambda f: write_images(f / "cam01", ["1.png", "01.png"]), r"01\.png and 1\.png are both frame 1", id="twice"
        ),
    ],
)
def test_unusable_folders_raise_errors(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ReidError, match=message):
        find_videos(tmp_path, ["cam01"])


def test_a_missing_folder_raises_an_error(tmp_path):
    with pytest.raises(ReidError, match=r"no folder .*nowhere"):
        find_videos(tmp_path / "nowhere", ["cam01"])


def test_a_fingerprint_changes_with_the_content_and_not_without(tmp_path):
    path = write_video(tmp_path / "cam01.mp4", count=3)
    write_images(tmp_path / "b", ["1.png", "2.png"])
    for name, changed in (("cam01", path), ("b", tmp_path / "b" / "2.png")):
        before = only(tmp_path, name).fingerprint()
        assert only(tmp_path, name).fingerprint() == before
        os.utime(changed, (1, 1))
        assert only(tmp_path, name).fingerprint() != before


def test_images_of_a_single_camera_may_be_in_the_folder_itself(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    assert sorted(find_videos(tmp_path, ["cam01"]).videos["cam01"].images) == [1, 2]
    with pytest.raises(DataError, match="No camera has a video"):
        find_videos(tmp_path, ["cam01", "cam02"])


def test_a_folder_given_as_a_video_is_called_a_folder(tmp_path):
    with pytest.raises(DataError, match="is a folder, not a video file"):
        Video(tmp_path).info()
    assert ["is a folder" in frame.reason for frame in Video(tmp_path).read([1])] == [True]


@pytest.mark.parametrize(
    ("images", "frames", "first_frame", "message"),
    [
        pytest.param([5, 10, 15], [5, 10, 15], None, "", id="images and tracks of every fifth frame"),
        pytest.param([5, 10, 15], [4, 9, 14], None, "0 fit at offset 0, 0 at offset -1, 3 at offset 1", id="0 and 1"),
        pytest.param([5, 10, 15], [4, 9, 14], 0, "", id="0 and 1, stated"),
        pytest.param([0, 1, 2, 3], [1, 2, 3], 0, "", id="both from 0, stated"),
        pytest.param([1, 2, 3], [0, 1, 2], None, "", id="tracks from 0, detected"),
        pytest.param([1, 2, 3], [101, 102], None, "Pass files of the same recording", id="another recording"),
    ],
)
def test_tracks_and_images_that_number_frames_differently_are_an_error(tmp_path, images, frames, first_frame, message):
    write_images(tmp_path / "cam01", [f"{number}.png" for number in images])
    n = len(frames)
    tracks = Tracks.from_columns(["cam01"], [0] * n, [1] * n, frames, [[1, 1, 5, 5]] * n, first_frame=first_frame)
    if message:
        with pytest.raises(DataError, match=message):
            open_videos(tmp_path, tracks)
    else:
        videos, _, _ = open_videos(tmp_path, tracks)
        assert videos["cam01"].has_frames(tracks.frame, first_frame=tracks.first_frame).sum() == n
