"""Images of which one is an edited copy of the other: encoded again, resized or brightened. Takes linear time."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 16, 9

LIMIT = 4.0
"""Largest mean difference of two copies, in gray levels. In Market-1501, the most similar images of train and test
differ by 7.4. Of copies at JPEG quality 30 or more, at half to 1.7 times the size or brightened by 15 levels, 99 % are
found."""

_LEAST_CONTRAST = 4.0
"""Standard deviation, in gray levels, below which images are too plain to be compared."""
_NEIGHBOURS = 4


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an RGB image `[H, W, 3]` as gray `[16, 9]`."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).view(np.uint8)


def closest_thumbnails(
    thumbnails: NDArray[np.uint8], others: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the most similar of `others [M, 16, 9]` for each of `thumbnails [N, 16, 9]`.

    Both are sorted by a hash whose 64 bits are the signs of horizontal differences (dHash), four times, each time from
    another byte on. Only neighbours in these orders are compared. So similar pairs with equal bits in a quarter of the
    hash are found, and other pairs can be missed.

    Returns:
        `[N]` row of the most similar one, and `[N]` mean absolute difference of the pixels without the mean of each
        image; infinite if nothing was compared.
    """
    row = np.zeros(len(thumbnails), np.int64)
    difference = np.full(len(thumbnails), np.inf, np.float32)
    if len(thumbnails) and len(others):
        pixels, other_pixels = _centred(thumbnails), _centred(others)
        for start in range(0, 8, 2):
            keys, other_keys = _hashes(thumbnails, start), _hashes(others, start)
            order = np.argsort(other_keys, kind="stable")
            position = np.searchsorted(other_keys[order], keys)
            for offset in range(-_NEIGHBOURS, _NEIGHBOURS):
                candidate = order[(position + offset).clip(0, len(others) - 1)]
                distance = np.abs(pixels - other_pixels[candidate]).mean(axis=1)
                closer = distance < difference
                row[closer], difference[closer] = candidate[closer], distance[closer]
        difference[pixels.std(axis=1) < _LEAST_CONTRAST] = np.inf
    return row, difference


def _centred(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    return pixels - pixels.mean(axis=1, keepdims=True)


def _hashes(thumbnails: NDArray[np.uint8], start: int) -> NDArray[np.uint64]:
    """Return `[N]` hashes whose bytes are rotated by `start`."""
    rows = thumbnails.reshape(len(thumbnails), HEIGHT // 2, 2, WIDTH).sum(axis=2, dtype=np.int64)
    bits = (rows[:, :, 1:] > rows[:, :, :-1]).reshape(len(rows), -1)
    return np.roll(np.packbits(bits, axis=1), -start, axis=1).copy().view(">u8").ravel().astype(np.uint64)
