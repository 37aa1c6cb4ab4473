"""Tests of decoding: pixel formats and damaged files."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reid.data import images
from reid.data.images import UnreadableImage, decode, probe, resize


def picture(height: int = 128, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some texture, so that JPEG keeps it nearly."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(array: NDArray[np.uint8] | Image.Image, kind: str, **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG with a header and almost no content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


RGB = picture()
GRAY = np.asarray(Image.fromarray(RGB).convert("L"))
DEEP = (GRAY.astype(np.uint16) << 8) + 77

LOSSLESS = {
    "png, rgb": (encoded(RGB, "PNG"), RGB),
    "png, gray": (encoded(Image.fromarray(GRAY), "PNG"), np.repeat(GRAY[..., None], 3, 2)),
    "png, gray of 16 bits: the upper 8": (encoded(Image.fromarray(DEEP), "PNG"), np.repeat(GRAY[..., None], 3, 2)),
    "png, rgb of 16 bits": (cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 256 + 5)[1].tobytes(), RGB),
    "png, rgba: alpha is dropped": (encoded(np.dstack([RGB, GRAY]), "PNG"), RGB),
    "png, gray with alpha": (
        encoded(Image.merge("LA", [Image.fromarray(GRAY)] * 2), "PNG"),
        np.repeat(GRAY[..., None], 3, 2),
    ),
    "png, palette": (
        encoded(Image.fromarray(RGB).quantize(64), "PNG"),
        np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB")),
    ),
    "png, one bit": (
        encoded(Image.fromarray(GRAY).convert("1"), "PNG"),
        np.asarray(Image.fromarray(GRAY).convert("1").convert("RGB")),
    ),
    "bmp": (encoded(RGB, "BMP"), RGB),
    "gif": (
        encoded(Image.fromarray(RGB).quantize(64), "GIF"),
        np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB")),
    ),
    "ppm": (encoded(RGB, "PPM"), RGB),
    "tiff": (encoded(RGB, "TIFF"), RGB),
    "tiff, gray of 16 bits": (encoded(Image.fromarray(DEEP), "TIFF"), np.repeat(GRAY[..., None], 3, 2)),
    "webp, lossless": (encoded(RGB, "WEBP", lossless=True), RGB),
    "webp, with alpha": (encoded(np.dstack([RGB, GRAY | 1]), "WEBP", lossless=True, exact=True), RGB),
}
JPEGS = {
    "jpeg": encoded(RGB, "JPEG"),
    "jpeg, progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg, gray": encoded(Image.fromarray(GRAY), "JPEG"),
    "jpeg, uneven size": encoded(picture(37, 19), "JPEG"),
    "jpeg, with restart markers": cv2.imencode(".jpg", RGB, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes(),
    "jpeg, with an end marker in a comment": encoded(RGB, "JPEG", comment=b"\xff\xd9 not the end"),
}


@pytest.mark.parametrize("case", LOSSLESS)
def test_every_kind_of_pixel_becomes_rgb_uint8(case: str, tmp_path: Path) -> None:
    data, expected = LOSSLESS[case]
    path = tmp_path / "image"
    path.write_bytes(data)
    image = decode(path)
    assert image.dtype == np.uint8
    assert image.shape == (128, 64, 3)
    assert probe(path) == (128, 64)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("case", JPEGS)
def test_jpeg_equals_pillow(case: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(JPEGS[case])
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    image = decode(path)
    assert image.shape == expected.shape == (*probe(path), 3)
    assert np.abs(image - expected).max() <= 3  # two builds of libjpeg round differently


@pytest.mark.parametrize("case", JPEGS)
@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_a_truncated_jpeg_raises_an_error(case: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(JPEGS[case][: int(len(JPEGS[case]) * part)])
    for read in (decode, probe):
        with pytest.raises(UnreadableImage) as error:
            read(path)
        assert str(path) in str(error.value)
        if part > 0.01:
            assert "truncated" in error.value.reason


@pytest.mark.parametrize("case", LOSSLESS)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_other_truncated_files_raise_an_error(case: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(LOSSLESS[case][0][: int(len(LOSSLESS[case][0]) * part)])
    with pytest.raises(UnreadableImage):
        decode(path)


def test_a_thumbnail_in_a_truncated_jpeg_is_not_its_end(tmp_path: Path) -> None:
    thumbnail = encoded(picture(16, 8), "JPEG")
    whole = JPEGS["jpeg"]
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole[2:]
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    assert probe(path) == (128, 64)
    path.write_bytes(data[:-200])
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(path)


def test_bytes_after_the_end_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(JPEGS["jpeg"])
    expected = decode(path)
    path.write_bytes(JPEGS["jpeg"] + b"trailer" * 100)
    np.testing.assert_array_equal(decode(path), expected)


def test_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(RGB, "JPEG", exif=exif))
    assert decode(path).shape == (*probe(path), 3) == (128, 64, 3)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all", "not an image of a known format"),
    "one byte": (b"\xff", "not an image"),
    "png that promises 100,000 × 100,000": (png_header(100_000, 100_000), "100000×100000 pixels"),
    "png without pixels": (png_header(0, 5), "no pixels"),
    "png with nothing inside": (png_header(5, 5), "cannot be decoded"),
    "png header cut": (encoded(RGB, "PNG")[:14], "header is damaged"),
    "jpeg that promises 65,500 × 65,500": (
        JPEGS["jpeg"].replace(struct.pack(">HH", 128, 64), struct.pack(">HH", 65_500, 65_500)),
        "65500×65500 pixels",
    ),
    "jpeg whose header is noise": (JPEGS["jpeg"][:4] + b"\x00\x03" + b"noise" * 99, "damaged"),
    "bmp that promises 9,000 × 9,000": (
        encoded(RGB, "BMP").replace(struct.pack("<ii", 64, 128), struct.pack("<ii", 9_000, 9_000)),
        "9000×9000 pixels",
    ),
    "bmp that promises 30,000 × 30,000": (
        encoded(RGB, "BMP").replace(struct.pack("<ii", 64, 128), struct.pack("<ii", 30_000, 30_000)),
        "far more than 50,000,000 pixels",
    ),
    "tiff of floating-point pixels": (encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "floating"),
    "postscript, a format that runs programs": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_file_raises_an_error_with_the_reason(case: str, tmp_path: Path) -> None:
    data, reason = BROKEN[case]
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=reason) as error:
        decode(path)
    assert error.value.path == str(path)


def progressive(scans: int) -> bytes:
    """A JPEG of 4,000 × 4,000 pixels whose last scan is repeated."""
    data = encoded(np.zeros((4000, 4000, 3), np.uint8), "jpeg", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def plain_ppm(size: int) -> bytes:
    row = b"1 2 3 " * size + b"\n"
    return b"P3 %d %d 255\n" % (size, size) + row * size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(lambda: b"\xff\xd8" + b"\xff" * 2**24, "header", id="JPEG fill bytes"),
        pytest.param(lambda: b"\xff\xd8\xff" + b"\x00" * 2**24, "header", id="JPEG padding"),
        pytest.param(lambda: b"P6 #" + b"c" * 2**24 + b"\n8 8 255\n", "not an image", id="PPM comment"),
        pytest.param(lambda: b"P6 " + b" " * 2**24 + b"8 8 255\n", "not an image", id="PPM blanks"),
        pytest.param(lambda: png_header(8, 8)[:33] + bytes(2**24), "header", id="empty PNG chunks"),
        pytest.param(lambda: progressive(200), "too many scans", id="JPEG scans"),
        pytest.param(lambda: plain_ppm(1000), "decoded slowly", id="PPM as text"),
        pytest.param(lambda: b"P6 4000 4000 254\n" + bytes(48_000_000), "decoded slowly", id="PPM with maximum 254"),
    ],
)
def test_a_file_that_would_take_long_is_refused_within_a_second(
    data: Callable[[], bytes], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "slow.img"
    path.write_bytes(data())
    start = time.process_time()
    with pytest.raises(UnreadableImage, match=reason):
        decode(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("value", [0, 100_000])
def test_a_tiff_of_32_bits_raises_an_error(value: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(encoded(Image.fromarray(np.full((4, 4), value, np.int32)), "tiff"))
    with pytest.raises(UnreadableImage, match="has 32-bit pixels; save it with 8 or 16 bits"):
        decode(path)


def test_a_path_that_no_file_can_have_raises_an_error() -> None:
    for path in ("a\0b.jpg", "a" * 5000):
        with pytest.raises(UnreadableImage, match="cannot be read"):
            decode(path)


def test_missing_files_and_folders_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        decode(tmp_path)
    if hasattr(os, "mkfifo"):  # opening a pipe for reading would wait for ever
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UnreadableImage, match="not a regular file"):
            probe(tmp_path / "pipe")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "image.jpg").write_bytes(JPEGS["jpeg"])
    with pytest.raises(UnreadableImage, match="more than 1,000"):
        decode(tmp_path / "image.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["png, rgb", "bmp", "gif", "tiff", "webp, lossless", "jpeg"])
def test_random_bytes_raise_only_unreadable_image(kind: str, tmp_path: Path) -> None:
    """Random bytes changed at random places: an array or UnreadableImage, nothing else."""
    data = JPEGS[kind] if kind in JPEGS else LOSSLESS[kind][0]
    rng = np.random.default_rng(1)
    path = tmp_path / "image"
    for _ in range(60):
        noisy = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, min(len(noisy), rng.choice([60, len(noisy)])), rng.integers(1, 6))
        noisy[where] = rng.integers(0, 256, len(where))
        path.write_bytes(noisy.tobytes())
        try:
            image = decode(path)
        except UnreadableImage:
            continue
        assert image.dtype == np.uint8
        assert image.ndim == 3


SIZES: dict[str, tuple[tuple[int, int], Callable[..., NDArray[np.uint8]]]] = {
    "smaller: area average": ((64, 32), lambda x: cv2.resize(x, (32, 64), interpolation=cv2.INTER_AREA)),
    "larger: bilinear": ((256, 128), lambda x: cv2.resize(x, (128, 256), interpolation=cv2.INTER_LINEAR)),
    "one side larger: bilinear": ((64, 100), lambda x: cv2.resize(x, (100, 64), interpolation=cv2.INTER_LINEAR)),
    "narrower: area average": ((128, 32), lambda x: cv2.resize(x, (32, 128), interpolation=cv2.INTER_AREA)),
    "the same": ((128, 64), lambda x: x),
}


@pytest.mark.parametrize("case", SIZES)
def test_resizing_uses_area_average_or_bilinear(case: str) -> None:
    size, oracle = SIZES[case]
    expected = oracle(RGB)
    np.testing.assert_array_equal(resize(RGB, size), expected)
    out = np.zeros((3, *size, 3), np.uint8)
    resize(RGB, size, out=out[1])
    np.testing.assert_array_equal(out[1], expected)
    assert not out[[0, 2]].any()


def test_every_real_market_image_passes(market_root: Path) -> None:
    paths = sorted((market_root / "query").glob("*.jpg"))
    assert len(paths) == 3368
    assert {probe(path) for path in paths} == {(128, 64)}
