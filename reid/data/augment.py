"""Augmentation of uint8 batches on the CPU: flip, pad and crop, colour jitter, random erasing."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.config import AugmentConfig
from reid.core.errors import ConfigError, DataError
from reid.data.images import resize

IMAGENET_MEAN = (124, 116, 104)
"""ImageNet's mean colour in uint8 (0.485, 0.456, 0.406 × 255); it becomes 0 after normalisation."""

_GRAY = np.array([0.299, 0.587, 0.114])
_ATTEMPTS = 100


class Augment:
    """Random changes of each crop of a batch, in this order.

    1. Resize to `size` if necessary (see `reid.data.images.resize`).
    2. Mirror with probability `flip`.
    3. Pad with `pad` black pixels on each side, then take a random window of `size`: the crop is shifted by −pad … pad
       pixels in each direction, uniformly.
    4. Change the colour, if any of the three settings is above 0: brightness b, contrast c and saturation s are drawn
       from U(1 − x, 1 + x) for each crop; x ← b·x, then c·x + (1 − c)·mean gray of the crop, then
       s·x + (1 − s)·gray of the pixel, rounded and clipped to 0 … 255 once, at the end. Padding takes part.
    5. With probability `erase`, fill a rectangle with `fill`. Its area is U(`erase_area`) of the image, its height over
       width U(r, 1/r) with r = `erase_ratio`; both are drawn again (100 times at most) until the rectangle is smaller
       than the image in both directions (Zhong et al. 2017, "Random Erasing Data Augmentation", algorithm 1, with the
       ratio drawn as in "Bag of Tricks", Luo et al. 2019).

    The default settings are those of "Bag of Tricks". With every setting at 0 the result is a copy.

    Args:
        size: (height, width) of the result.
        settings: see `AugmentConfig`.
        fill: mean colour as RGB uint8, so that an erased area is about 0 after normalisation.

    Raises:
        ConfigError: a setting that does not fit the size, or an area or colour out of range.

    Example:
        >>> augment = Augment((64, 32), AugmentConfig(flip=0.5, pad=4))
        >>> augment(np.zeros((8, 64, 32, 3), np.uint8), np.random.default_rng(0)).shape
        (8, 64, 32, 3)
    """

    def __init__(
        self,
        size: tuple[int, int],
        settings: AugmentConfig | None = None,
        *,
        fill: tuple[int, int, int] = IMAGENET_MEAN,
    ) -> None:
        settings = settings or AugmentConfig()
        low, high = settings.erase_area
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"The image size is {size}. Use a height and a width of at least 1 pixel.")
        if settings.pad >= min(size):
            raise ConfigError(f"augment.pad is {settings.pad}. Use less than the shorter side of {tuple(size)}.")
        if not 0 < low <= high:
            raise ConfigError(f"augment.erase_area is {settings.erase_area}. Use two fractions, 0 < low ≤ high ≤ 1.")
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise ConfigError(f"The fill colour is {fill}. Use three numbers, 0 to 255.")
        self.size = (int(size[0]), int(size[1]))
        self.settings = settings
        self.fill = (int(fill[0]), int(fill[1]), int(fill[2]))

    def __call__(
        self, images: NDArray[np.uint8], rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> NDArray[np.uint8]:
        """Augment `[B, H, W, 3]` uint8 into a new `[B, h, w, 3]`; `rng` makes all random choices.

        If `images` are part number `part` (from 0) of `parts` equal parts of a batch, each image is changed as it would
        be in the whole batch.

        Raises:
            DataError: images of another type or shape.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(f"Images are {images.dtype} {images.shape}; they must be uint8 [B, H, W, 3].")
        n, pad = len(images), self.settings.pad
        height, width = self.size
        rows = slice(part * n, (part + 1) * n)
        flips = (rng.random(n * parts) < self.settings.flip)[rows]
        shifts = rng.integers(-pad, pad + 1, (n * parts, 2))[rows]
        colours = self._draw_colours(n * parts, rng)
        boxes = [(i - rows.start, *box) for i, *box in self._draw_boxes(n * parts, rng) if rows.start <= i < rows.stop]
        out = np.zeros((n, height, width, 3), np.uint8)
        same_size = images.shape[1:3] == self.size
        for image, target, flip, (dy, dx) in zip(images, out, flips.tolist(), shifts.tolist(), strict=True):
            source = image if same_size else resize(image, self.size)
            y0, y1 = max(0, dy), height + min(0, dy)
            x0, x1 = max(0, dx), width + min(0, dx)
            window = target[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
            if flip:
                cv2.flip(source[y0:y1, width - x1 : width - x0], 1, dst=window)
            else:
                window[...] = source[y0:y1, x0:x1]
        if colours is not None:
            for target, factors in zip(out, colours[rows], strict=True):
                _recolour(target, factors)
        for i, top, left, bottom, right in boxes:
            cv2.rectangle(out[i], (left, top), (right - 1, bottom - 1), self.fill, thickness=cv2.FILLED)
        return out

    def _draw_colours(self, n: int, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Draw brightness, contrast and saturation factors `[n, 3]`; None if all are off."""
        spread = np.array([self.settings.brightness, self.settings.contrast, self.settings.saturation])
        if not spread.any():
            return None
        return rng.uniform(1 - spread, 1 + spread, (n, 3))

    def _draw_boxes(self, n: int, rng: np.random.Generator) -> list[list[int]]:
        """Draw rectangles to erase, each [image, top, left, bottom, right], the last two exclusive."""
        height, width = self.size
        wanted = np.flatnonzero(rng.random(n) < self.settings.erase)
        boxes: list[list[int]] = []
        for _ in range(_ATTEMPTS):
            if not len(wanted):
                break
            area = rng.uniform(*self.settings.erase_area, len(wanted)) * height * width
            ratio = rng.uniform(self.settings.erase_ratio, 1 / self.settings.erase_ratio, len(wanted))
            tall = np.rint(np.sqrt(area * ratio)).astype(np.int64)
            wide = np.rint(np.sqrt(area / ratio)).astype(np.int64)
            fits = (tall < height) & (wide < width)
            tall, wide = tall[fits], wide[fits]
            top = rng.integers(0, height - tall + 1)
            left = rng.integers(0, width - wide + 1)
            boxes += np.stack([wanted[fits], top, left, top + tall, left + wide], axis=1).tolist()
            wanted = wanted[~fits]
        return [box for box in boxes if box[3] > box[1] and box[4] > box[2]]


def _recolour(image: NDArray[np.uint8], factors: NDArray[np.float64]) -> None:
    """Apply brightness, contrast and saturation as one colour matrix `[3, 4]`, in place."""
    brightness, contrast, saturation = factors
    mean_gray = float(_GRAY @ cv2.mean(image)[:3]) * brightness
    blend = saturation * np.eye(3) + (1 - saturation) * _GRAY
    matrix = np.empty((3, 4))
    matrix[:, :3] = blend * (contrast * brightness)
    matrix[:, 3] = (1 - contrast) * mean_gray
    cv2.transform(image, matrix, dst=image)
