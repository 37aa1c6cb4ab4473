"""Activation maps of crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import DataError
from reid.data.images import resize
from reid.report.ranklists import Image, read_image
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
    """Draw each crop next to its activation map, from dark (0) to bright (1), over the crop in grey.

    Crops are stretched to one shape, as in the model's input.

    Args:
        images: `N` image files, or uint8 arrays `[H, W, 3]` RGB.
        maps: `[N, h, w]` in 0..1, as from `ReIDModel.activation_map`; scaled to the crop.
        path: output file (.png, .pdf, .svg or .webp).
        names: `N` labels to write below the crops.
        dark: use the dark theme.

    Returns:
        The path.

    Raises:
        ReidError: there are no crops, maps or names differ in number, an image is unreadable, or the file cannot be
            written.
    """
    heat = np.asarray(maps, dtype=np.float64)
    n = len(images)
    if n == 0:
        raise DataError("There are no crops to draw.")
    if heat.ndim != 3 or len(heat) != n or (names is not None and len(names) != n):
        labels = "" if names is None else f" and {len(names)} names"
        raise DataError(f"{n} images, activation maps {heat.shape}{labels} differ in number. Pass maps [N, h, w].")
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
            crop = resize(read_image(image), (192, 96))
            grey = np.repeat(crop.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
            for pixels, left in ((crop, x), (grey, x + wide + 0.04)):
                place = (left, left + wide, y + high, y)
                axes.imshow(pixels, extent=place, aspect="auto", interpolation="none")
            colours: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.6}
            axes.imshow(heat[i], extent=place, aspect="auto", interpolation="bilinear", **colours)
            if names is not None:
                axes.text(x + wide + 0.02, y + high + 0.05, names[i], ha="center", va="top", fontsize=8)
    return Path(path)
