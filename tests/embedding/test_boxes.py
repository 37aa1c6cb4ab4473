from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid import Embedder, Embeddings
from reid.core.errors import ReidError
from reid.data.images import resize
from reid.data.tracks import Tracks
from reid.data.videos import Video, find_videos
from reid.embedding.boxes import CROP_HEIGHT, boxes_to_parquet, embed_boxes, sharpness
from reid.models import build_model
from reid.models.preprocessing import Preprocessing
from tests.embedding.test_units import OneByOne

SIZE = (64, 32)
WIDE, HIGH, COUNT = 120, 90, 30


class Tiny:
    """Stand-in for an `Embedder`; the feature is the crop at 8×4 pixels minus its mean."""

    preprocessing = Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    dimension = 96
    embed_batches = Embedder.embed_batches

    def __init__(self, name="tiny", batch_size=64, flip=False):
        self.name, self.batch_size, self.flip = name, batch_size, flip

    def describe(self):
        return {"model": self.name, "flip": self.flip}

    def embed_batch(self, images):
        if self.flip:
            images = (images.astype(np.float32) + images[:, :, ::-1]) / 2
        small = images.astype(np.float32).reshape(-1, 8, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 96)
        small -= small.mean(1, keepdims=True)
        return small / np.linalg.norm(small, axis=1, keepdims=True)

    def __call__(self, images):
        return self.embed_batch(np.stack([resize(image, SIZE) for image in images]))


@pytest.fixture(scope="module")
def embedder():
    return Tiny()


def make_frames(seed):
    """Return smooth random frames, RGB, in which no two crops are equal."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (COUNT, HIGH // 6, WIDE // 6, 3), dtype=np.uint8)
    return [cv2.resize(one, (WIDE, HIGH)) for one in small]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Camera `a` as PNG images, which are lossless, and camera `b` as a video file."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "a").mkdir()
    for number, image in enumerate(make_frames(0), start=1):
        cv2.imwrite(str(folder / "a" / f"{number:04d}.png"), image[..., ::-1])
    writer = cv2.VideoWriter(str(folder / "b.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDE, HIGH))
    for image in make_frames(1):
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return folder


@pytest.fixture(scope="module")
def videos(folder):
    return find_videos(folder, ["a", "b"]).videos


def make_tracks(n=60, seed=0, cameras=2, names=("a", "b")):
    """Return random boxes inside the frame."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(cameras * 5 * COUNT, n, replace=False)
    camera, track, frame = np.unravel_index(chosen, (cameras, 5, COUNT))
    boxes = np.c_[rng.integers(0, (70, 40), (n, 2)), rng.integers((10, 20), (40, 50), (n, 2))]
    return Tracks.from_columns(names, camera, track + 1, frame + 1, boxes)


def one_box(box, frame=1, name="a"):
    return Tracks.from_columns([name], [0], [1], [frame], [box])


def crops_of(tracks, *frames):
    """Cut the boxes from the frames of each camera."""
    rows = zip(tracks.camera, tracks.frame, tracks.boxes.astype(int), strict=True)
    return [frames[c][f - 1][y : y + h, x : x + w] for c, f, (x, y, w, h) in rows]


class Counting:
    """Embedder that counts the images it receives and can be interrupted."""

    embed_batches = Embedder.embed_batches

    def __init__(self, embedder, fail_after=None):
        self._embedder, self.images, self.fail_after = embedder, 0, fail_after

    def __getattr__(self, name):
        return getattr(self._embedder, name)

    def embed_batch(self, images):
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        return self._embedder.embed_batch(images)


@pytest.mark.slow
def test_features_equal_those_of_the_crops(videos):
    embedder = Embedder(build_model("light18", height=SIZE[0], width=SIZE[1]), device="cpu", batch_size=7)
    tracks = make_tracks(20, cameras=1)
    result = embed_boxes(embedder, videos, tracks)
    crops = [resize(crop, SIZE) for crop in crops_of(tracks, make_frames(0))]
    np.testing.assert_allclose(result.embeddings.features, embedder(crops), atol=2e-6)
    np.testing.assert_array_equal(result.rows, np.arange(20))
    assert result.embeddings.tracks.tolist() == tracks.track.tolist()
    assert result.embeddings.frames.tolist() == tracks.frame.tolist()
    assert result.embeddings.camids.tolist() == tracks.camera.tolist()
    assert result.embeddings.meta == embedder.describe() | {"camera_names": ["a", "b"]}
    assert result.problems() == []
    flipping = Embedder(embedder.model, flip=True)
    flipped = embed_boxes(flipping, videos, tracks)
    np.testing.assert_allclose(flipped.embeddings.features, flipping(crops), atol=2e-6)


def test_video_file_gives_the_right_frames(embedder, videos):
    tracks = make_tracks(seed=1)
    features = embed_boxes(embedder, videos, tracks).embeddings.features
    expected = embedder(crops_of(tracks, make_frames(0), make_frames(1)))
    cosine = (features * expected).sum(1)
    in_video = tracks.camera == 1
    assert cosine[~in_video].min() > 0.9999
    assert cosine[in_video].min() > 0.97  # JPEG
    wrong = (features[in_video] * np.roll(expected, 1, axis=0)[in_video]).sum(1)
    assert np.median(wrong) < cosine[in_video].min()


@pytest.mark.parametrize("batch_size", [1, 13, 200])
def test_batch_size_does_not_change_the_result(embedder, videos, batch_size):
    tracks = make_tracks(seed=2)
    expected = embed_boxes(embedder, videos, tracks).embeddings
    result = embed_boxes(Tiny(batch_size=batch_size), videos, tracks).embeddings
    np.testing.assert_allclose(result.features, expected.features, atol=2e-6)
    np.testing.assert_allclose(result.quality, expected.quality, atol=1e-6)


def test_one_video_without_a_folder(folder, videos, embedder):
    tracks = make_tracks(20, seed=12, cameras=1, names=("b",))
    result = embed_boxes(embedder, {"b": Video(folder / "b.avi")}, tracks)
    expected = embedder(crops_of(tracks, make_frames(1)))
    assert (result.embeddings.features * expected).sum(1).min() > 0.97
    shifted = embed_boxes(embedder, videos, tracks.shift_frames(-1))
    np.testing.assert_array_equal(shifted.embeddings.features, result.embeddings.features)
    with pytest.raises(ReidError, match=r"None of the 1 boxes .*no video none\.avi\. Check the path\.$"):
        embed_boxes(embedder, {"a": NoFile(folder / "none.avi")}, one_box([1, 1, 9, 9]))


class NoFile(Video):
    """Video that was deleted after it was found."""

    def fingerprint(self):
        return "none"


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        pytest.param([-10, -5, 40, 50], (0, 0, 30, 45), id="over the upper left corner"),
        pytest.param([100, 60, 400, 400], (100, 60, 120, 90), id="over the lower right corner"),
        pytest.param([10.4, 20.6, 30.2, 40.3], (10, 21, 41, 61), id="rounded"),
        pytest.param([-4e5, -4e5, 1e6, 1e6], (0, 0, 120, 90), id="enormous"),
    ],
)
def test_boxes_are_clipped_to_the_frame(embedder, videos, box, cut):
    left, top, right, bottom = cut
    result = embed_boxes(embedder, videos, one_box(box, frame=3))
    expected = embedder([make_frames(0)[2][top:bottom, left:right].copy()])
    np.testing.assert_allclose(result.embeddings.features, expected, atol=2e-6)


def test_boxes_that_cannot_be_embedded_are_listed(embedder, videos):
    inside = [10, 10, 30, 40]
    rows = [
        (0, 1, 5, inside, ""),
        (0, 1, 31, inside, "a: .* has no image for the frame"),
        (0, 2, 5, [10, 10, 0.2, 40], "smaller than a pixel"),
        (0, 3, 5, [10, 10, 30, 0.3], "smaller than a pixel"),
        (0, 4, 5, [-50, 10, 30, 40], "a: the box is outside the frame"),
        (0, 5, 5, [130, 10, 30, 40], "a: the box is outside the frame"),
        (1, 2, 6, inside, ""),
        (1, 2, 31, inside, "b: the video ends after frame 30"),
        (2, 3, 5, inside, "camera 'c' has no video"),
    ]
    tracks = Tracks.from_columns(["a", "b", "c"], *[list(column) for column in zip(*rows, strict=True)][:4])
    expected = {(c, t, f): reason for c, t, f, _, reason in rows}
    result = embed_boxes(embedder, videos, tracks, keep_crops=True)
    assert result.embeddings.camids.tolist() == [0, 1]
    assert len(result.left_out) == 7
    for row, reason in zip(result.left_out, result.reasons, strict=True):
        pattern = expected[tracks.camera[row], tracks.track[row], tracks.frame[row]]
        assert pattern
        assert re.search(pattern, reason), (row, reason)
    lines = result.problems()
    assert len(lines) == 5
    assert "the box is smaller than a pixel: 2 boxes without a feature, rows 1, 2" in lines
    assert len(result.crop_jpegs) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"tracks": one_box([1, 1, 9, 9], 99)}, r"None of the 1 boxes .* has no image", id="no frame"),
        pytest.param({"videos": {}}, r"None of the 1 boxes .* camera 'a' has no video", id="no video"),
        pytest.param({"quality": [1, 1]}, r"quality must be one column of 1 rows", id="quality of another length"),
        pytest.param({"quality": [1.5]}, r"quality is 1.5 in row 0; it must be from 0 to 1", id="quality above 1"),
        pytest.param({"shard_size": 0}, r"shard_size must be 1 or more; got 0", id="shard size of 0"),
    ],
)
def test_invalid_arguments_are_errors(embedder, videos, change, message):
    with pytest.raises(ReidError, match=message):
        embed_boxes(embedder, **{"videos": videos, "tracks": one_box([1, 1, 9, 9])} | change)


def test_no_boxes_give_an_empty_table(embedder, videos):
    tracks = Tracks.from_columns(["a"], [], [], [], [])
    result = embed_boxes(embedder, videos, tracks, keep_crops=True)
    assert result.embeddings.features.shape == (0, embedder.dimension)


def test_nan_output_is_an_error_with_the_frame(embedder, videos):
    class Broken(Counting):
        def embed_batch(self, images):
            return np.full((len(images), self.dimension), np.nan, np.float32)

    with pytest.raises(ReidError, match=r"NaN or infinity for 1 of 1 images, the first .*a, frame 4"):
        embed_boxes(Broken(embedder), videos, one_box([1, 1, 9, 9], frame=4))


def assert_same(a, b):
    np.testing.assert_array_equal(a.embeddings.features, b.embeddings.features)
    np.testing.assert_array_equal(a.embeddings.quality, b.embeddings.quality)
    assert a.crop_jpegs == b.crop_jpegs
    assert a.left_out.tolist() == b.left_out.tolist()
    assert a.reasons == b.reasons


def test_second_run_reads_the_cache(embedder, videos, tmp_path):
    tracks = make_tracks(seed=4)
    tracks.frame[np.flatnonzero(tracks.camera == 0)[-3:]] = 99
    counting = Counting(embedder)
    first, second = (embed_boxes(counting, videos, tracks, cache=tmp_path, keep_crops=True) for _ in range(2))
    assert counting.images == 57
    assert (first.from_cache, second.from_cache) == (0, 57)
    assert_same(first, second)


def test_cache_identifies_boxes_by_pixels_not_by_track(embedder, videos, tmp_path):
    tracks = make_tracks(seed=5)
    counting = Counting(embedder)
    embed_boxes(counting, videos, tracks.take(np.arange(40)), cache=tmp_path)
    result = embed_boxes(counting, videos, tracks.with_ids(tracks.track + 100), cache=tmp_path)
    assert counting.images == 60
    assert result.from_cache == 40
    expected = embed_boxes(embedder, videos, tracks).embeddings.features
    np.testing.assert_allclose(result.embeddings.features, expected, atol=2e-6)


def test_small_crops_missing_from_the_cache_are_added(embedder, videos, tmp_path):
    tracks = make_tracks(seed=6)
    counting = Counting(embedder)
    assert embed_boxes(counting, videos, tracks, cache=tmp_path).crop_jpegs == ()
    first = embed_boxes(counting, videos, tracks, cache=tmp_path, keep_crops=True)
    assert len(first.crop_jpegs) == 60
    assert counting.images == 120
    assert_same(first, embed_boxes(counting, videos, tracks, cache=tmp_path, keep_crops=True))
    assert counting.images == 120


@pytest.mark.parametrize("change", ["model", "flip", "video", "first frame"])
def test_cache_depends_on_model_flip_video_and_first_frame(embedder, folder, tmp_path, change):
    tracks = make_tracks(seed=7, cameras=1, names=("a",))
    path = tmp_path / "videos" / "a"
    path.mkdir(parents=True)
    for image in (folder / "a").iterdir():
        (path / image.name).write_bytes(image.read_bytes())
    videos = find_videos(tmp_path / "videos", ["a"]).videos
    embed_boxes(embedder, videos, tracks, cache=tmp_path / "cache")
    if change == "model":
        embedder = Tiny("another")
    elif change == "flip":
        embedder = Tiny(flip=True)
    elif change == "video":
        os.utime(path / "0003.png", (1, 1))
    else:
        tracks = tracks.shift_frames(-1)
    assert embed_boxes(embedder, videos, tracks, cache=tmp_path / "cache").from_cache == 0


def test_damaged_shard_is_reported_and_embedded_again(embedder, videos, tmp_path):
    tracks = make_tracks(seed=8, cameras=1)
    first = embed_boxes(embedder, videos, tracks, cache=tmp_path)
    (shard,) = tmp_path.rglob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-100])
    again = embed_boxes(embedder, videos, tracks, cache=tmp_path)
    assert_same(first, again)
    assert again.from_cache == 0
    assert len(again.problems()) == 1
    assert f"{shard} cannot be read and is not used" in again.problems()[0]


def test_interrupted_run_resumes(embedder, videos, tmp_path):
    tracks = make_tracks(seed=9, cameras=1)
    with pytest.raises(KeyboardInterrupt):
        embed_boxes(
            Counting(Tiny(batch_size=8), 32), videos, tracks, cache=tmp_path, shard_size=8, keep_crops=True
        )  # fmt: skip
    counting = Counting(embedder)
    result = embed_boxes(counting, videos, tracks, cache=tmp_path, keep_crops=True)
    assert result.from_cache == 32
    assert counting.images == 28
    assert_same(result, embed_boxes(counting, videos, tracks, cache=tmp_path, keep_crops=True))


KILLED = """
import sys, time
from tests.embedding.test_boxes import Counting, Tiny, make_tracks
from reid.data.videos import find_videos
from reid.embedding.boxes import embed_boxes

class Slow(Counting):
    def embed_batch(self, images):
        time.sleep(0.2)
        return super().embed_batch(images)

embedder = Slow(Tiny(batch_size=8))
videos = find_videos(sys.argv[1], ["a", "b"]).videos
embed_boxes(embedder, videos, make_tracks(200), cache=sys.argv[2], shard_size=8)
"""


def find_shards(folder):
    return list(folder.rglob("[0-9]*.parquet"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
def test_killed_run_resumes(embedder, folder, videos, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path)], cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    try:
        deadline = time.monotonic() + 60
        while len(find_shards(tmp_path)) < 3 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.poll() is None, "the run ended before it could be killed"
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    finished = 8 * len(find_shards(tmp_path))
    (find_shards(tmp_path)[0].parent / ".000099-1.part.parquet").write_bytes(b"half a shard")
    counting = Counting(embedder)
    result = embed_boxes(counting, videos, make_tracks(200), cache=tmp_path)
    assert result.problems() == []
    assert result.from_cache == finished >= 24
    assert counting.images == 200 - result.from_cache
    fresh = embed_boxes(embedder, videos, make_tracks(200))
    np.testing.assert_allclose(result.embeddings.features, fresh.embeddings.features, atol=2e-6)


def test_sharpness_does_not_depend_on_contrast_or_size():
    rng = np.random.default_rng(0)
    sharp = cv2.resize(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8), (64, 128), interpolation=cv2.INTER_NEAREST)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    assert sharpness(blurred) < 0.3 * sharpness(sharp)
    assert sharpness((sharp // 4) + 90) == pytest.approx(sharpness(sharp), rel=0.1)
    small = cv2.resize(cv2.resize(sharp, (8, 16), interpolation=cv2.INTER_AREA), (64, 128))
    assert sharpness(small) < sharpness(sharp)
    assert sharpness(np.full((50, 20, 3), 7, np.uint8)) == 0


def test_quality_is_multiplied_by_relative_sharpness(embedder, videos):
    tracks = make_tracks(seed=10, cameras=1)
    given = np.random.default_rng(1).random(60)
    result = embed_boxes(embedder, videos, tracks, quality=given)
    sharp = np.array([sharpness(crop) for crop in crops_of(tracks, make_frames(0))])
    np.testing.assert_allclose(result.embeddings.quality, given * np.minimum(1, sharp / np.median(sharp)), rtol=1e-5)
    assert sharp.min() > 0


def test_small_crops_show_the_boxes(embedder, videos):
    tracks = make_tracks(seed=11)
    result = embed_boxes(embedder, videos, tracks, keep_crops=True)
    crops = crops_of(tracks, make_frames(0), make_frames(1))
    for row, jpeg in enumerate(result.crop_jpegs):
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        width, height = tracks.boxes[row, 2:]
        assert image.shape == (CROP_HEIGHT, round(width * CROP_HEIGHT / height), 3)
        assert np.abs(image.astype(int) - cv2.resize(crops[row], image.shape[1::-1])).mean() < 20


def test_decoding_uses_one_thread_that_ends(embedder, videos):
    before = threading.active_count()
    seen = []

    class Watching(Counting):
        def embed_batch(self, images):
            seen.append(threading.active_count())
            return super().embed_batch(images)

    embed_boxes(Watching(Tiny(batch_size=4)), videos, make_tracks())
    assert max(seen) <= before + 1
    assert threading.active_count() == before


def assert_file_equals(path, table):
    loaded = Embeddings.load(path)
    np.testing.assert_allclose(loaded.features, table.features, atol=2e-6)
    for name in ("camids", "tracks", "frames", "quality"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
    return loaded


@pytest.mark.parametrize("groups", [1, 7, 1000], ids=lambda rows: f"{rows} rows at a time")
def test_file_equals_the_table_in_memory(embedder, videos, tmp_path, monkeypatch, groups):
    monkeypatch.setattr("reid.embedding.table._rows_per_group", lambda dimension: groups)
    tracks = make_tracks(seed=13)
    tracks.frame[np.flatnonzero(tracks.camera == 0)[-2:]] = 99
    tracks.boxes[9] = 0, 0, 0.2, 5
    given = np.random.default_rng(0).random(60)
    out = tmp_path / "t.parquet"
    written = boxes_to_parquet(embedder, videos, tracks, out, quality=given, shard_size=8)
    in_memory = embed_boxes(embedder, videos, tracks, quality=given)
    loaded = assert_file_equals(out, in_memory.embeddings)
    assert (written.rows, written.finished) == (57, 0)
    assert loaded.meta == in_memory.embeddings.meta | {"left_out": in_memory.problems()}
    assert list(written.left_out) == in_memory.problems()
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_interrupted_file_resumes(embedder, videos, tmp_path):
    tracks, out = make_tracks(seed=14), tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        boxes_to_parquet(Counting(Tiny(batch_size=8), 24), videos, tracks, out)
    counting = Counting(embedder)
    written = boxes_to_parquet(counting, videos, tracks, out)
    assert (written.finished, counting.images) == (24, 36)
    assert_file_equals(out, embed_boxes(embedder, videos, tracks).embeddings)


def test_cluster_takes_whole_cameras(embedder, videos, folder, tmp_path, monkeypatch):
    tracks, out, given = make_tracks(seed=16), tmp_path / "t.parquet", np.random.default_rng(0).random(60)
    tracks.frame[np.flatnonzero(tracks.camera == 0)[-2:]] = 99
    boxes_to_parquet(embedder, videos, tracks, tmp_path / "one.parquet", quality=given)
    counting = Counting(embedder)

    class Elsewhere(OneByOne):
        def run(self, *arguments):
            with monkeypatch.context() as patch:
                patch.chdir("/")  # workers start in another folder
                super().run(*arguments)

    monkeypatch.chdir(folder)
    videos = find_videos(Path(), ["a", "b"]).videos
    written = boxes_to_parquet(embedder, videos, tracks, out, quality=given, cluster=Elsewhere(counting), shard_size=8)
    one = Embeddings.load(tmp_path / "one.parquet")
    assert assert_file_equals(out, one).meta == one.meta
    assert (written.rows, counting.images, written.notes) == (58, 58, ())
    assert sorted(os.listdir(tmp_path)) == ["one.parquet", "t.parquet"]
