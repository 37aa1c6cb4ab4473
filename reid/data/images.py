"""Decode one image file to RGB uint8. Headers are checked before decoding, and damaged files are errors."""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reid.core.errors import DataError

MAX_PIXELS = 50_000_000
"""Images with more pixels are refused by their header, before memory is allocated."""

MAX_BYTES = 256 * 2**20
"""Larger files are refused before they are read."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}
_OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")

Buffer = bytes | mmap.mmap
Result = TypeVar("Result")


class UnreadableImage(DataError):
    """An image that cannot be decoded: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class _Damaged(Exception):
    """The reason why bytes are no image; `_with_bytes` adds the path."""


def decode(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode one file to RGB `[H, W, 3]` uint8, or `[h, w, 3]` if `size` = (h, w) is given (see `resize`).

    OpenCV decodes JPEG and PNG; Pillow decodes BMP, GIF (first frame), PPM, TIFF and WebP. EXIF orientation is ignored,
    as in the published data loaders. Gray is repeated over three channels, alpha is dropped, and 16-bit values keep
    their upper 8 bits.

    A JPEG or PNG whose end is missing is an error, because decoders silently fill the missing part with gray. Damage
    inside a JPEG that keeps its end cannot be distinguished from image content.

    Raises:
        UnreadableImage: missing, empty, not a regular file, more than `MAX_BYTES` or (by its header) `MAX_PIXELS`,
            truncated, of another format, or refused by the decoder.
    """

    def read(data: Buffer) -> NDArray[np.uint8]:
        _inspect(data)
        image = _decode_cv2(data) if _is_common(data) else _decode_pillow(data)
        return image if size is None else resize(image, size)

    return _with_bytes(path, read, map_file=False)


def probe(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the header, after all checks that need no decoding.

    Raises:
        UnreadableImage: as `decode`, except for what only decoding finds.
    """
    return _with_bytes(path, _inspect, map_file=True)


def resize(image: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Resize `[H, W, 3]` to (h, w): area average if neither side grows, else bilinear.

    An image of that size is returned unchanged (or copied to `out`).
    """
    height, width = size
    if image.shape[:2] == (height, width):
        if out is None:
            return image
        out[...] = image
        return out
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=out, interpolation=interpolation).view(np.uint8)


def _with_bytes(path: str | Path, use: Callable[[Buffer], Result], *, map_file: bool) -> Result:
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise _Damaged("is not a regular file")
        if info.st_size == 0:
            raise _Damaged("is empty (0 bytes)")
        if info.st_size > MAX_BYTES:
            raise _Damaged(f"has {info.st_size:,} bytes; more than {MAX_BYTES:,} is too large for a crop")
        with open(path, "rb", buffering=0) as file:
            if not map_file:
                return use(file.read())
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return use(mapped)
    except OSError as error:
        raise UnreadableImage(path, f"cannot be read: {error.strerror or error}") from error
    except _Damaged as error:
        raise UnreadableImage(path, str(error)) from None


def _is_common(data: Buffer) -> bool:
    return data[:3] == _JPEG or data[:8] == _PNG


def _inspect(data: Buffer) -> tuple[int, int]:
    """Return (height, width) from the header; refuse too large images and files without their end."""
    if data[:3] == _JPEG:
        height, width, after = _jpeg_frame(data)
        ends = data.rfind(b"\xff\xd9", after) >= 0
    elif data[:8] == _PNG:
        if len(data) < 24 or data[12:16] != b"IHDR":
            raise _Damaged("is a PNG whose header is damaged")
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        ends = data.rfind(b"IEND", 24) >= 0
    else:
        height, width = _pillow_size(data)
        ends = True
    if height == 0 or width == 0:
        raise _Damaged(f"has no pixels ({width}×{height})")
    if height * width > MAX_PIXELS:
        raise _Damaged(f"has {width}×{height} pixels; more than {MAX_PIXELS:,} is too large for a crop")
    if not ends:
        raise _Damaged("is truncated: the end of the image is missing")
    return height, width


def _jpeg_frame(data: Buffer) -> tuple[int, int, int]:
    """Return height and width of the frame header, and the position after it."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            raise _Damaged("is a JPEG whose header is damaged")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in _JPEG_FRAMES:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"), at + 9
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise _Damaged("is truncated: it ends within the JPEG header")


def _decode_cv2(data: Buffer) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _Damaged(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise _Damaged("cannot be decoded: its content is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image).view(np.uint8)


def _pillow_size(data: Buffer) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=_OTHER_FORMATS) as image:
            return image.height, image.width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _Damaged(f"has far more than {MAX_PIXELS:,} pixels, too many for a crop") from error
    except Exception as error:  # Pillow raises many types on damaged files
        raise _Damaged("is not an image of a known format (JPEG, PNG, BMP, GIF, PPM, TIFF, WebP)") from error


def _decode_pillow(data: Buffer) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_OTHER_FORMATS) as image:
            if image.mode.startswith("I"):
                gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2)
            if image.mode == "F":
                raise _Damaged("has floating-point pixels; save it with 8 bits per channel")
            return np.array(image.convert("RGB"))
    except _Damaged:
        raise
    except Exception as error:
        raise _Damaged(f"cannot be decoded: {error}") from error
