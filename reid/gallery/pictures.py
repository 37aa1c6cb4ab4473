"""Small pictures of crops, as a gallery's setting allows them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from reid.core.console import warn
from reid.core.errors import DataError
from reid.data.images import decode, encode_jpeg, pixelate_heads, resize

PictureOf = Callable[[int], bytes | None]

HEIGHT = 128
_MAX_WIDTH = 128
_QUALITY = 85


def small_picture(image: np.ndarray, *, pixelate: bool) -> bytes:
    """Return an RGB image as JPEG, at most 128 × 128 pixels; with `pixelate`, its head is pixelated first."""
    if pixelate:
        (image,) = pixelate_heads([image])
    height, width = image.shape[:2]
    scale = min(HEIGHT / height, _MAX_WIDTH / width, 1.0)
    small = resize(image, (max(round(scale * height), 1), max(round(scale * width), 1)))
    return encode_jpeg(small, _QUALITY)


def shrink_jpeg(jpeg: bytes, *, pixelate: bool) -> bytes | None:
    """Return a JPEG as `small_picture` does; None if it cannot be decoded."""
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    return None if decoded is None else small_picture(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), pixelate=pixelate)


def allowed_pictures(setting: str, jpeg_of: PictureOf | None, path_of: Callable[[int], str] | None) -> PictureOf | None:
    """Return the function that gives the picture to store of a crop; None if none is stored.

    Args:
        setting: keep, pixelate or none.
        jpeg_of: the JPEG of a crop, by its row, if there are any.
        path_of: the image file of a crop, if known.
    """
    if setting == "none" or (jpeg_of is None and path_of is None):
        return None
    failed: list[str] = []

    def picture_of(row: int) -> bytes | None:
        jpeg = None if jpeg_of is None else jpeg_of(row)
        if jpeg:
            return shrink_jpeg(jpeg, pixelate=setting == "pixelate")
        if path_of is None:
            return None
        try:
            return small_picture(decode(path_of(row)), pixelate=setting == "pixelate")
        except DataError as error:
            if not failed:
                warn(f"Some crops are stored without a picture, the first because: {error}")
            failed.append(str(error))
            return None

    return picture_of
