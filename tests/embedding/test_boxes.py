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
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.images import resize
from reid.data.videos import find_videos
from reid.embedding.boxes import CROP_HEIGHT, boxes_to_parquet, embed_boxes, sharpness
from reid.models import build_model
from reid.models.preprocessing import Preprocessing

SIZE = (64, 32)
WIDE, HIGH, COUNT = 120, 90, 30


class Tiny:
    """As an `Embedder` to `embed_boxes`, but the feature of a crop is itself at 8×4 pixels, less its mean."""

    preprocessing = Preprocessing(SIZE, (0, 0, 0), (1, 1, 1))
    dimension = 96

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


def pictures(seed):
    """Smooth random pictures, RGB: no two crops are alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (COUNT, HIGH // 6, WIDE // 6, 3), dtype=np.uint8)
    return [cv2.resize(one, (WIDE, HIGH)) for one in small]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Camera `a` as PNG images, so that what is read is what was written; `b` as a video file."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "a").mkdir()
    for number, picture in enumerate(pictures(0), start=1):
        cv2.imwrite(str(folder / "a" / f"{number:04d}.png"), picture[..., ::-1])
    writer = cv2.VideoWriter(str(folder / "b.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDE, HIGH))
    for picture in pictures(1):
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    return folder


@pytest.fixture(scope="module")
def videos(folder):
    return find_videos(folder, ["a", "b"]).videos


def some(n=60, seed=0, cameras=2):
    """camera, track, frame, boxes inside the picture, in no order."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, (70, 40), (n, 2))
    sides = rng.integers((10, 20), (40, 50), (n, 2))
    columns = rng.integers(0, cameras, n), rng.integers(1, 6, n), rng.integers(1, COUNT + 1, n)
    return *columns, np.c_[corner, sides].astype(float)


class Counting:
    """An embedder that counts the images it is asked for, and can be told to fail."""

    def __init__(self, embedder, fail_after=None):
        self._embedder, self.images, self.fail_after = embedder, 0, fail_after

    def __getattr__(self, name):
        return getattr(self._embedder, name)

    def embed_batch(self, images):
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        return self._embedder.embed_batch(images)


def test_features_are_those_that_a_real_embedder_gives_the_crops(videos):
    embedder = Embedder(build_model("light18", size=SIZE), device="cpu", batch_size=7)
    camera, track, frame, boxes = some(20, cameras=1)
    got = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder)
    shown = pictures(0)
    crops = [
        resize(shown[f - 1][y : y + h, x : x + w], SIZE)
        for f, (x, y, w, h) in zip(frame, boxes.astype(int), strict=True)
    ]
    np.testing.assert_allclose(got.embeddings.features, embedder(crops), atol=2e-6)
    np.testing.assert_array_equal(got.rows, np.arange(20))
    assert got.embeddings.tracks.tolist() == track.tolist()
    assert got.embeddings.frames.tolist() == frame.tolist()
    assert got.embeddings.camids.tolist() == camera.tolist()
    assert got.embeddings.meta["camera_names"] == ["a", "b"]
    assert got.embeddings.meta["model"] == embedder.describe()["model"]
    assert got.problems() == []
    flipping = Embedder(embedder.model, flip=True)
    flipped = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, flipping)
    np.testing.assert_allclose(flipped.embeddings.features, flipping(crops), atol=2e-6)


def test_a_video_gives_nearly_what_its_pictures_give(embedder, videos):
    camera, track, frame, boxes = some(seed=1)
    got = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder)
    shown = pictures(0), pictures(1)
    crops = [
        shown[c][f - 1][y : y + h, x : x + w]
        for c, f, (x, y, w, h) in zip(camera, frame, boxes.astype(int), strict=True)
    ]
    likeness = (got.embeddings.features * embedder(crops)).sum(1)
    assert likeness[camera == 0].min() > 0.9999
    assert likeness[camera == 1].min() > 0.97  # JPEG
    wrong = (got.embeddings.features[camera == 1] * np.roll(embedder(crops), 1, axis=0)[camera == 1]).sum(1)
    assert np.median(wrong) < likeness[camera == 1].min()


@pytest.mark.parametrize("batch_size", [1, 13, 200])
def test_batches_and_order_change_nothing(embedder, videos, batch_size):
    camera, track, frame, boxes = some(seed=2)
    whole = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder).embeddings
    order = np.random.default_rng(0).permutation(60)
    got = embed_boxes(
        videos, ["a", "b"], camera[order], track[order], frame[order], boxes[order], Tiny(batch_size=batch_size)
    ).embeddings
    np.testing.assert_allclose(got.features, whole.features[order], atol=2e-6)
    assert got.tracks.tolist() == whole.tracks[order].tolist()
    np.testing.assert_allclose(got.quality, whole.quality[order], atol=1e-6)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        pytest.param([-10, -5, 40, 50], (0, 0, 30, 45), id="over the upper left corner"),
        pytest.param([100, 60, 400, 400], (100, 60, 120, 90), id="over the lower right corner"),
        pytest.param([10.4, 20.6, 30.2, 40.3], (10, 21, 41, 61), id="rounded"),
        pytest.param([-1e9, -1e9, 2e9, 2e9], (0, 0, 120, 90), id="enormous"),
    ],
)
def test_boxes_are_clipped_to_the_picture(embedder, videos, box, cut):
    left, top, right, bottom = cut
    got = embed_boxes(videos, ["a"], [0], [1], [3], [box], embedder)
    np.testing.assert_allclose(
        got.embeddings.features, embedder([pictures(0)[2][top:bottom, left:right].copy()]), atol=2e-6
    )


def test_what_cannot_be_embedded_is_listed_and_the_rest_is(embedder, videos):
    inside = [10, 10, 30, 40]
    rows = [
        (0, 1, 5, inside, ""),
        (0, 1, 31, inside, "a: .* has no image of the frame"),
        (1, 2, 31, inside, "b: the video ends after frame 30"),
        (1, 2, 0, inside, "b: the frame is before the first one, 1"),
        (0, 1, 5, [10, 10, 0, 40], "has no area"),
        (0, 1, 5, [10, 10, 0.2, 40], "has no area"),
        (0, 1, 5, [10, 10, 30, -40], "has no area"),
        (0, 1, 5, [np.nan, 10, 30, 40], "is not finite"),
        (0, 1, 5, [10, 10, np.inf, 40], "is not finite"),
        (0, 1, 5, [-50, 10, 30, 40], "a: the box lies outside the picture"),
        (0, 1, 5, [130, 10, 30, 40], "a: the box lies outside the picture"),
        (2, 3, 5, inside, "camera 'c' has no video"),
        (1, 2, 6, inside, ""),
    ]
    camera, track, frame, boxes, expected = zip(*rows, strict=True)
    got = embed_boxes(videos, ["a", "b", "c"], camera, track, frame, boxes, embedder, keep_crops=20)
    assert got.rows.tolist() == [0, 12]
    assert got.embeddings.camids.tolist() == [0, 1]
    assert got.left_out.tolist() == list(range(1, 12))
    for row, reason in zip(got.left_out, got.reasons, strict=True):
        assert re.search(expected[row], reason), (row, reason)
    lines = got.problems()
    assert len(lines) == 7
    assert "the box has no area: 3 boxes without a feature, rows 4, 5, 6" in lines
    assert got.crop_rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"frame": [99]}, r"None of the 1 boxes .* has no image of the frame", id="nothing is left"),
        pytest.param({"videos": {}}, r"None of the 1 boxes .* camera 'a' has no video", id="no video"),
        pytest.param({"camera": [1]}, r"numbered 1 to 1; there are 1 names", id="a camera without a name"),
        pytest.param({"track": [1, 2]}, r"track has shape \[2\], but there are 1 boxes", id="another length"),
        pytest.param({"quality": [1, 2]}, r"quality has shape \[2\]", id="another length of quality"),
        pytest.param({"part_size": 0}, r"part_size must be 1 or more; it is 0", id="no part"),
    ],
)
def test_what_cannot_be_is_named(embedder, videos, change, words):
    given = {"videos": videos, "camera": [0], "track": [1], "frame": [1]} | change
    rest = {key: given.pop(key) for key in ("quality", "part_size") if key in given}
    with pytest.raises(ReidError, match=words):
        embed_boxes(
            given["videos"], ["a"], given["camera"], given["track"], given["frame"], [[1, 1, 9, 9]], embedder, **rest
        )


def test_no_boxes_give_an_empty_table(embedder, videos):
    got = embed_boxes(videos, ["a"], [], [], [], np.zeros((0, 4)), embedder, keep_crops=2)
    assert got.embeddings.features.shape == (0, embedder.dimension)


def test_a_model_that_gives_nan_is_named_with_the_frame(embedder, videos):
    class Broken(Counting):
        def embed_batch(self, images):
            return np.full((len(images), self.dimension), np.nan, np.float32)

    with pytest.raises(ReidError, match=r"NaN or infinity for 1 of 1 images, the first .*a, frame 4"):
        embed_boxes(videos, ["a"], [0], [1], [4], [[1, 1, 9, 9]], Broken(embedder))


def same(a, b):
    np.testing.assert_array_equal(a.embeddings.features, b.embeddings.features)
    np.testing.assert_array_equal(a.embeddings.quality, b.embeddings.quality)
    np.testing.assert_array_equal(a.crop_rows, b.crop_rows)
    assert a.crop_jpegs == b.crop_jpegs
    assert a.left_out.tolist() == b.left_out.tolist()
    assert a.reasons == b.reasons


def test_a_second_run_embeds_nothing(embedder, videos, tmp_path):
    camera, track, frame, boxes = some(seed=4)
    frame[:3] = 99
    counting = Counting(embedder)
    first, second = (
        embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, counting, cache=tmp_path, keep_crops=2)
        for _ in range(2)
    )
    assert counting.images == 57
    assert (first.from_cache, second.from_cache) == (0, 57)
    same(first, second)


def test_only_new_boxes_are_embedded_and_other_tracks_of_a_box_are_no_new_ones(embedder, videos, tmp_path):
    camera, track, frame, boxes = some(seed=5)
    counting = Counting(embedder)
    embed_boxes(videos, ["a", "b"], camera[:40], track[:40], frame[:40], boxes[:40], counting, cache=tmp_path)
    got = embed_boxes(videos, ["a", "b"], camera, track + 100, frame, boxes, counting, cache=tmp_path)
    assert counting.images == 60
    assert got.from_cache == 40
    np.testing.assert_allclose(
        got.embeddings.features,
        embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder).embeddings.features,
        atol=2e-6,
    )


def test_pictures_that_the_cache_lacks_are_made(embedder, videos, tmp_path):
    columns = some(seed=6)
    counting = Counting(embedder)
    without = embed_boxes(videos, ["a", "b"], *columns, counting, cache=tmp_path)
    assert without.crop_jpegs == ()
    some_of = embed_boxes(videos, ["a", "b"], *columns, counting, cache=tmp_path, keep_crops=1)
    assert len(some_of.crop_jpegs) == 10
    assert counting.images == 70
    same(some_of, embed_boxes(videos, ["a", "b"], *columns, counting, cache=tmp_path, keep_crops=1))
    assert counting.images == 70


@pytest.mark.parametrize("change", ["model", "flip", "video", "first frame"])
def test_what_changes_features_is_not_read_from_the_cache(embedder, folder, tmp_path, change):
    camera, track, frame, boxes = some(seed=7, cameras=1)
    path = tmp_path / "videos" / "a"
    path.mkdir(parents=True)
    for image in (folder / "a").iterdir():
        (path / image.name).write_bytes(image.read_bytes())
    videos = find_videos(tmp_path / "videos", ["a"]).videos
    embed_boxes(videos, ["a"], camera, track, frame, boxes, embedder, cache=tmp_path / "cache")
    options = {}
    if change == "model":
        embedder = Tiny("another")
    elif change == "flip":
        embedder = Tiny(flip=True)
    elif change == "video":
        os.utime(path / "0003.png", (1, 1))
    else:
        options["first_frame"] = 0
        frame = frame - 1
    got = embed_boxes(videos, ["a"], camera, track, frame, boxes, embedder, cache=tmp_path / "cache", **options)
    assert got.from_cache == 0


def test_a_damaged_part_is_told_and_made_anew(embedder, videos, tmp_path):
    columns = some(seed=8, cameras=1)
    first = embed_boxes(videos, ["a"], *columns, embedder, cache=tmp_path)
    (part,) = tmp_path.rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    again = embed_boxes(videos, ["a"], *columns, embedder, cache=tmp_path)
    same(first, again)
    assert again.from_cache == 0
    assert len(again.problems()) == 1
    assert f"{part} cannot be read and is not used" in again.problems()[0]


def test_an_interrupted_run_goes_on_where_it_stopped(embedder, videos, tmp_path):
    columns = some(seed=9, cameras=1)
    with pytest.raises(KeyboardInterrupt):
        embed_boxes(
            videos, ["a"], *columns, Counting(Tiny(batch_size=8), 32), cache=tmp_path, part_size=8, keep_crops=1
        )
    counting = Counting(embedder)
    got = embed_boxes(videos, ["a"], *columns, counting, cache=tmp_path, keep_crops=1)
    assert got.from_cache == 32
    assert counting.images == 28
    same(got, embed_boxes(videos, ["a"], *columns, counting, cache=tmp_path, keep_crops=1))


KILLED = """
import sys, time
from tests.embedding.test_boxes import Counting, Tiny, some
from reid.data.videos import find_videos
from reid.embedding.boxes import embed_boxes

class Slow(Counting):
    def embed_batch(self, images):
        time.sleep(0.2)
        return super().embed_batch(images)

embedder = Slow(Tiny(batch_size=8))
videos = find_videos(sys.argv[1], ["a", "b"]).videos
embed_boxes(videos, ["a", "b"], *some(200), embedder, cache=sys.argv[2], part_size=8)
"""


def parts(folder):
    return list(folder.rglob("[0-9]*.parquet"))


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a POSIX signal")
def test_a_killed_run_goes_on_where_it_stopped(embedder, folder, videos, tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path)], cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    try:
        patience = time.monotonic() + 60
        while len(parts(tmp_path)) < 3 and run.poll() is None and time.monotonic() < patience:
            time.sleep(0.02)
        assert run.poll() is None, "it ended before it could be killed"
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    left = len(parts(tmp_path))
    (parts(tmp_path)[0].parent / ".000099-1.part.parquet").write_bytes(b"half a part")
    counting = Counting(embedder)
    got = embed_boxes(videos, ["a", "b"], *some(200), counting, cache=tmp_path)
    assert got.problems() == []
    assert got.from_cache == 8 * left >= 24
    assert counting.images == 200 - got.from_cache
    fresh = embed_boxes(videos, ["a", "b"], *some(200), embedder)
    np.testing.assert_allclose(got.embeddings.features, fresh.embeddings.features, atol=2e-6)


def test_sharp_crops_score_above_blurred_ones_of_any_contrast_and_size():
    rng = np.random.default_rng(0)
    sharp = cv2.resize(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8), (64, 128), interpolation=cv2.INTER_NEAREST)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    assert sharpness(blurred) < 0.3 * sharpness(sharp)
    assert sharpness((sharp // 4) + 90) == pytest.approx(sharpness(sharp), rel=0.1)
    small = cv2.resize(cv2.resize(sharp, (8, 16), interpolation=cv2.INTER_AREA), (64, 128))
    assert sharpness(small) < sharpness(sharp)
    assert sharpness(np.full((50, 20, 3), 7, np.uint8)) == 0


def test_quality_is_what_was_given_times_sharpness(embedder, videos):
    camera, track, frame, boxes = some(seed=10)
    given = np.random.default_rng(1).random(60)
    got = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder, quality=given)
    for number in (0, 1):
        own = camera == number
        share = np.minimum(1, got.sharpness[own] / np.median(got.sharpness[own]))
        np.testing.assert_allclose(got.embeddings.quality[own], given[own] * share, rtol=1e-5)
    assert got.sharpness.min() > 0


def test_the_best_boxes_of_each_track_are_kept_as_small_pictures(embedder, videos):
    camera, track, frame, boxes = some(seed=11)
    given = np.random.default_rng(2).random(60)
    got = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder, quality=given, keep_crops=2)
    for c, t in {*zip(camera.tolist(), track.tolist(), strict=True)}:
        own = np.flatnonzero((camera == c) & (track == t))
        best = sorted(own[np.argsort(-given[own])][:2])
        assert [row for row in got.crop_rows if row in own] == best
    shown = pictures(0), pictures(1)
    for number, row in enumerate(got.crop_rows):
        x, y, w, h = boxes[row].astype(int)
        image = got.crop(number)
        assert image.dtype == np.uint8
        assert image.shape == (CROP_HEIGHT, round(w * CROP_HEIGHT / h), 3)
        own = cv2.resize(shown[camera[row]][frame[row] - 1][y : y + h, x : x + w], image.shape[1::-1])
        assert np.abs(image.astype(int) - own).mean() < 20


def test_decoding_runs_in_one_thread_ahead_and_ends(embedder, videos):
    before = threading.active_count()
    seen = []

    class Watching(Counting):
        def embed_batch(self, images):
            seen.append(threading.active_count())
            return super().embed_batch(images)

    embed_boxes(videos, ["a", "b"], *some(), Watching(Tiny(batch_size=4)))
    assert max(seen) <= before + 1
    assert threading.active_count() == before


def test_boxes_of_one_video_through_the_embedder(folder, videos):
    embedder = Embedder(build_model("light10", size=SIZE), device="cpu", batch_size=8)
    _, _, frame, boxes = some(20, seed=12)
    camera = np.ones(20, int)
    whole = embed_boxes(videos, ["a", "b"], camera, camera, frame, boxes, embedder).embeddings
    np.testing.assert_allclose(embedder.boxes(folder / "b.avi", frame, boxes), whole.features, atol=2e-6)
    np.testing.assert_allclose(
        embedder.boxes(folder / "b.avi", frame - 1, boxes, first_frame=0), whole.features, atol=2e-6
    )
    frame[3], boxes[5] = 99, (500, 0, 10, 10)
    with pytest.raises(ReidError, match=r"b\.avi: .*ends after frame 30: 1 boxes .*rows 3; .*outside .*rows 5"):
        embedder.boxes(folder / "b.avi", frame, boxes)
    with pytest.raises(ReidError, match=r"frame has shape \[2\], but there are 1 boxes"):
        embedder.boxes(folder / "b.avi", [1, 2], boxes[:1])
    with pytest.raises(ReidError, match=r"none\.avi cannot be opened"):
        embedder.boxes(folder / "none.avi", frame[:1], boxes[:1])
    assert embedder.boxes(folder / "b.avi", [], np.zeros((0, 4))).shape == (0, embedder.dimension)


def equal_file(path, table):
    got = Embeddings.load(path)
    np.testing.assert_allclose(got.features, table.features, atol=2e-6)
    for name in ("camids", "tracks", "frames", "quality"):
        np.testing.assert_array_equal(getattr(got, name), getattr(table, name))
    return got


@pytest.mark.parametrize("groups", [1, 7, 1000], ids=lambda rows: f"{rows} rows at a time")
def test_the_file_of_boxes_is_what_the_table_is(embedder, videos, tmp_path, monkeypatch, groups):
    monkeypatch.setattr("reid.embedding.boxes.rows_per_group", lambda dimension: groups)
    camera, track, frame, boxes = some(seed=13)
    frame[[2, 7]], boxes[9] = 99, (0, 0, 0, 5)
    given = np.random.default_rng(0).random(60)
    out = tmp_path / "t.parquet"
    done = boxes_to_parquet(videos, ["a", "b"], camera, track, frame, boxes, embedder, out, quality=given, part_size=8)
    table = embed_boxes(videos, ["a", "b"], camera, track, frame, boxes, embedder, quality=given)
    got = equal_file(out, table.embeddings)
    assert (done.rows, done.finished) == (57, 0)
    assert got.meta == table.embeddings.meta | {"left_out": table.problems()}
    assert list(done.left_out) == table.problems()
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_file_of_boxes_goes_on_where_it_stopped(embedder, videos, tmp_path):
    columns, out = some(seed=14), tmp_path / "t.parquet"
    with pytest.raises(KeyboardInterrupt):
        boxes_to_parquet(videos, ["a", "b"], *columns, Counting(Tiny(batch_size=8), 24), out)
    counting = Counting(embedder)
    done = boxes_to_parquet(videos, ["a", "b"], *columns, counting, out)
    assert (done.finished, counting.images) == (24, 36)
    equal_file(out, embed_boxes(videos, ["a", "b"], *columns, embedder).embeddings)


class Turn(DistributedContext):
    """One of several processes, run one after the other."""

    def gather_rows(self, rows):
        return [rows]


def test_processes_share_the_cameras(embedder, videos, tmp_path):
    columns, out = some(seed=15), tmp_path / "t.parquet"
    images = []
    for rank in (2, 1, 0):
        counting = Counting(embedder)
        done = boxes_to_parquet(videos, ["a", "b"], *columns, counting, out, ranks=Turn(rank, 3, "cpu"))
        images.append(counting.images)
    assert images == [0, *sorted(np.bincount(columns[0]))]
    assert done.rows == 60
    equal_file(out, embed_boxes(videos, ["a", "b"], *columns, embedder).embeddings)
