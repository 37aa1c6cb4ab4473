"""Where on a crop a model is active."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError
from reid.data.images import resize
from reid.report.ranklists import Image, pixels_of
from reid.report.style import picture

_COLUMNS = 6


def plot_activations(
    images: Sequence[Image] | NDArray[np.object_],
    maps: ArrayLike,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    dark: bool = False,
) -> Path:
    """Draw each crop, and beside it the crop in grey under its activation map, from dark (0) to bright (1).

    Crops are stretched to one shape, as the model sees them.

    Args:
        images: `N` image files, or uint8 arrays `[H, W, 3]` RGB.
        maps: `[N, h, w]` in 0..1, as from `ReIDModel.activation_map`; stretched over the crop with smooth edges.
        path: where to; .png, .pdf, .svg or .webp.
        names: `N` words to write beneath.
        dark: for a dark screen.

    Returns:
        The path written.

    Raises:
        ReidError: nothing to draw, maps or names that do not fit the images, an unreadable image, or the file cannot
            be written.
    """
    heat = np.asarray(maps, dtype=np.float64)
    n = len(images)
    if n == 0:
        raise ReidError("No crop to draw the activations of.")
    if heat.ndim != 3 or len(heat) != n or (names is not None and len(names) != n):
        words = "" if names is None else f" and {len(names)} names"
        raise ReidError(f"{n} images and activation maps of shape {heat.shape}{words} do not fit.")
    columns, rows = min(n, _COLUMNS), -(-n // _COLUMNS)
    wide, high, step, line = 0.86, 1.72, 1.95, 2.0
    width, height = columns * step + 0.1, rows * line + 0.1
    with picture(path, (width, height), dark=dark, constrained=False, dpi=110) as (figure, _):
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for i, image in enumerate(images):
            row, column = divmod(i, _COLUMNS)
            x, y = 0.12 + column * step, 0.08 + row * line
            crop = resize(pixels_of(image), (192, 96))
            grey = np.repeat(crop.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
            for picture_of, left in ((crop, x), (grey, x + wide + 0.04)):
                place = (left, left + wide, y + high, y)
                axes.imshow(picture_of, extent=place, aspect="auto", interpolation="none")
            axes.imshow(
                heat[i],
                extent=place,
                aspect="auto",
                interpolation="bilinear",
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.6,
            )
            if names is not None:
                axes.text(x + wide + 0.02, y + high + 0.05, names[i], ha="center", va="top", fontsize=8)
    return Path(path)
