"""Decode one image file to RGB uint8. Headers are checked before decoding, and damaged files are errors."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from reid.core.errors import DataError, check_number
from reid.core.reading import failed_download

MAX_PIXELS = 50_000_000
"""Images with more pixels are refused by their header, before memory is allocated."""

MAX_BYTES = 256 * 2**20
"""Larger files are refused before they are read."""

HEAD_FRACTION = 0.22
"""Upper fraction of a crop that `pixelate_heads` pixelates. A standing person's head is the upper 13 to 17 %."""

_MOST_READS = 50_000
"""Reads of Pillow while it parses a header, which it does in Python, some of them byte by byte."""

_MOST_SCANS = 16
"""Scans of a JPEG with `MAX_PIXELS` pixels, in proportion: each one takes as long as a whole image."""

_DECODED_IN_PYTHON = ("bmp_rle", "ppm", "ppm_plain")
_MAX_PYTHON_BYTES = 2 * 2**20
"""Pillow decodes these slowly: run-length BMP, PPM with numbers as text or with another maximum than 255."""

_COMMON: dict[bytes, tuple[type[ImageFile.ImageFile], bytes]] = {
    b"\xff\xd8\xff": (JpegImageFile, b"\xff\xd9"),
    b"\x89PNG\r\n\x1a\n": (PngImageFile, b"IEND"),
}
"""By the first bytes of the formats that OpenCV decodes: the parser of their header, and the mark of their end."""

_OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")


class _BoundedReads(io.BytesIO):
    left: float = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("its header is too long")
        return super().read(size)


class UnreadableImage(DataError):
    """An image that cannot be decoded: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def decode(path: str | Path, size: tuple[int, int] | None = None, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode one file to RGB `[H, W, 3]` uint8, or `[h, w, 3]` if `size` = (h, w) is given (see `resize`).

    OpenCV decodes JPEG and PNG; Pillow decodes BMP, GIF (first frame), PPM, TIFF and WebP. EXIF orientation is ignored,
    as in the published data loaders, unless `upright`: photos of telephones are then turned as viewers show them.
    Gray is repeated over three channels, alpha is dropped, and 16-bit values keep
    their upper 8 bits.

    A JPEG or PNG whose end is missing is an error, because decoders silently fill the missing part with gray. Damage
    inside a JPEG that keeps its end cannot be distinguished from image content.

    Raises:
        UnreadableImage: missing, empty, not a regular file, more than `MAX_BYTES` or (by its header) `MAX_PIXELS`,
            truncated, of another format, with 32-bit pixels, refused by the decoder, or slow to decode without need
            (a header of megabytes, hundreds of scans).
    """
    image = _decode(path, *_open(path), upright=upright)
    return image if size is None else resize(image, size)


def decode_bytes(data: bytes, name: str, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode the content of a file in memory, with the checks of `decode`.

    Args:
        data: content.
        name: of the image, for error messages.
        upright: apply the EXIF orientation.

    Raises:
        UnreadableImage: as `decode`.
    """
    if len(data) > MAX_BYTES or not data:
        raise UnreadableImage(name, f"has {len(data):,} bytes; 1 to {MAX_BYTES:,} are possible")
    return _decode(name, data, _read_header(name, data), upright=upright)


def _decode(path: str | Path, data: bytes, header: Image.Image, *, upright: bool) -> NDArray[np.uint8]:
    try:
        if header.format in ("JPEG", "PNG"):
            flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if decoded is None:
                raise UnreadableImage(path, "cannot be decoded: its content is damaged")
            image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded).view(np.uint8)
        elif header.mode == "I" and header.format != "PPM":
            raise UnreadableImage(path, "has 32-bit pixels; save it with 8 or 16 bits per channel")
        elif header.mode.startswith("I"):
            gray = (np.asarray(header).astype(np.uint16) >> 8).astype(np.uint8)
            image = np.repeat(gray[..., None], 3, axis=2)
        elif header.mode == "F":
            raise UnreadableImage(path, "has floating-point pixels; save it with 8 bits per channel")
        else:
            image = np.array((ImageOps.exif_transpose(header) if upright else header).convert("RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # the decoders raise many types on damaged files
        raise UnreadableImage(path, f"cannot be decoded: {error}") from error
    return image


def probe(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the header, after all checks that need no decoding.

    Raises:
        UnreadableImage: as `decode`, except for what only decoding finds.
    """
    _, header = _open(path)
    return header.height, header.width


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


def cut_out(image: NDArray[np.uint8], pixels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the part of an image `[H, W, 3]` between left, top, right and bottom (`pixels_of_boxes`).

    Parts outside the image are left out, so the result may be empty.
    """
    left, top, right, bottom = pixels.clip(0).tolist()
    return image[top:bottom, left:right]


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return an RGB image `[H, W, 3]` as a JPEG file."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()


def _open(path: str | Path) -> tuple[bytes, Image.Image]:
    """Return the content of a file, and its image with only the header read. Refuse large and truncated files."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableImage(path, "is not a regular file")
        if info.st_size == 0:
            raise UnreadableImage(path, "is empty (0 bytes)")
        if info.st_size > MAX_BYTES:
            problem = f"has {info.st_size:,} bytes; more than {MAX_BYTES:,} is too large for a crop"
            raise UnreadableImage(path, problem)
        data = Path(path).read_bytes()
    except UnreadableImage:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableImage(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return data, _read_header(path, data)


def _read_header(path: str | Path, data: bytes) -> Image.Image:
    if problem := failed_download(data):
        raise UnreadableImage(path, f"is not an image: it {problem.rstrip('.')}")
    parser, end = next((_COMMON[start] for start in _COMMON if data.startswith(start)), (None, b""))
    stream = _BoundedReads(data)
    try:
        image = parser(stream) if parser else Image.open(stream, formats=_OTHER_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(path, f"has far more than {MAX_PIXELS:,} pixels, too many for a crop") from error
    except Exception as error:  # Pillow raises many types on damaged files
        problem = "is not an image of a known format (JPEG, PNG, BMP, GIF, PPM, TIFF, WebP)"
        if parser:
            problem = "is truncated within its header, its header is damaged, or it has no pixels"
        raise UnreadableImage(path, problem) from error
    width, height = image.size
    if height * width > MAX_PIXELS:
        problem = f"has {width}×{height} pixels; more than {MAX_PIXELS:,} is too large for a crop"
        raise UnreadableImage(path, problem)
    if end and not (_png_is_whole(data) if end == b"IEND" else data.rfind(end, stream.tell()) >= 0):
        raise UnreadableImage(path, "is truncated: the end of the image is missing")
    if data.count(b"\xff\xda", stream.tell()) * height * width > _MOST_SCANS * MAX_PIXELS:
        raise UnreadableImage(path, "has far too many scans for its size")
    if image.tile and image.tile[0][0] in _DECODED_IN_PYTHON and len(data) > _MAX_PYTHON_BYTES:
        problem = f"has {len(data):,} bytes in a form that is decoded slowly; save it as PNG"
        raise UnreadableImage(path, problem)
    stream.left = float("inf")
    return image


def _png_is_whole(data: bytes) -> bool:
    """Return whether the chunks follow each other up to the end. OpenCV allocates what a chunk claims to contain."""
    place = 8
    for _ in range(_MOST_READS):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if place > len(data) or data[place - 8 : place - 4] == b"IEND":
            return place <= len(data)
    return False


def pixelate_heads(crops: Sequence[NDArray[np.uint8]], fraction: float = HEAD_FRACTION) -> list[NDArray[np.uint8]]:
    """Return copies of the crops with their upper part replaced by flat blocks, which cannot be undone.

    The upper ⌈fraction · H⌉ rows, rounded up to whole blocks, are averaged over blocks of b × b pixels with
    b = max(4, ⌈H / 24⌉, ⌈W / 12⌉). Blocks at the right border are narrower. In a crop of 96 × 48 pixels, the face of a
    standing person is two or three blocks.

    Only the usual position of the head is pixelated: not the head of a person who bends down, nor other heads further
    down in the crop. People can also be recognised by clothes and gait.

    Args:
        crops: uint8 `[H, W, 3]` each, of any size.
        fraction: upper fraction of the height to pixelate, 0..1.

    Example:
        >>> pixelate_heads([np.eye(8, dtype=np.uint8)[..., None].repeat(3, axis=2) * 240])[0][:5, :5, 0].tolist()
        [[60, 60, 60, 60, 0], [60, 60, 60, 60, 0], [60, 60, 60, 60, 0], [60, 60, 60, 60, 0], [0, 0, 0, 0, 240]]
    """
    check_number("The fraction of a crop to pixelate", fraction, 0, 1)
    done = []
    for crop in crops:
        height, width = crop.shape[:2]
        block = max(4, -(-height // 24), -(-width // 12))
        rows = min(height, -(-math.ceil(fraction * height) // block) * block)
        coarse = crop.copy()
        for top in range(0, rows, block):
            for left in range(0, width, block):
                cell = coarse[top : min(top + block, rows), left : left + block]
                cell[...] = np.rint(cell.mean(axis=(0, 1))).astype(np.uint8)
        done.append(coarse)
    return done
