"""What every detector is: a function from frames to boxes, with a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Floats

MOST_BOXES = 1000
"""Most boxes of a frame that are kept."""


class Detector(Protocol):
    """Function from RGB uint8 images `[H, W, 3]` to people `[n, 5]`: x, y, width, height in pixels, and confidence.

    Attributes:
        name: identifies the weights and the preprocessing. Detections of equal names can be reused.
        batch_size: number of images to pass in one call, at most.
    """

    name: str
    batch_size: int

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Floats]:
        """Return the boxes of each image."""
        ...


def clean_boxes(corners: Floats, confidence: Floats, least: float) -> Floats:
    """Return `[n, 5]` x, y, w, h, confidence from corners `[N, 4]`: finite, with area, of `least` confidence or more.

    At most `MOST_BOXES`, those of highest confidence.

    Example:
        >>> clean_boxes(np.array([[0.0, 0, 10, 20], [5, 5, 5, 9]]), np.array([0.5, 0.9]), 0.02).tolist()
        [[0.0, 0.0, 10.0, 20.0, 0.5]]
    """
    with np.errstate(invalid="ignore"):
        sides = corners[:, 2:] - corners[:, :2]
        rows = np.flatnonzero((sides > 1e-3).all(axis=1) & np.isfinite(corners).all(axis=1) & (confidence >= least))
    rows = np.sort(rows[np.argsort(-confidence[rows], kind="stable")[:MOST_BOXES]])
    return np.column_stack([corners[rows, :2], sides[rows], confidence[rows]]).astype(np.float64)
