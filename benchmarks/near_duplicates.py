"""Fraction of edited copies that the data check finds: `python -m benchmarks.near_duplicates market1501:ROOT`."""

from __future__ import annotations

from collections.abc import Callable

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Benchmark
from reid.data.images import decode
from reid.data.layouts import load_benchmark
from reid.data.near_duplicates import LIMIT, closest_thumbnails, thumbnail

Image = NDArray[np.uint8]
COPIES = 1500


def encoded(quality: int) -> Callable[[Image], Image]:
    def edit(image: Image) -> Image:
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR).view(np.uint8)

    return edit


def resized(scale: float) -> Callable[[Image], Image]:
    return lambda image: cv2.resize(image, None, fx=scale, fy=scale).view(np.uint8)


def brightened(image: Image) -> Image:
    return (image.astype(np.int64) + 15).clip(0, 255).astype(np.uint8)


EDITS: dict[str, Callable[[Image], Image]] = {
    **{f"JPEG quality {quality}": encoded(quality) for quality in (90, 60, 30)},
    **{f"{scale} times the size": resized(scale) for scale in (0.5, 1.7)},
    "15 levels brighter": brightened,
}


@click.command(cls=Benchmark)
@click.argument("data", metavar="LAYOUT:ROOT")
def main(data: str) -> None:
    """Measure the fraction of edited copies of train crops that the data check finds."""
    train = load_benchmark(data).train
    images = [decode(path) for path in train.paths]
    thumbnails = np.stack(list(map(thumbnail, images)))
    chosen = np.random.default_rng(0).choice(len(images), min(COPIES, len(images)), replace=False)
    for name, edit in EDITS.items():
        copies = np.stack([thumbnail(edit(images[row])) for row in chosen])
        row, difference = closest_thumbnails(copies, thumbnails)
        print(f"{name}: {((row == chosen) & (difference <= LIMIT)).mean():.1%} of {len(chosen)} copies found")


if __name__ == "__main__":
    main()
