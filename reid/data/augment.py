"""Augmentation of uint8 batches on the CPU: flip, pad and crop, colour jitter, random erasing."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.data.images import resize

IMAGENET_MEAN = (124, 116, 104)
"""ImageNet's mean colour in uint8 (0.485, 0.456, 0.406 × 255): 0 after normalisation."""

_GRAY = np.array([0.299, 0.587, 0.114])
_ATTEMPTS = 100


class Augment:
    """Draw a new look for each crop of a batch, in this order.

    1. Resized to `size` when it is of another (see `reid.data.images.resize`).
    2. Mirrored with probability `flip`.
    3. Padded with `pad` black pixels on each side, then a random window of `size` is taken: a shift of −pad … pad
       pixels a side, uniformly.
    4. Colour, where any of the three is above 0: brightness b, contrast c and saturation s drawn from
       U(max(0, 1 − x), 1 + x) for each crop; x ← b·x, then c·x + (1 − c)·mean gray of the crop, then s·x + (1 − s)·gray
       of the pixel, rounded and clipped to 0 … 255 once, at the end. Pixels that the padding made take part.
    5. With probability `erase` a rectangle is filled with `fill`: its area is U(`erase_area`) of the image, its height
       over width U(r, 1/r) with r = `erase_ratio`; drawn again (100 times at most) while it does not fit strictly
       inside either side (Zhong et al. 2017, "Random Erasing Data Augmentation", algorithm 1, with the ratio drawn as
       in "Bag of Tricks", Luo et al. 2019).

    Defaults are those of "Bag of Tricks". With every setting at 0 the result is a copy.

    Args:
        size: (height, width) of the result.
        fill: mean colour as RGB uint8, so that an erased part is about 0 after normalisation.

    Raises:
        ReidError: a setting out of its range.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        flip: float = 0.5,
        pad: int = 10,
        erase: float = 0.5,
        erase_area: tuple[float, float] = (0.02, 0.4),
        erase_ratio: float = 0.3,
        fill: tuple[int, int, int] = IMAGENET_MEAN,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
    ) -> None:
        def check(name: str, value: object, right: bool, words: str) -> None:
            if not right:
                raise ReidError(f"augment.{name} is {value}; it must be {words}.")

        check("size", size, len(size) == 2 and min(size) >= 1, "a height and a width of at least 1 pixel")
        for name, value in (("flip", flip), ("erase", erase)):
            check(name, value, 0 <= value <= 1, "a probability, 0 to 1")
        check("pad", pad, 0 <= pad < min(size), f"0 or more pixels, and below the smaller side of {tuple(size)}")
        low, high = erase_area
        check("erase_area", erase_area, 0 < low <= high <= 1, "two parts of the image's area, 0 < low ≤ high ≤ 1")
        check("erase_ratio", erase_ratio, 0 < erase_ratio <= 1, "above 0 and at most 1")
        check("fill", fill, len(fill) == 3 and all(0 <= part <= 255 for part in fill), "three numbers, 0 to 255")
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            check(name, value, 0 <= value < float("inf"), "0 or more")
        self.size = (int(size[0]), int(size[1]))
        self.flip, self.pad, self.erase = flip, int(pad), erase
        self.erase_area, self.erase_ratio = (low, high), erase_ratio
        self.fill = (int(fill[0]), int(fill[1]), int(fill[2]))
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def __call__(
        self, images: NDArray[np.uint8], rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> NDArray[np.uint8]:
        """Augment `[B, H, W, 3]` uint8 into a new `[B, h, w, 3]`; the input is untouched, `rng` makes every draw.

        Where `images` are the `part`-th (from 0) of `parts` equal parts of a batch, they get that batch's draws.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ReidError(f"Images are {images.dtype} {images.shape}; they must be uint8 [B, H, W, 3].")
        n = len(images)
        height, width = self.size
        own = slice(part * n, (part + 1) * n)
        flips = (rng.random(n * parts) < self.flip)[own]
        shifts = rng.integers(-self.pad, self.pad + 1, (n * parts, 2))[own]
        colours = self._draw_colours(n * parts, rng)
        boxes = [(i - own.start, *box) for i, *box in self._draw_boxes(n * parts, rng) if own.start <= i < own.stop]
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
            for target, factors in zip(out, colours[own], strict=True):
                _recolour(target, factors)
        for i, top, left, bottom, right in boxes:
            cv2.rectangle(out[i], (left, top), (right - 1, bottom - 1), self.fill, thickness=cv2.FILLED)
        return out

    def _draw_colours(self, n: int, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Brightness, contrast and saturation factors `[n, 3]`; None when all are off."""
        spread = np.array([self.brightness, self.contrast, self.saturation])
        if not spread.any():
            return None
        return rng.uniform(np.maximum(0, 1 - spread), 1 + spread, (n, 3))

    def _draw_boxes(self, n: int, rng: np.random.Generator) -> list[list[int]]:
        """Rectangles to erase, each [image, top, left, bottom, right], the last two exclusive."""
        height, width = self.size
        wanted = np.flatnonzero(rng.random(n) < self.erase)
        boxes: list[list[int]] = []
        for _ in range(_ATTEMPTS):
            if not len(wanted):
                break
            area = rng.uniform(*self.erase_area, len(wanted)) * height * width
            ratio = rng.uniform(self.erase_ratio, 1 / self.erase_ratio, len(wanted))
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
    """Brightness, contrast, saturation in one colour matrix `[3, 4]`, in place."""
    brightness, contrast, saturation = factors
    mean_gray = float(_GRAY @ cv2.mean(image)[:3]) * brightness
    blend = saturation * np.eye(3) + (1 - saturation) * _GRAY
    matrix = np.empty((3, 4))
    matrix[:, :3] = blend * (contrast * brightness)
    matrix[:, 3] = (1 - contrast) * mean_gray
    cv2.transform(image, matrix, dst=image)
